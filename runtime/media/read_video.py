"""Reading videos as a player shows them: frames upright, in square pixels, on black, and only those that are shown.

What a file says of itself is not believed: its frames are counted, and their times taken, by decoding it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.runtime.media.display import Orientation, Picture
from flowblending.runtime.media.frame_times import FrameTimes
from flowblending.runtime.media.open_video import decoded, opened
from flowblending.runtime.media.shown import Shown, is_high_range, is_transparent, shown_as
from flowblending.system.printable import printable

LARGEST = 16384
"""Pixels of a side that browsers show, and H.264 holds."""

_MICROSECONDS = 1e6
"""FFmpeg's clock of whole files, in ticks per second."""


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video, as it is shown and as it is stored.

    Attributes:
        width, height: as it is shown, in pixels.
        orientation: what is done to the stored frames.
        aspect: of a stored pixel.
        times: of the frames that are shown.
        start: of the first one, in seconds from the file's beginning on.
        frame_rate: see `FrameTimes.rate`.
        length: in seconds, as the file says; 0 if it does not.
        promised: how many frames the file says it has; 0 if it does not.
        damaged: how many of its frames the decoder could not make out whole.
        container: FFmpeg's name of the format; ``brand`` is what MP4 files and their like say further.
        codec: FFmpeg's name of it.
        pixels: FFmpeg's name of the pixel format.
        transparent: whether frames may be.
        high_range: whether it is coded for more light than screens used to have.
        about: what fb-run wrote into it: prompt, schedule, cache; empty for another's video.
    """

    path: Path
    width: int
    height: int
    orientation: Orientation
    aspect: Fraction
    times: FrameTimes
    start: float
    frame_rate: float
    length: float
    promised: int
    damaged: int
    container: str
    brand: str
    codec: str
    pixels: str
    transparent: bool
    high_range: bool
    about: Mapping[str, str]

    @property
    def count(self) -> int:
        """Of the frames that are shown."""
        return len(self.times.starts)


def read_video(path: Path) -> VideoFile:
    """What a video file is; all of it is decoded.

    Raises:
        FlowBlendingError: it is none, it cannot be decoded to its end, or PyAV is not installed.
    """
    with opened(path) as (container, stream):
        seen = _see_all(path, container, stream)
        said = (stream.guessed_rate, stream.average_rate)
        times = _times(seen.starts, seen.last, said)
        shown = shown_as(path, seen.first, stream)
        if max(shown.width, shown.height) > LARGEST:
            raise FlowBlendingError(
                f"{printable(path)} is to be shown at {shown.width}x{shown.height}, but no player shows more than "
                f"{LARGEST} pixels of a side; give a smaller video."
            )
        return VideoFile(
            path=path,
            width=shown.width,
            height=shown.height,
            orientation=shown.orientation,
            aspect=shown.aspect,
            times=times,
            start=(seen.starts[0] or 0.0) - (container.start_time or 0) / _MICROSECONDS,
            frame_rate=times.rate(said),
            length=(container.duration or 0) / _MICROSECONDS,
            promised=stream.frames,
            damaged=seen.damaged,
            container=container.format.name,
            brand=container.metadata.get("major_brand", ""),
            codec=stream.codec_context.name,
            pixels=str(stream.codec_context.pix_fmt),
            transparent=is_transparent(seen.first),
            high_range=is_high_range(stream),
            about=_about(container.metadata.get("comment", "")),
        )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What decoding all frames has shown.

    Attributes:
        first: the first frame.
        starts: of the frames, in seconds by the file's clock; None for one without a time.
        last: how long the last one is shown, in seconds; 0 if it does not say.
    """

    first: Any
    starts: list[float | None]
    last: float
    damaged: int


def _see_all(path: Path, container: Any, stream: Any) -> _Seen:
    first = last = None
    starts: list[float | None] = []
    damaged = 0
    for frame in decoded(path, container, stream):
        first, last = first or frame, frame
        if (frame.width, frame.height) != (first.width, first.height):
            raise FlowBlendingError(
                f"{printable(path)} changes its size at frame {len(starts) + 1}, from {first.width}x{first.height} "
                f"to {frame.width}x{frame.height}; give a video of one size."
            )
        starts.append(None if frame.pts is None else float(frame.pts * stream.time_base))
        damaged += frame.is_corrupt
    if last is None:
        raise FlowBlendingError(f"{printable(path)} holds no frame that can be decoded; give another file.")
    shown_for = float((getattr(last, "duration", 0) or 0) * stream.time_base)
    return _Seen(first=first, starts=starts, last=shown_for, damaged=damaged)


def pictures(video: VideoFile) -> Iterator[Picture]:
    """Every frame in order as it is shown, uint8 [H, W, 3].

    Raises:
        FlowBlendingError: the file cannot be read any more.
    """
    shown = Shown(width=video.width, height=video.height, orientation=video.orientation, aspect=video.aspect)
    with opened(video.path) as (container, stream):
        for frame in decoded(video.path, container, stream):
            yield shown.picture(frame)


def _times(starts: Sequence[float | None], last: float, said: Sequence[Fraction | None]) -> FrameTimes:
    """From what the frames say; files without times, or with times that go back, are taken to be even."""
    known = [each for each in starts if each is not None]
    if len(known) < len(starts) or known != sorted(known):
        rate = float(next((each for each in said if each), Fraction(25)))
        known, last = [index / rate for index in range(len(starts))], 1 / rate
    known = [each - known[0] for each in known]
    if last <= 0 and len(known) > 1:
        last = known[-1] / (len(known) - 1)
    return FrameTimes(starts=known, length=known[-1] + last)


def _about(comment: str) -> dict[str, str]:
    try:
        content = json.loads(comment)
    except ValueError:
        return {}
    return (
        {printable(str(key)): printable(str(value)) for key, value in content.items()}
        if isinstance(content, dict)
        else {}
    )
