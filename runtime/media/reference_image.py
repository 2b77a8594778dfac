"""Reference images of Wan VACE, in their own shape on a white picture of the video's size.

Source: ``preprocess_conditions`` of diffusers' pipeline_wan_vace.py: Lanczos to whole latent pixels, then bilinear
without antialiasing, as ``torch.nn.functional.interpolate`` has it (aten/src/ATen/native/UpSample.h).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.media.clip import pixels
from flowblending.runtime.media.frame_source import opened_still

Floats = npt.NDArray[np.float32]


def check_reference(path: Path, factor: int) -> None:
    """See that a reference image is there, can be read, and has a latent pixel at least; nothing is decoded.

    Args:
        path: of its file.
        factor: pixels per latent pixel.

    Raises:
        FlowBlendingError: it is not so.
    """
    with opened_still(path) as source:
        if min(source.width, source.height) < factor:
            raise UsageError(
                f"{source.name} is {source.width}x{source.height}, but a reference image has at least {factor} pixels "
                "either way; give a larger one."
            )


def read_reference(path: Path, size: tuple[int, int], factor: int) -> tuple[Floats, list[str]]:
    """A reference image, and what a user should know of how it is taken.

    Args:
        path: of its file.
        size: width and height of the video.
        factor: pixels per latent pixel.

    Returns:
        float32 [3, H, W] from -1 to 1, as `on_white`.

    Raises:
        FlowBlendingError: it is missing, no image, animated, damaged, or too small.
    """
    check_reference(path, factor)
    with opened_still(path) as source:
        frame = next(iter(source.frames()))
        notes = [f"{source.name} has transparent parts, which are taken as black."] if frame.transparent else []
        return on_white(frame.picture, size, factor), notes


def on_white(picture: npt.NDArray[np.uint8], size: tuple[int, int], factor: int) -> Floats:
    """A picture in its own shape, as large as there is room, in the middle of white.

    Args:
        picture: uint8 [H, W, 3].
        size: width and height of what it is put on.
        factor: the picture's sides are first brought to multiples of this.

    Returns:
        float32 [3, H, W] from -1 to 1.
    """
    from PIL import Image

    height, width = (side - side % factor for side in picture.shape[:2])
    whole = np.asarray(Image.fromarray(picture).resize((width, height), resample=Image.Resampling.LANCZOS))
    wide, high = size
    scale = min(high / height, wide / width)
    inner = _bilinear(pixels(whole[None])[0, :, 0], int(height * scale), int(width * scale))
    canvas = np.ones((3, high, wide), np.float32)
    top, left = (high - inner.shape[1]) // 2, (wide - inner.shape[2]) // 2
    canvas[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return canvas


def _bilinear(values: Floats, height: int, width: int) -> Floats:
    """float32 [C, H, W] at another size, at least one pixel either way."""
    (low, high, down), (left, right, across) = (
        _neighbours(count, target) for count, target in zip(values.shape[1:], (height, width), strict=True)
    )
    one = np.float32(1)
    rows = values[:, low] * (one - down)[:, None] + values[:, high] * down[:, None]
    return np.asarray(rows[:, :, left] * (one - across) + rows[:, :, right] * across, np.float32)


def _neighbours(count: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Of every number that is made, the two that it lies between, and its share of the second."""
    places = np.float32(count / target) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    places = np.maximum(places, np.float32(0))
    low = np.minimum(places.astype(np.int64), count - 1)
    return low, np.minimum(low + 1, count - 1), (places - low.astype(np.float32)).astype(np.float32)
