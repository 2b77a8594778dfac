"""Existing videos: read frame by frame, measured against the first of them, and put into the report's folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.compare.scoring import Scorer, SetScorer
from flowblending.runtime.measures.networks import Features, Frames
from flowblending.runtime.measures.similarity import Likeness, Smoothness
from flowblending.runtime.media.video import from_uint8, open_writer
from flowblending.system.extras import install
from flowblending.system.whole_file import whole_file

Frame = npt.NDArray[np.uint8]

PLAYABLE = {"h264", "vp8", "vp9", "av1"}
"""Codecs that browsers play; other videos are written anew for the page, and measured as they were."""


@dataclass(frozen=True, kw_only=True)
class ExistingVideo:
    """An existing video.

    Attributes:
        count: of its frames, as the file says; 0 if it does not.
        codec: FFmpeg's name of it.
        pixels: FFmpeg's name of the pixel format.
        about: what fb-run wrote into it: prompt, schedule, cache; empty for another's video.
    """

    path: Path
    width: int
    height: int
    frame_rate: float
    count: int
    codec: str
    pixels: str
    about: Mapping[str, str]

    @property
    def playable(self) -> bool:
        """Whether browsers play it as it is."""
        return self.path.suffix in (".mp4", ".webm") and self.codec in PLAYABLE and self.pixels == "yuv420p"

    def fits(self, first: ExistingVideo) -> bool:
        """Whether browsers play it as it is, and in step with the first video."""
        return self.playable and abs(self.frame_rate - first.frame_rate) < 1e-3


@dataclass(frozen=True, kw_only=True)
class FrameMeasurements:
    """What a video's frames say.

    Attributes:
        error: mean squared error against the first video's frames, in levels of 0..1; None for that one itself.
        ssim: likewise; None also where frames are smaller than its window.
    """

    frames: int
    smoothness: float | None
    error: float | None
    ssim: float | None


def open_video(path: Path) -> ExistingVideo:
    """What a video file is.

    Raises:
        FlowBlendingError: it is none, or PyAV is not installed.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate: Fraction = stream.average_rate or Fraction(16)
        return ExistingVideo(
            path=path,
            width=stream.width,
            height=stream.height,
            frame_rate=float(rate),
            count=stream.frames,
            codec=stream.codec_context.name,
            pixels=str(stream.codec_context.pix_fmt),
            about=_about(container.metadata.get("comment", "")),
        )


def open_all(paths: Sequence[Path]) -> list[ExistingVideo]:
    """Several videos of one size.

    Raises:
        UsageError: fewer than two, one twice, or videos of different sizes.
        FlowBlendingError: one is no video.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} video was given, but a comparison needs at least 2; give --videos A.mp4 B.mp4.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("One video was given twice; give each once.")
    videos = [open_video(path) for path in paths]
    first = videos[0]
    for video in videos[1:]:
        if (video.width, video.height) != (first.width, first.height):
            raise UsageError(
                f"{video.path} is {video.width}x{video.height}, but {first.path} is {first.width}x{first.height}; "
                "give videos of one size."
            )
        # A file need not say how many frames it has; then they are counted while they are compared.
        if video.count and first.count and video.count != first.count:
            raise _lengths(video, video.count, first, first.count)
    return videos


def frames_of(video: ExistingVideo) -> Iterator[Frame]:
    """Every frame in order, uint8 [H, W, 3]."""
    with _opened(video.path) as container:
        for frame in container.decode(video=0):
            # The file says how its colours are coded; FFmpeg's own choice would be BT.601.
            yield np.asarray(frame.to_ndarray(format="rgb24"))


def whole(video: ExistingVideo) -> Frames:
    """All frames at once, for scorers, uint8 [F, H, W, 3]."""
    return np.stack(list(frames_of(video)))


def measure(video: ExistingVideo, first: ExistingVideo | None, advance: Callable[[int], None]) -> FrameMeasurements:
    """Measure one video, against the first one if it is another; two frames of each are in memory at a time.

    Raises:
        UsageError: they have different numbers of frames.
        FlowBlendingError: one cannot be read to its end.
    """
    smoothness, likeness, count = Smoothness(), Likeness(), 0
    others: Iterator[Frame] = iter(()) if first is None else frames_of(first)
    for ours in frames_of(video):
        smoothness.add(ours)
        count += 1
        if first is not None:
            theirs = next(others, None)
            if theirs is None:
                raise _lengths(video, _count(video), first, _count(first))
            likeness.add(ours, theirs)
        advance(1)
    if next(others, None) is not None and first is not None:
        raise _lengths(video, _count(video), first, _count(first))
    return FrameMeasurements(
        frames=count,
        smoothness=smoothness.value,
        error=None if first is None else likeness.error,
        ssim=None if first is None else likeness.ssim,
    )


def _count(video: ExistingVideo) -> int:
    return sum(1 for _ in frames_of(video))


def _lengths(video: ExistingVideo, ours: int, first: ExistingVideo, theirs: int) -> UsageError:
    return UsageError(f"{video.path} has {ours} frames, but {first.path} has {theirs}; give videos of one length.")


def place(video: ExistingVideo, first: ExistingVideo, target: Path) -> None:
    """Put a video where the page finds it: a copy, or in H.264 and at the first one's frame rate where it does not fit.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    if not video.fits(first):
        with open_writer(
            target, width=video.width, height=video.height, frame_rate=first.frame_rate, metadata=dict(video.about)
        ) as writer:
            for frame in frames_of(video):
                writer.write(from_uint8(frame[None]))
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary:
            shutil.copyfile(video.path, temporary)
    except OSError as error:
        raise FlowBlendingError(
            f"Cannot write {target} ({error.strerror}); free some space there, or give another --out."
        ) from None


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """What scorers say of a video, by their keys: figures, and features for set scorers."""

    scores: Mapping[str, Mapping[str, float]]
    features: Mapping[str, Features]


def look(
    videos: Sequence[ExistingVideo], scorers: Sequence[Scorer], sets: Sequence[SetScorer], video: ExistingVideo
) -> VideoScores:
    """Have a video scored; the whole of it, and of the first, is in memory for that.

    Raises:
        MeasureError: a scorer failed.
    """
    if not scorers and not sets:
        return VideoScores(scores={}, features={})
    frames = whole(video)
    reference = None if video is videos[0] or not scorers else whole(videos[0])
    prompt = video.about.get("prompt", "")
    return VideoScores(
        scores={each.key: dict(each.score(frames, prompt, reference)) for each in scorers},
        features={each.key: each.features(frames) for each in sets},
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """PyAV's container; every way in which reading may fail becomes a sentence."""
    try:
        import av
    except ImportError:
        raise FlowBlendingError(f"Reading videos needs PyAV, which is not installed; {install('video')}.") from None
    if not path.is_file():
        raise FlowBlendingError(f"There is no video {path}; give --videos the names of files.")
    try:
        # FFmpeg takes what stands before a colon for a protocol, but not in an absolute path.
        with av.open(str(path.absolute())) as container:
            if not container.streams.video:
                raise FlowBlendingError(f"{path} holds no video; give --videos files that do.")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise FlowBlendingError(f"{path} cannot be read as a video ({error.strerror}); give another file.") from None


def _about(comment: str) -> dict[str, str]:
    try:
        content = json.loads(comment)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}
