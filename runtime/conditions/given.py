"""What is said of the images and clips of a job: ``cat.png``, ``end.png@120:0.8``, ``in.mp4@0``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.media.read_clip import read_clip
from flowblending.system.printable import printable

_TAIL = re.compile(r"@(?P<frame>[0-9]{1,6})(?::(?P<strength>[0-9.]{1,20}))?$|:(?P<alone>[0-9]*\.[0-9]{1,20}|[01])$")


@dataclass(frozen=True, kw_only=True)
class Given:
    """An image or a clip that was given.

    Attributes:
        path: of its file.
        frame: of the video, from 0 on, that it begins at.
        strength: from 0 to 1.
    """

    path: Path
    frame: int = 0
    strength: float = 1.0

    def __str__(self) -> str:
        """Such as ``end.png@120:0.8``."""
        return f"{printable(str(self.path))}@{self.frame}:{self.strength:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenClip:
    """Its frames, uint8 [F, H, W, 3] at the video's size, and whether it is one picture.

    Attributes:
        name: for messages.
        more: whether the file goes on after these frames.
        notes: what a user should know of how it was read, each a sentence.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    frame: int = 0
    strength: float = 1.0
    still: bool = True
    more: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Its name."""
        return self.name


def read_given(text: str) -> Given:
    """Read ``PATH[@FRAME[:STRENGTH]]``, or ``PATH:STRENGTH``.

    Raises:
        UsageError: a strength that is not from 0 to 1, or no path.
    """
    match = _TAIL.search(text)
    path = text if match is None else text[: match.start()]
    frame, strength = (
        (0, "1") if match is None else (int(match["frame"] or 0), match["strength"] or match["alone"] or "1")
    )
    try:
        value = float(strength)
    except ValueError:
        value = -1.0
    if not path or not 0.0 < value <= 1.0:
        raise UsageError(
            f"The image {text!r} was given, but PATH, PATH@FRAME or PATH@FRAME:STRENGTH was expected, with a strength "
            "above 0 and at most 1; give one such as end.png@120:0.8."
        )
    return Given(path=Path(path), frame=frame, strength=value)


def tail_of(text: str) -> str:
    """What stands behind the name of the file, such as ``@120:0.8``; nothing if nothing does."""
    match = _TAIL.search(text)
    return "" if match is None else match[0]


def open_given(texts: Sequence[str], size: tuple[int, int], frames: int, *, fit: str) -> tuple[GivenClip, ...]:
    """Read the files that a job names.

    Args:
        texts: as `read_given` takes them.
        size: width and height of the video.
        frames: of the video; no more of a clip are read than there are from where it begins.
        fit: see `flowblending.runtime.media.fit.FITS`.

    Raises:
        FlowBlendingError: a file is missing or cannot be read, or a frame is not one of the video's.
    """
    found = []
    for text in texts:
        given = read_given(text)
        if given.frame >= frames:
            raise UsageError(
                f"{given.path} is given for frame {given.frame}, but the video has {frames} frames, from 0 to "
                f"{frames - 1}; give one of these."
            )
        clip = read_clip(given.path, size, fit=fit, most=frames - given.frame)
        found.append(
            GivenClip(
                name=clip.name,
                frames=clip.frames,
                frame=given.frame,
                strength=given.strength,
                still=clip.count == 1,
                more=clip.more,
                notes=clip.notes,
            )
        )
    return tuple(found)
