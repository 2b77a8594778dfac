"""Sampling that shows, at chosen steps, what it is about to make."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt

from flowblending.contracts.program import Program
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.events import PreviewEvent
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.sampler.denoised import DenoisedFrames
from flowblending.runtime.sampler.loop import SampleResult, StepEvent, Trajectory

Wanted = Callable[[int], bool]
"""Asked before every step by its number, from 0 on: whether a picture of what it makes is wanted."""


def sampled(
    pipeline: Pipeline,
    program: Program,
    trajectory: Trajectory,
    latents: npt.NDArray[np.float32] | Tensor,
    *,
    ahead: int,
    wanted: Wanted | None,
    extra: int = 0,
) -> Generator[StepEvent | PreviewEvent, None, SampleResult]:
    """`Trajectory.follow`, and a `PreviewEvent` when a picture that was wanted has arrived.

    Args:
        wanted: None makes none, and neither does a bundle without a map.
        extra: latent frames before the video's own.

    Raises:
        FlowBlendingError: as `Trajectory.follow`, or the map cannot be read.
    """
    pictures = None if wanted is None else pipeline.preview_map()
    if wanted is None or pictures is None:
        result = yield from trajectory.follow(latents, ahead=ahead)
        return result
    middle = extra + (trajectory.latents.shape[2] - extra) // 2
    sigmas = [step.sigma for step in program.steps]
    frames = DenoisedFrames(pipeline.device, trajectory.latents, sigmas, middle, wanted)
    with contextlib.closing(trajectory.follow(latents, ahead=ahead, observer=frames)) as steps:
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                sample: SampleResult = end.value
                return sample
            yield event
            if (taken := frames.take()) is not None:
                yield PreviewEvent(index=taken[0], picture=pictures.picture(taken[1]))
