"""Images and videos of others read as frames of a video that is to be made: at its size, and as many as it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import CROP
from flowblending.runtime.media.clip import Clip
from flowblending.runtime.media.display import Picture
from flowblending.runtime.media.fit import Fit
from flowblending.runtime.media.frame_source import Frame, FrameSource, opened_frames, opened_still

_SLACK: Final = Fraction(1, 200)
"""Seconds by which containers that count hundredths or milliseconds may tell a frame's time too late."""


def read_still(path: Path, size: tuple[int, int], *, fit: str = CROP, grey: bool = False) -> Clip:
    """An image, as a clip of one frame.

    Args:
        path: of a file.
        size: width and height that are wanted.
        fit: of `flowblending.contracts.conditions.FITS`.
        grey: whether only its brightness is wanted, of a mask.

    Raises:
        FlowBlendingError: it is missing, no image, damaged, animated, or of a size that is not taken.
    """
    return _read(opened_still, path, size, fit=fit, grey=grey)


def read_clip(
    path: Path,
    size: tuple[int, int],
    *,
    fit: str = CROP,
    most: int | None = None,
    resample: float | None = None,
    grey: bool = False,
) -> Clip:
    """The frames of a video, of an animated image, of a folder of images, or of one image.

    Args:
        path: of a file, or of a folder, whose images are taken in the order of their names and numbers.
        size: width and height that are wanted.
        fit: of `flowblending.contracts.conditions.FITS`.
        most: frames that are read; None reads all.
        resample: frames per second at which frames are taken, each time the one that a player shows then; None takes
            all of them as they are.
        grey: whether only their brightness is wanted, of a mask.

    Raises:
        FlowBlendingError: it is missing, has no frames, cannot be read, is damaged, or is of a size that is not taken.
    """
    return _read(opened_frames, path, size, fit=fit, most=most, resample=resample, grey=grey)


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, a video or a folder as it is shown; no more than one frame of a video is decoded.

    Raises:
        FlowBlendingError: as `read_clip`.
    """
    with opened_frames(path) as source:
        return source.width, source.height


def _read(
    opener: Callable[[Path], AbstractContextManager[FrameSource]],
    path: Path,
    size: tuple[int, int],
    *,
    fit: str,
    most: int | None = None,
    resample: float | None = None,
    grey: bool,
) -> Clip:
    with opener(path) as source:
        how = Fit(name=source.name, source=(source.width, source.height), target=size, how=fit)
        how.check()
        rate = source.frame_rate
        frames = source.frames()
        if resample is not None:
            if rate is None:
                raise UsageError(
                    f"{source.name} has no frame rate, so that it cannot be resampled to {resample:g} frames per "
                    "second; leave --resample-fps out."
                )
            frames, rate = _resampled(frames, rate, Fraction(resample).limit_denominator(1001))
        taken, transparent = [], False
        for frame in itertools.islice(frames, most):
            taken.append(how.apply(_grey(frame.picture) if grey else frame.picture))
            transparent |= frame.transparent
        more = most is not None and len(taken) == most and next(frames, None) is not None
        notes = how.notes()
        if transparent:
            notes.append(f"{source.name} has transparent parts, which are taken as black.")
        if source.high_range:
            notes.append(f"{source.name} is coded for high dynamic range; its colours are taken as they are.")
        if resample is None and not more and len(taken) < min(source.promised, most or source.promised):
            notes.append(f"{source.name} says it has {source.promised} frames, but {len(taken)} can be decoded.")
        return Clip(
            name=source.name,
            frames=np.stack(taken),
            width=source.width,
            height=source.height,
            frame_rate=None if rate is None else float(rate),
            still=source.still,
            more=more,
            notes=tuple(notes),
        )


def _grey(picture: Picture) -> npt.NDArray[np.uint8]:
    """The brightness of a picture, uint8 [H, W], by ITU-R BT.601 as Pillow has it."""
    from PIL import Image

    return np.asarray(Image.fromarray(picture).convert("L"))


def _resampled(frames: Iterator[Frame], own: Fraction, rate: Fraction) -> tuple[Iterator[Frame], Fraction]:
    """The frame that a player shows at every tick of another rate, in frames per second."""
    slack = min(_SLACK, 1 / (4 * own))

    def shown() -> Iterator[Frame]:
        tick, last, length = 0, None, 1 / own
        for frame in frames:
            start = frame.start or Fraction(0)
            while last is not None and tick / rate + slack < start:
                yield last
                tick += 1
            last, length, end = frame, frame.length or length, start
        while last is not None and tick / rate + slack < end + length:
            yield last
            tick += 1

    return shown(), rate
