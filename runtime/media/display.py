"""What a player makes of the pictures that a decoder gives: turned upright, and stretched until pixels are square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_SLACK = 0.02
"""Of a matrix's larger entries: what writers of matrices round away."""


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a picture is turned: rows and columns change places first, and their order is reversed then."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether no turning alone gives it."""
        return self.transposed ^ self.rows_reversed ^ self.columns_reversed

    @property
    def degrees(self) -> int:
        """By how much a player turns the picture clockwise, 0..270; of a mirrored one, after it was mirrored."""
        if self.transposed:
            return 270 if self.rows_reversed else 90
        return 180 if self.rows_reversed else 0

    def turn(self, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The picture [H, W, ...] as it is shown, [H, W, ...] or [W, H, ...]."""
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        turned = turned[::-1] if self.rows_reversed else turned
        return turned[:, ::-1] if self.columns_reversed else turned


UPRIGHT = Orientation()


def orientation_of(matrix: Sequence[int]) -> Orientation:
    """What a display matrix says (ISO/IEC 14496-12, 6.2.2, and libavutil/display.h).

    Args:
        matrix: a, b, u, c, d, v, x, y, w: what is at (p, q), right and down, is shown at
            (a p + c q + x, b p + d q + y).

    Raises:
        ValueError: it turns by another angle than quarter turns.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if not any((a, b, c, d)):
        return UPRIGHT  # some writers leave the matrix out by zeros, and players take no heed of it
    if max(abs(b), abs(c)) <= _SLACK * min(abs(a), abs(d)):
        return Orientation(rows_reversed=d < 0, columns_reversed=a < 0)
    if max(abs(a), abs(d)) <= _SLACK * min(abs(b), abs(c)):
        return Orientation(transposed=True, rows_reversed=b < 0, columns_reversed=c < 0)
    raise ValueError("it is to be shown turned by another angle than quarter turns, which players do differently")


def shown_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Width and height in square pixels; players widen a picture, or heighten it, and never shrink it.

    Args:
        width, height: in pixels as they are stored.
        aspect: of a stored pixel, its width over its height.
    """
    if aspect >= 1:
        return max(1, round(width * aspect)), height
    return width, max(1, round(height / aspect))


def on_black(picture: Picture) -> Picture:
    """An RGBA picture, uint8 [H, W, 4], as RGB on the black that players have behind it, uint8 [H, W, 3]."""
    colours, alpha = picture[..., :3], picture[..., 3:]
    if alpha.min() == 255:
        return colours
    return ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def even_sided(picture: Picture) -> Picture:
    """The picture with its last row and column once more where their number is odd: what 4:2:0 can hold."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
