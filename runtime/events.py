"""What is told of a video in the making, and the embeddings that the Python API takes and gives.

`Event` is what users of the Python API are told; `RunEvent` is everything that `run.VideoRun.events` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowblending.runtime.devices.arrays import Array
from flowblending.runtime.devices.foreign import ForeignArray
from flowblending.runtime.media.preview import Picture
from flowblending.runtime.media.read_ahead import Chunk, Frames, Images
from flowblending.runtime.sampler.loop import SampleResult, StepEvent, Trajectory


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What the text encoder makes of one text. Comes from `VideoSampler.encode`, or from another library.

    Attributes:
        text: float32 [1, tokens, width].
        mask: int64 [1, tokens], 1 where a token is and 0 where padding is; None if the models take none (Wan's).
    """

    text: ForeignArray
    mask: ForeignArray | None = None


@dataclass(frozen=True, kw_only=True)
class LoadEvent:
    """An engine is opened next, which may take a while."""

    component: str


@dataclass(frozen=True, kw_only=True)
class PreviewEvent:
    """What the video is going to look like, as far as a step tells.

    Attributes:
        index: of the step, from 0 on; on a GPU, events of later steps may have come before.
        picture: the middle of the video, uint8 [h, w, 3], an eighth of its size, and of 256 pixels at most.
    """

    index: int
    picture: Picture = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LatentsEvent:
    """ModelSampling has finished.

    Attributes:
        latents: float32 [1, C, F, H, W], normalised as the transformers see them.
        seconds: that all steps took.
    """

    latents: Array
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FramesEvent:
    """Some frames have been decoded.

    Attributes:
        first: number of the first of them in the video, from 0 on.
        chunk: what they are.
    """

    first: int
    chunk: Chunk = field(repr=False)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.chunk.images)

    @property
    def frames(self) -> Frames:
        """The frames as float32 [3, f, height, width]; black is -1 and white is 1, and values may lie a little beyond.

        Only what the Python API tells has them: see ``floats`` of `run.VideoRun`.
        """
        return self.chunk.frames

    def images(self) -> Images:
        """The frames as uint8 [f, height, width, 3]."""
        return self.chunk.images


@dataclass(frozen=True, kw_only=True)
class EncodeEvent:
    """The prompt is encoded next."""


@dataclass(frozen=True, kw_only=True)
class WarningEvent:
    """Something about the prompt or the options that the user should not miss, as one line."""

    message: str


@dataclass(frozen=True, kw_only=True)
class SamplingEvent:
    """Everything is bound to memory, and the first step is enqueued next.

    Attributes:
        trajectory: with nothing enqueued ahead, its ``latents`` and ``calls`` are those of the step just told.
    """

    trajectory: Trajectory


@dataclass(frozen=True, kw_only=True)
class FinishedEvent:
    """Every output is whole.

    Attributes:
        sample: the final latents, and the times and calls of sampling.
        seconds: by stage: ``loading``, ``text_encoder``, each model, ``vae``, ``video`` and ``total``.
    """

    sample: SampleResult
    seconds: Mapping[str, float]


Event = LoadEvent | StepEvent | PreviewEvent | LatentsEvent | FramesEvent
RunEvent = Event | EncodeEvent | WarningEvent | SamplingEvent | FinishedEvent
