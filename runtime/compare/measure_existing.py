"""What the frames of existing videos say: likeness to the first one, and what scorers make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flowblending.runtime.compare.existing import ExistingVideo, frames_of
from flowblending.runtime.compare.scoring import Asked
from flowblending.runtime.measures.networks import Features, Frames
from flowblending.runtime.measures.similarity import Likeness, Smoothness
from flowblending.runtime.media.display import Picture


@dataclass(frozen=True, kw_only=True)
class FrameMeasurements:
    """What a video's frames say.

    Attributes:
        error: mean squared error against the first video's frames, in levels of 0..1; None for that one itself.
        ssim: likewise; None also where frames are smaller than its window.
    """

    smoothness: float | None
    error: float | None
    ssim: float | None


def measure(video: ExistingVideo, first: ExistingVideo | None, advance: Callable[[int], None]) -> FrameMeasurements:
    """Measure one video, against the first one if it is another; two frames of each are in memory at a time.

    Raises:
        FlowBlendingError: one cannot be read any more.
    """
    smoothness, likeness = Smoothness(), Likeness()
    others: Iterator[Picture] = iter(()) if first is None else frames_of(first)
    for ours in frames_of(video):
        smoothness.add(ours)
        if first is not None:
            likeness.add(ours, next(others))
        advance(1)
    return FrameMeasurements(
        smoothness=smoothness.value,
        error=None if first is None else likeness.error,
        ssim=None if first is None else likeness.ssim,
    )


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """What scorers say of a video, by their keys: figures, and features for set scorers."""

    scores: Mapping[str, Mapping[str, float]]
    features: Mapping[str, Features]


def look(video: ExistingVideo, first: ExistingVideo | None, asked: Asked) -> VideoScores:
    """Have a video scored, with the first one if it is another; the whole of both is in memory for that.

    Raises:
        MeasureError: a scorer failed.
    """
    if not asked.scorers and not asked.sets:
        return VideoScores(scores={}, features={})
    frames = whole(video)
    reference = None if first is None or not asked.scorers else whole(first)
    prompt = video.about.get("prompt", "")
    return VideoScores(
        scores={each.key: dict(each.score(frames, prompt, reference)) for each in asked.scorers},
        features={each.key: each.features(frames) for each in asked.sets},
    )


def whole(video: ExistingVideo) -> Frames:
    """All frames at once, for scorers, uint8 [F, H, W, 3]."""
    return np.stack(list(frames_of(video)))
