"""One run on the bundle: from a prompt to a video, with times and a trail of the latents on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import TEXT_ENCODER, VAE
from flowblending.contracts.program import Program
from flowblending.runtime.events import FinishedEvent, FramesEvent, LatentsEvent, SamplingEvent, WarningEvent
from flowblending.runtime.jobs import job_geometry
from flowblending.runtime.measures.networks import Frames
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import begins_from_video
from flowblending.runtime.program.cost import flops_of
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import StepEvent, Trajectory

Latents = npt.NDArray[np.float32]

TRAIL = 1 << 14
"""Numbers kept of the latents after every step. A cosine c of so many has a standard error below 0.008 (1 - c^2)."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What a run gave.

    Attributes:
        latents: the final ones, [1, C, F, H, W].
        trail: after every step `TRAIL` of their numbers, always the same ones, or all; [steps, N].
        frames: the video, uint8 [F, H, W, 3].
        seconds: ``text``, ``sampling``, of the latter ``engines``, and ``vae``; ``wall`` and ``processor`` are the
            loop's, with what is done aside, and tell how much of a processor this process got.
        flops: of the transformers' calls, 0 where they were not counted.
        computed: see `Figures`.
    """

    program: Program
    latents: Latents
    trail: Latents
    frames: Frames
    seconds: dict[str, float]
    flops: int
    computed: str


def sample(
    pipeline: Pipeline,
    job: Job,
    *,
    warn: Callable[[str], None],
    on_step: Callable[[int, int], None],
    out: Path | None = None,
) -> Sampled:
    """Make one run's video.

    Args:
        warn: told of a prompt that is cut.
        on_step: told how many steps are done, and of how many.
        out: where to write it; None writes nothing.

    Raises:
        FlowBlendingError: a model gave a non-finite velocity, an engine failed, or the video cannot be written.
    """
    # With nothing enqueued ahead, the trajectory's memory holds this step's latents while the step is told.
    run = VideoRun(pipeline, job, outputs=[] if out is None else [out], ahead=0)
    trail, images = _Trail(pipeline, run.program), []
    with contextlib.closing(run.events()) as events:
        for event in events:
            match event:
                case WarningEvent():
                    warn(event.message)
                case SamplingEvent():
                    trail.begin(event.trajectory)
                case StepEvent():
                    trail.add(event, on_step)
                case LatentsEvent():
                    trail.end()
                case FramesEvent():
                    images.append(event.images())
                case FinishedEvent():
                    finished = event
    result, seconds = finished.sample, finished.seconds
    return Sampled(
        program=run.program,
        latents=pipeline.device.download(result.latents),
        trail=trail.kept,
        frames=np.concatenate(images),
        seconds={
            "text": seconds[TEXT_ENCODER],
            "sampling": max(result.loop_seconds - trail.aside, result.engine_seconds),
            "engines": result.engine_seconds,
            "vae": seconds[VAE],
            "wall": trail.wall,
            "processor": trail.processor,
        },
        flops=flops_of(result.calls, run.program, pipeline.bundle.manifest),
        computed=trail.marks,
    )


class _Trail:
    """What is kept of every step while a run samples.

    Attributes:
        kept: see `Sampled.trail`.
        marks: see `Figures.computed`. What was called is counted, since a cache may decide while the program runs.
        aside: seconds that this took between the steps, which are not the sampling's.
        wall, processor: seconds of the loop, by both clocks.
    """

    def __init__(self, pipeline: Pipeline, program: Program) -> None:
        self._device = pipeline.device
        self._branches = len(program.branches())
        self._chosen = trail_indices(math.prod(program.latent_shape))
        self._told = 0
        self.kept = np.empty((len(program.steps), len(self._chosen)), np.float32)
        self.marks = ""
        self.aside = self.wall = self.processor = 0.0

    def begin(self, trajectory: Trajectory) -> None:
        """Start the clocks, once the text encoder has finished."""
        self._trajectory: Trajectory | None = trajectory
        self._device.close()  # waits
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def add(self, event: StepEvent, on_step: Callable[[int, int], None]) -> None:
        """Keep a step."""
        began = time.perf_counter()
        assert self._trajectory is not None
        self.marks += _mark(self._trajectory.calls - self._told, self._branches)
        self._told = self._trajectory.calls
        self.kept[event.index] = self._device.download(self._trajectory.latents).reshape(-1)[self._chosen]
        on_step(event.index + 1, event.steps)
        if event.index + 1 < event.steps:  # the device's clock, which goes on meanwhile, stops with the last step
            self.aside += time.perf_counter() - began

    def end(self) -> None:
        """Stop the clocks, and let go of the trajectory's memory."""
        self.wall, self.processor = time.perf_counter() - self._wall, time.process_time() - self._processor
        self._trajectory = None


def _mark(calls: int, branches: int) -> str:
    """See `Figures.computed`."""
    return "1" if calls == branches else "c" if calls else "0"


def trail_indices(size: int) -> npt.NDArray[np.int64]:
    """Which of ``size`` numbers are kept: all, or `TRAIL` of them drawn once and for all."""
    if size <= TRAIL:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, TRAIL, replace=False))


def warm_up(pipeline: Pipeline, job: Job, *, letters: Sequence[str], warn: Callable[[str], None]) -> None:
    """Open every engine and run it once, so that no run's time has that in it.

    Args:
        job: any; its prompt is used.
        letters: of the models that will run.
    """
    runs = [f"{letter}{1 if len(letters) > 1 else 2}" for letter in letters]
    manifest = pipeline.bundle.manifest
    whole = dataclasses.replace(job, size=job_geometry(job, manifest).size)
    if begins_from_video(job, manifest):
        whole = dataclasses.replace(whole, video=None, strength=None)
    brief = dataclasses.replace(whole, seed=0, steps=None, schedule=" ".join(runs), cache="off", guidance_rescale=None)
    sample(pipeline, brief, warn=warn, on_step=lambda _done, _of: None)
