"""One run on the bundle: from a prompt to latents, with times and a trail of the latents on the variant."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending.contracts.program import Program
from flowblending.runtime.generate import video_metadata
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.cost import flops_of

Latents = npt.NDArray[np.float32]

TRAIL = 1 << 14
"""Numbers kept of the latents after every step. A cosine c of so many has a standard error below 0.008 (1 - c^2)."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What sampling gave.

    Attributes:
        latents: the final ones, [1, C, F, H, W].
        trail: after every step `TRAIL` of their numbers, always the same ones, or all; [steps, N].
        seconds: ``text``, ``sampling`` and, of the latter, ``engines``; ``wall`` and ``processor`` are the loop's, with
            what is done aside, and tell how much of a processor this process got.
        flops: of the transformers' calls, 0 where they were not counted.
        computed: see `Figures`.
        metadata: for the video file.
    """

    program: Program
    latents: Latents
    trail: Latents
    seconds: dict[str, float]
    flops: int
    computed: str
    metadata: dict[str, str]


def sample(
    pipeline: Pipeline, job: Job, *, warn: Callable[[str], None], on_step: Callable[[int, int], None]
) -> Sampled:
    """Make one run's latents.

    Args:
        warn: told of a prompt that is cut.
        on_step: told how many steps are done, and of how many.

    Raises:
        FlowBlendingError: a model gave a non-finite velocity, or an engine failed.
    """
    program = compile_job(job, pipeline.bundle.manifest)
    start = time.perf_counter()
    conditions = pipeline.encode(job, program, warn)
    pipeline.device.close()  # waits, so that the encoder's time is not the sampling's
    text = time.perf_counter() - start
    trajectory = pipeline.prepare(program, conditions)
    noise = TorchNormal(job.seed).normal((1, *program.latent_shape))
    chosen = trail_indices(noise.size)
    trail = np.empty((len(program.steps), len(chosen)), np.float32)
    # What was called is counted, since a cache may decide while the program runs.
    branches, told, marks = len(program.branches()), 0, ""
    aside = 0.0
    wall, processor = time.perf_counter(), time.process_time()
    # With nothing enqueued ahead, the trajectory's memory holds this step's latents while the step is told.
    with contextlib.closing(trajectory.follow(noise, ahead=0)) as events:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                result = end.value
                break
            began = time.perf_counter()
            marks += _mark(trajectory.calls - told, branches)
            told = trajectory.calls
            trail[event.index] = pipeline.device.download(trajectory.latents).reshape(-1)[chosen]
            on_step(event.index + 1, event.steps)
            if event.index + 1 < event.steps:  # the device's clock, which goes on meanwhile, stops with the last step
                aside += time.perf_counter() - began
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Sampled(
        program=program,
        latents=pipeline.device.download(result.latents),
        trail=trail,
        seconds={
            "text": text,
            "sampling": max(result.loop_seconds - aside, result.engine_seconds),
            "engines": result.engine_seconds,
            "wall": wall,
            "processor": processor,
        },
        flops=flops_of(result.calls, program, pipeline.bundle.manifest),
        computed=marks,
        metadata=video_metadata(pipeline, job, program),
    )


def _mark(calls: int, branches: int) -> str:
    """See `Figures.computed`."""
    return "1" if calls == branches else "c" if calls else "0"


def trail_indices(size: int) -> npt.NDArray[np.int64]:
    """Which of ``size`` numbers are kept: all, or `TRAIL` of them drawn once and for all."""
    if size <= TRAIL:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, TRAIL, replace=False))


def warm_up(pipeline: Pipeline, job: Job, *, both: bool, warn: Callable[[str], None]) -> None:
    """Open every engine and run it once, so that no run's time has that in it.

    Args:
        job: any; its prompt is used.
        both: whether the small model will run too.
    """
    brief = dataclasses.replace(job, seed=0, steps=2, schedule="L1 S1" if both else "L2", cache="off")
    made = sample(pipeline, brief, warn=warn, on_step=lambda _done, _of: None)
    generator = TorchNormal(brief.seed)
    generator.normal(made.latents.shape)
    for _ in pipeline.decode(pipeline.device.upload(made.latents), generator):
        pass
