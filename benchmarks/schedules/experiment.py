"""The pair's bundle, and every prompt's clip with every job: what the measuring commands have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.schedules.measures import Features, Measured, measure
from benchmarks.schedules.report import Row, rows
from benchmarks.schedules.run import FEATURES, FRAMES, SIZE, Prompt, make
from benchmarks.schedules.samples import REFERENCE
from flowblending.contracts.conditions import Source
from flowblending.contracts.program import Program
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.runtime import api
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.system.console import Console

SHOWN = 4
"""Prompts in the picture, evenly spaced; the last one is held out."""


@contextlib.contextmanager
def pair_bundle(
    given: Path | None,
    checkpoints: Path,
    console: Console,
    *,
    models: Path | None = None,
    conditions: tuple[Source, ...] = (),
    teacache: bool = False,
) -> Iterator[Path]:
    """The bundle that is given, or one that is built for this run and gone after it.

    Args:
        given: a bundle.
        checkpoints: of the trained pair.
        console: of the build.
        models: folder with ``large`` and ``small``, if the transformers are others.
        conditions: what it takes beside text.
        teacache: whether TeaCache's graphs are built.
    """
    if given:
        yield given
        return
    base = None if models is None else str(checkpoints / "large")
    models = models or checkpoints
    with tempfile.TemporaryDirectory() as folder:
        request = BuildRequest(
            models=named_models(str(models / "large"), str(models / "small")),
            base=base,
            out=Path(folder) / "bundle",
            size=SIZE,
            frames=FRAMES,
            precision=None,
            backend="onnxruntime",
            targets=(),
            conditions=conditions,
            teacache=teacache,
        )
        build_bundle(request, console)
        yield request.out


def make_clips(
    sampler: api.VideoSampler,
    wanted: Sequence[Prompt],
    options: Mapping[str, Job],
    *,
    checkpoints: Path,
    seed: int,
    console: Console,
) -> Measured:
    """Make and measure every prompt's clip with every job.

    Args:
        sampler: of the pair's bundle.
        wanted: at least two prompts.
        options: jobs, the reference among them; prompt and seed are put in.
        checkpoints: with the feature network.
        seed: of the drawn clips for the Fréchet distance.
        console: shows the progress.
    """
    features = Features(checkpoints / FEATURES)
    # Engines are opened, and run for the first time, before any clock is read.
    for job in options.values():
        make(sampler.pipeline, job)
    with console.progress("clips", total=len(wanted) * len(options)) as advance:
        return measure(
            functools.partial(make, sampler.pipeline),
            wanted,
            options,
            geometry=sampler.manifest.geometry,
            features=features,
            shown=shown(len(wanted)),
            seed=seed,
            advance=advance,
        )


def measure_jobs(
    sampler: api.VideoSampler,
    wanted: Sequence[Prompt],
    options: Mapping[str, Job],
    *,
    checkpoints: Path,
    settings: Settings,
    console: Console,
) -> tuple[Measured, list[Row], dict[str, Any]]:
    """Everything of a run: the measurements, a row for every job, and what the run was; see `make_clips`."""
    programs = {name: compile_job(job, sampler.manifest) for name, job in options.items()}
    details = run_details(sampler, programs[REFERENCE], settings)
    measured = make_clips(sampler, wanted, options, checkpoints=checkpoints, seed=settings.seed, console=console)
    held_out = np.asarray([prompt.held_out for prompt in wanted])
    every = rows(measured, held_out, runs={name: program.schedule for name, program in programs.items()})
    return measured, every, details


def shown(count: int) -> list[int]:
    """Which of ``count`` prompts are in the picture: evenly spaced, the first and the last (held out) among them."""
    return sorted(set(np.linspace(0, count - 1, SHOWN).round().astype(int).tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run was asked for.

    Args:
        prompts: how many.
        seed: of the prompts and of the noise.
        threads: of the CPU.
        frame_rate: that the models are told.
    """

    prompts: int
    seed: int
    threads: int
    frame_rate: float


def run_details(sampler: api.VideoSampler, program: Program, settings: Settings) -> dict[str, Any]:
    """What the run was, beside its figures; ``program`` is that of any of its jobs."""
    geometry = sampler.manifest.geometry
    return {
        "machine": {
            "processor": platform.machine(),
            "threads": settings.threads,
            "device": sampler.pipeline.device.kind,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnxruntime", "numpy")},
        "geometry": {"size": f"{geometry.width}x{geometry.height}", "frames": geometry.frames},
        "bundle": sampler.manifest.id,
        "prompts": settings.prompts,
        "steps": len(program.steps),
        "solver": program.solver,
        "guidance": program.guidance,
        "frame_rate": settings.frame_rate,
        "seed": settings.seed,
    }
