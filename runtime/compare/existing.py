"""Existing videos: which of those that were given can be compared, which of their frames, and their copies."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.media.display import UPRIGHT, Picture, even_sided
from flowblending.runtime.media.frame_times import middles
from flowblending.runtime.media.read_video import VideoFile, pictures, read_video
from flowblending.runtime.media.video import open_writer
from flowblending.system.output import cannot_write
from flowblending.system.printable import printable
from flowblending.system.whole_file import whole_file

PLAYABLE: Mapping[str, frozenset[str]] = {
    ".mp4": frozenset({"h264", "vp9", "av1"}),
    ".webm": frozenset({"vp8", "vp9", "av1"}),
}
"""Codecs that browsers play, by their files' kind; other videos are written anew for the page, and measured as they
were."""

LONGEST = 1_000_000
"""Frames that a video of variable rate is compared at; more is a clock that went wrong, or hours."""

_QUICKTIME = "qt  "
"""The brand of QuickTime's own files, which not all browsers play."""


@dataclass(frozen=True, kw_only=True)
class ExistingVideo:
    """A video of a comparison.

    Attributes:
        label: what it is called: its file's name, or as much of its path as tells it apart.
        frames: which of its own are compared, in order; a player that shows one longer has it here again.
        frame_rate: of the comparison, in frames per second.
    """

    file: VideoFile
    label: str
    frames: Sequence[int]
    frame_rate: float

    @property
    def about(self) -> Mapping[str, str]:
        """What fb-run wrote into it; empty for another's video."""
        return self.file.about

    @property
    def resampled(self) -> bool:
        """Whether some frames are compared twice, or not at all."""
        return list(self.frames) != list(range(self.file.count))

    @property
    def suffix(self) -> str:
        """Of the page's copy."""
        return (_playable(self.file) or ".mp4") if self.fits else ".mp4"

    @property
    def fits(self) -> bool:
        """Whether browsers play it as it is, and in step with the first video: the page's copy is the same then."""
        file, frame = self.file, 1 / self.frame_rate
        in_step = (
            file.times.constant
            and not self.resampled
            and abs(file.frame_rate - self.frame_rate) < 1e-3
            # A player shows nothing before the first frame, and waits for what else is in the file after the last.
            and abs(file.start) < frame / 2
            and abs(file.length - file.count * frame) < frame / 2
        )
        # Players differ in how they show these, or in how often; browsers have the page behind what is transparent.
        plain = not (file.transparent or file.damaged) and file.aspect == 1 and file.promised in (0, file.count)
        upright = file.orientation == UPRIGHT or (_playable(file) == ".mp4" and not file.orientation.mirrored)
        return in_step and plain and upright and _playable(file) is not None


def _playable(file: VideoFile) -> str | None:
    """The suffix of files that browsers play and this is one of; None if they do not."""
    kind = ".mp4" if "mp4" in file.container.split(",") else ".webm" if "webm" in file.container.split(",") else ""
    if file.codec in PLAYABLE.get(kind, ()) and file.pixels == "yuv420p" and file.brand != _QUICKTIME:
        return kind
    return None


def open_all(paths: Sequence[Path]) -> tuple[list[ExistingVideo], list[str]]:
    """The videos that can be compared, the reference first, and sentences on those that cannot.

    All of them are decoded once, so that nothing is measured which could not be compared in the end.

    Raises:
        UsageError: fewer than two, or one twice.
        FlowBlendingError: the first one is no video, or no other can be compared with it.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} video was given, but a comparison needs at least 2; give --videos A.mp4 B.mp4.")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError("One video was given twice; give each once.")
    labels = labels_of(paths)
    videos = [_reference(read_video(paths[0]), labels[0])]
    failures: list[FlowBlendingError] = []
    for path, label in zip(paths[1:], labels[1:], strict=True):
        try:
            videos.append(_against(videos[0], read_video(path), label))
        except FlowBlendingError as error:
            failures.append(error)
    if len(videos) == 1:
        raise failures[0] if len(failures) == 1 else FlowBlendingError(nothing_left(videos[0], map(str, failures)))
    return videos, [str(error) for error in failures]


def nothing_left(reference: ExistingVideo, failures: Iterator[str]) -> str:
    """The sentence for a reference that is left alone."""
    return f"No video is left to compare with {reference.label}: {' '.join(failures)}"


def _reference(file: VideoFile, label: str) -> ExistingVideo:
    frames: Sequence[int] = range(file.count)
    if not file.times.constant:
        count = max(1, round(file.times.length * file.frame_rate))
        if count > LONGEST:
            raise UsageError(
                f"{printable(file.path)} shows its {file.count} frames at uneven times over {file.times.length:.0f} s, "
                f"which is more than {LONGEST} frames at {file.frame_rate:g} per second; give a shorter video."
            )
        frames = file.times.shown(middles(file.frame_rate, count))
    return ExistingVideo(file=file, label=label, frames=frames, frame_rate=file.frame_rate)


def _against(first: ExistingVideo, file: VideoFile, label: str) -> ExistingVideo:
    """A video in step with the first one: frame by frame, or by time where a frame rate varies.

    Raises:
        UsageError: they have different sizes or lengths.
    """
    name, other = printable(file.path), printable(first.file.path)
    if (file.width, file.height) != (first.file.width, first.file.height):
        raise UsageError(f"{name} is {_size(file)}, but {other} is {_size(first.file)}; give videos of one size.")
    if file.times.constant and first.file.times.constant:
        if file.count != first.file.count:
            raise UsageError(
                f"{name} has {file.count} frames{_promise(file)}, but {other} has "
                f"{first.file.count}{_promise(first.file)}; give videos of one length."
            )
        return dataclasses.replace(first, file=file, label=label, frames=range(file.count))
    if abs(file.times.length - first.file.times.length) > 1 / first.frame_rate:
        raise UsageError(
            f"{name} takes {file.times.length:.3f} s, but {other} takes {first.file.times.length:.3f} s, and with a "
            "variable frame rate frames are compared by time; give videos of one length."
        )
    frames = file.times.shown(middles(first.frame_rate, len(first.frames)))
    return dataclasses.replace(first, file=file, label=label, frames=frames)


def _size(file: VideoFile) -> str:
    remarks = []
    if file.orientation.transposed:
        remarks.append(f"turned by {file.orientation.degrees} degrees")
    if file.aspect != 1:
        remarks.append(f"of pixels {file.aspect.numerator}:{file.aspect.denominator}")
    shown = f" as it is shown, {' and '.join(remarks)}" if remarks else ""
    return f"{file.width}x{file.height}{shown}"


def _promise(file: VideoFile) -> str:
    return f" that can be decoded, of {file.promised} that it promises" if file.promised > file.count else ""


def frames_of(video: ExistingVideo) -> Iterator[Picture]:
    """Every frame that is compared, in order, uint8 [H, W, 3].

    Raises:
        FlowBlendingError: the file is not any more what it was.
    """
    wanted = iter(video.frames)
    next_one = next(wanted, None)
    for index, picture in enumerate(pictures(video.file)):
        while next_one == index:
            yield picture
            next_one = next(wanted, None)
        if next_one is None:
            return
    raise FlowBlendingError(f"{printable(video.file.path)} has become shorter while it was compared; run again.")


def place(video: ExistingVideo, target: Path) -> None:
    """Put a video where the page finds it: a copy, or in H.264 and in step with the first one where it does not fit.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    if not video.fits:
        # 4:2:0 holds even sizes only, and nothing else is played everywhere.
        width, height = (size + size % 2 for size in (video.file.width, video.file.height))
        with open_writer(
            target, width=width, height=height, frame_rate=video.frame_rate, metadata=dict(video.about)
        ) as writer:
            for picture in frames_of(video):
                writer.write(even_sided(picture)[None])
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            shutil.copyfile(video.file.path, temporary)
    except OSError as error:
        raise cannot_write(target, error) from None


def labels_of(paths: Sequence[Path]) -> list[str]:
    """The files' names, or as much of their paths as tells them apart."""
    ends = Counter(path.parts[-depth:] for path in paths for depth in range(1, len(path.parts) + 1))
    labels: list[str] = []
    for path in paths:
        whole = len(path.parts)
        depth = next((each for each in range(1, whole) if ends[path.parts[-each:]] == 1), whole)
        label = printable(Path(*path.parts[-depth:]))
        # Escapes may make of a name what another one is.
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return labels
