"""How a video's decoded frames are shown: upright, in square pixels, on black."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flowblending import FlowBlendingError
from flowblending.runtime.media.display import UPRIGHT, Orientation, Picture, on_black, orientation_of, shown_size
from flowblending.system.printable import printable

_UNSPECIFIED = 2
"""FFmpeg's number of a matrix of colours that the file does not name."""
_HD = 720
"""Rows from which on players take BT.709 for colours that the file does not name, and BT.601 below."""
_HIGH_RANGE = {16, 18}
"""FFmpeg's numbers of the transfer functions PQ and HLG."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is done to the frames of a video.

    Attributes:
        width, height: as they are shown, in pixels.
        orientation: what is done to the stored frames.
        aspect: of a stored pixel.
    """

    width: int
    height: int
    orientation: Orientation
    aspect: Fraction

    def picture(self, frame: Any) -> Picture:
        """A decoded frame as it is shown, uint8 [H, W, 3]."""
        return self.seen(frame)[0]

    def seen(self, frame: Any) -> tuple[Picture, bool]:
        """A decoded frame as it is shown, uint8 [H, W, 3], and whether parts of it are transparent."""
        colours = _colours(frame, *_turned(self.orientation, self.width, self.height))
        transparent = colours.shape[2] == 4 and bool(colours[..., 3].min() < 255)
        opaque = on_black(colours) if colours.shape[2] == 4 else colours
        return np.ascontiguousarray(self.orientation.turn(opaque)), transparent


def shown_as(path: Path, frame: Any, stream: Any) -> Shown:
    """How the frames of a stream are shown, from the first of them.

    Raises:
        FlowBlendingError: they are to be turned by an angle that is no quarter turn.
    """
    orientation, aspect = _orientation(path, frame), stream.sample_aspect_ratio or Fraction(1)
    width, height = _turned(orientation, *shown_size(frame.width, frame.height, aspect))
    return Shown(width=width, height=height, orientation=orientation, aspect=aspect)


def is_transparent(frame: Any) -> bool:
    """Whether a decoded frame may be."""
    return frame.format.has_palette or any(each.is_alpha for each in frame.format.components)


def is_high_range(stream: Any) -> bool:
    """Whether a stream is coded for more light than screens used to have."""
    return stream.codec_context.color_trc in _HIGH_RANGE


def _colours(frame: Any, width: int, height: int) -> Picture:
    """A decoded frame at another size, uint8 [H, W, 3], or [H, W, 4] with opacity."""
    how: dict[str, Any] = {"width": width, "height": height, "interpolation": "BICUBIC"}
    # The file says how its colours are coded; where it does not, FFmpeg's own choice would be BT.601 throughout.
    if frame.colorspace == _UNSPECIFIED and frame.height >= _HD:
        how["src_colorspace"] = "ITU709"
    picture: Picture = frame.to_ndarray(format="rgba" if is_transparent(frame) else "rgb24", **how)
    return picture


def _turned(orientation: Orientation, width: int, height: int) -> tuple[int, int]:
    return (height, width) if orientation.transposed else (width, height)


def _orientation(path: Path, frame: Any) -> Orientation:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    try:
        return orientation_of(struct.unpack("9i", bytes(matrix)))
    except ValueError as error:
        raise FlowBlendingError(f"{printable(path)} cannot be read as it is shown: {error}; turn it upright.") from None
