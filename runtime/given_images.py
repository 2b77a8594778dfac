"""Images that users of Python give: Pillow's, or arrays, as frames that a video keeps to."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowblending import UsageError
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.media.display import Picture, on_black
from flowblending.runtime.media.fit import Fit

_EXPECTED = (
    "an image of Pillow, or an array uint8 [H, W, 3] or of floats from 0 to 1, [H, W, 3] or [3, H, W], was expected"
)
_LEAST = 8
"""Pixels in either direction, as of files."""


def given_image(image: Any, name: str, size: tuple[int, int], *, frame: int = 0, fit: str) -> GivenClip:
    """An image, brought to the size of a video that is to be made.

    Args:
        image: of Pillow, or an array of numpy or torch on the CPU, as `picture_of` takes them.
        name: what it is called in messages and in the video's metadata.
        size: width and height of the video.
        frame: of the video that it is, from 0 on.
        fit: of `flowblending.contracts.conditions.FITS`.

    Raises:
        UsageError: it is none of these.
    """
    picture = picture_of(image, name)
    height, width = picture.shape[:2]
    how = Fit(name=name, source=(width, height), target=size, how=fit)
    how.check()
    return GivenClip(name=name, frames=how.apply(picture)[None], frame=frame, notes=tuple(how.notes()))


def picture_of(image: Any, name: str) -> Picture:
    """An image as uint8 [H, W, 3]; transparent parts become black, as in files.

    Raises:
        UsageError: it is none, is too small, or holds numbers that are no colours.
    """
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # Pillow's, which need not be installed
        transparent = "A" in image.getbands() or "transparency" in image.info
        found = on_black(np.asarray(image.convert("RGBA"))) if transparent else np.asarray(image.convert("RGB"))
    else:
        found = _pixels(image, name)
    height, width = found.shape[:2]
    if min(height, width) < _LEAST:
        raise UsageError(f"{name} is {width}x{height} pixels, but {_LEAST}x{_LEAST} is the least; give a larger one.")
    return np.ascontiguousarray(found)


def _pixels(image: Any, name: str) -> Picture:
    try:
        values = np.asarray(image)
    except (TypeError, ValueError, RuntimeError):
        values = np.empty(0)
    given = f"{type(image).__name__} {list(values.shape)}" if values.ndim else f"{image!r:.60}"
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 3 or (values.dtype != np.uint8 and values.dtype.kind != "f"):
        raise UsageError(f"{name} is {given}, but {_EXPECTED}; give one of these.")
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    least, most = (float(each) for each in (values.min(), values.max()))
    if not (least >= 0.0 and most <= 1.0):  # nor where one is not a number
        raise UsageError(f"{name} holds numbers from {least:g} to {most:g}, but {_EXPECTED}; give one of these.")
    picture: Picture = np.rint(values.astype(np.float32) * np.float32(255)).astype(np.uint8)
    return picture
