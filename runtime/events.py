"""What the Python API tells of a video in the making, and the embeddings that it takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending.runtime.devices.arrays import Array
from flowblending.runtime.devices.foreign import ForeignArray
from flowblending.runtime.media.decode import Frames
from flowblending.runtime.media.video import to_uint8
from flowblending.runtime.sampler.loop import StepEvent


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
        frames: float32 [3, f, height, width]; black is -1 and white is 1, and values may lie a little beyond.
    """

    first: int
    frames: Frames

    def images(self) -> npt.NDArray[np.uint8]:
        """The frames as uint8 [f, height, width, 3]."""
        return to_uint8(self.frames)


Event = LoadEvent | StepEvent | LatentsEvent | FramesEvent
