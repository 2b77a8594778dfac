"""One job from prompt to file, with progress and a table of where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import LARGE, SMALL, TEXT_ENCODER, VAE
from flowblending.contracts.program import LATENTS, Program
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.jobs import Job, compile_job
from flowblending.runtime.media.latents import save_latents
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.tensor_file import write_tensors
from flowblending.runtime.media.video import check_output, open_writer
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.caches.parse import OFF
from flowblending.runtime.program.cost import Timings
from flowblending.runtime.sampler.loop import SampleResult
from flowblending.system.console import Console
from flowblending.system.output import check_file

_Item = TypeVar("_Item")

LOADING = "loading"
VIDEO = "video"


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage, added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def leaving(self, stage: str, manager: AbstractContextManager[object]) -> Iterator[None]:
        """Enter a context, and add the time that leaving it takes to a stage."""
        left = 0.0
        with manager:
            yield
            left = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - left

    def timed(self, stage: str, items: Iterator[_Item]) -> Iterator[_Item]:
        """The items, while the time that each takes to come is added to a stage."""
        while True:
            with self.measure(stage):
                item = next(items, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished job: its program, the final latents [1, C, F, H, W], and seconds by stage."""

    program: Program
    sample: SampleResult
    latents: npt.NDArray[np.float32]
    seconds: dict[str, float]


def generate(
    pipeline: Pipeline,
    job: Job,
    out: Path | None,
    console: Console,
    *,
    latents: npt.NDArray[np.generic] | None = None,
    latents_out: Path | None = None,
) -> Outcome:
    """Make one video.

    Args:
        out: where to write it (.mp4, .npy, or a folder of PNG files); None writes no video.
        latents: initial latents in place of the seed's noise, float32 [1, C, F, H, W].
        latents_out: where to write the final latents (.npy), float32 [1, C, F, H, W].

    Raises:
        FlowBlendingError: a job that makes no program, latents that do not fit, non-finite velocities,
            or a file that cannot be written. What was at ``out`` before stays as it was.
    """
    clock = Clock()
    start = time.perf_counter()
    program = compile_job(job, pipeline.bundle.manifest)
    rate = pipeline.frame_rate(job)
    generator = TorchNormal(job.seed)
    initial = _initial(pipeline, program, generator, latents)
    geometry = geometry_of(pipeline.bundle.manifest.pipeline, program.latent_shape)
    if out is not None:
        check_output(out, width=geometry.width, height=geometry.height)
    if latents_out is not None:
        check_file(latents_out)
    with clock.measure(LOADING), console.phase("loading engines") as report:
        for name in _needed(pipeline, program):
            report(name)
            pipeline.engine(name)
    with clock.measure(TEXT_ENCODER), console.phase("encoding the prompt"):
        conditions = pipeline.encode(job, program, console.warn)
    with console.steps(len(program.steps)) as advance:
        sample = pipeline.sample(
            program, initial, conditions, lambda step: advance(step.index + 1, step.model, step.seconds)
        )
    final = pipeline.device.download(sample.latents)
    if latents_out is not None:
        save_latents(latents_out, final)
    if out is not None:
        metadata = video_metadata(pipeline, job, program, None if latents is None else initial)
        with clock.measure(VIDEO):
            writer = open_writer(out, width=geometry.width, height=geometry.height, frame_rate=rate, metadata=metadata)
        with console.progress("decoding", total=geometry.frames) as advance, clock.leaving(VIDEO, writer):
            for frames in clock.timed(VAE, pipeline.decode(sample.latents, generator)):
                with clock.measure(VIDEO):
                    writer.write(frames)
                advance(frames.shape[1])
    clock.seconds |= sample.model_seconds
    clock.seconds["total"] = time.perf_counter() - start
    _remember(pipeline, program, sample, clock.seconds)
    return Outcome(program=program, sample=sample, latents=final, seconds=clock.seconds)


def write_inputs(
    pipeline: Pipeline,
    job: Job,
    out: Path,
    console: Console,
    *,
    latents: npt.NDArray[np.generic] | None = None,
) -> None:
    """Write what a job's sampling starts from, for an interpreter that has no text encoder.

    Args:
        out: a safetensors file with ``latents`` float32 [1, C, F, H, W] and ``BRANCH.INPUT`` (``cond.text``) for
            every condition of every branch.
        latents: initial latents in place of the seed's noise, float32 [1, C, F, H, W].

    Raises:
        FlowBlendingError: a job that makes no program, latents that do not fit, or a file that cannot be written.
    """
    check_file(out)
    program = compile_job(job, pipeline.bundle.manifest)
    initial = _initial(pipeline, program, TorchNormal(job.seed), latents)
    with console.phase("encoding the prompt"):
        conditions = pipeline.encode(job, program, console.warn)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        f"{branch}.{name}": pipeline.device.download(tensor)
        for branch, inputs in conditions.items()
        for name, tensor in inputs.items()
    }
    write_tensors(out, {LATENTS: initial, **arrays})


def _initial(
    pipeline: Pipeline, program: Program, generator: TorchNormal, given: npt.NDArray[np.generic] | None
) -> npt.NDArray[np.float32]:
    if given is None:
        return generator.normal((1, *program.latent_shape))
    return pipeline.check_latents(given, program.latent_shape)


def _needed(pipeline: Pipeline, program: Program) -> list[str]:
    models = {step.model for step in program.steps}
    return [name for name in pipeline.bundle.manifest.components if name not in (LARGE, SMALL) or name in models]


def video_metadata(
    pipeline: Pipeline, job: Job, program: Program, given: npt.NDArray[np.float32] | None = None
) -> dict[str, str]:
    """What the video file says about how it was made; initial latents that were given are known by their digest."""
    noise = {"seed": str(job.seed)} if given is None else {"latents_sha256": sha256(given.tobytes()).hexdigest()}
    return {
        "prompt": job.prompt,
        **noise,
        "schedule": program.schedule,
        "solver": program.solver,
        "guidance": f"{program.guidance:g}",
        "bundle": pipeline.bundle.manifest.id,
        **({} if job.cache == OFF else {"cache": job.cache}),
    }


def _remember(pipeline: Pipeline, program: Program, sample: SampleResult, seconds: dict[str, float]) -> None:
    measured = {name: seconds[name] for name in (TEXT_ENCODER, VAE) if name in seconds}
    measured |= {model: sample.model_seconds[model] / calls for model, calls in sample.calls.items()}
    Timings(pipeline.bundle.manifest.id, pipeline.device.kind, program.latent_shape).write(measured)


def show_times(outcome: Outcome, console: Console) -> None:
    """The table at the end of a run: measured seconds per stage."""
    seconds, total = outcome.seconds, outcome.seconds["total"]
    calls = outcome.sample.calls
    labels = {LOADING: "engine loading", TEXT_ENCODER: "text encoder"}
    labels |= {model: f"{model} x {calls[model]}" for model in (LARGE, SMALL) if model in calls}
    labels |= {VAE: "VAE decoder", VIDEO: "video file", "total": "total"}
    rows = [
        (label, f"{seconds[stage]:.3f} s", f"{seconds[stage] / total:.0%}")
        for stage, label in labels.items()
        if stage in seconds
    ]
    console.table(f"schedule {outcome.program.schedule}", ("stage", "time", "share"), rows)
