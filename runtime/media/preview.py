"""A small picture of latents, without the VAE: one matrix product in numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.runtime.devices.pictures import to_uint8

_LARGEST: Final = 256
"""Pixels in either direction; what would be larger is averaged, and stays small enough to be sent with every step."""

Picture = npt.NDArray[np.uint8]


class PreviewMap:
    """The map that a bundle keeps; see ``preview`` of `flowblending.contracts.manifest.Manifest`.

    Args:
        matrix: float32 [channels + 1, n * n * 3].
    """

    def __init__(self, matrix: npt.NDArray[np.float32]) -> None:
        self._slopes, self._constant = matrix[:-1], matrix[-1]
        self._side = math.isqrt(matrix.shape[1] // 3)

    @classmethod
    def read(cls, path: Path, channels: int) -> PreviewMap:
        """The map in a file.

        Raises:
            FlowBlendingError: it cannot be read, or is none for so many channels.
        """
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FlowBlendingError(f"Cannot read {path} ({error}); build the bundle again.") from None
        side = math.isqrt(matrix.shape[-1] // 3) if matrix.ndim else 0
        if matrix.dtype != np.float32 or not side or matrix.shape != (channels + 1, side * side * 3):
            raise FlowBlendingError(
                f"{path} holds {matrix.dtype} {list(matrix.shape)}, but float32 [{channels + 1}, n * n * 3] was "
                "expected; build the bundle again."
            )
        return cls(matrix)

    def picture(self, latents: npt.NDArray[np.float32]) -> Picture:
        """Latents of one latent frame, float32 [C, h, w], as a picture uint8 [n * h, n * w, 3]."""
        channels, height, width = latents.shape
        side = self._side
        # What is not finite is told of elsewhere, and on a GPU later than this.
        with np.errstate(all="ignore"):
            values = np.nan_to_num(latents.reshape(channels, -1).T @ self._slopes + self._constant)
        grid = values.reshape(height, width, side, side, 3).transpose(4, 0, 2, 1, 3)
        frame = grid.reshape(3, 1, height * side, width * side)
        picture: Picture = to_uint8(_smaller(frame))[0]
        return picture


def _smaller(frame: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A frame [3, 1, H, W] of at most so many pixels: means of squares; what is over at the edges is left out."""
    height, width = frame.shape[2:]
    square = -(-max(height, width) // _LARGEST)
    rows, columns = height // square, width // square
    if square == 1 or not rows or not columns:
        return frame
    cut = frame[:, :, : rows * square, : columns * square]
    means: npt.NDArray[np.float32] = cut.reshape(3, 1, rows, square, columns, square).mean(axis=(3, 5))
    return means
