"""The prompts of a calibration: noise of its own for each, everything else the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.jobs import compile_job, job_levels
from flowblending.runtime.options import MOST_SEED, Job
from flowblending.runtime.planned_job import begins_from_video, check_prompt
from flowblending.runtime.program.shifts import describe_shift
from flowblending.runtime.prompt_file import PromptLine, plain_jobs, read_jobs

LEAST_STEPS = 3
"""One for each stage."""


def read_prompts(path: Path, defaults: Job, tell: Callable[[str], None] | None = None) -> list[PromptLine]:
    """The lines of a prompt file, each with noise of its own: line N without a seed takes the default and N - 1 more.

    With one noise for all, the results would differ by their prompts alone, and distances between sets say little.

    Args:
        path: of the file.
        defaults: of the fields that a line does not set.
        tell: see `prompt_file.parse_jobs`.

    Raises:
        FlowBlendingError: the file cannot be read, or holds no prompt at all.
    """
    return [
        line
        if line.job is None or "seed" in line.given
        else dataclasses.replace(line, job=dataclasses.replace(line.job, seed=_seed(defaults.seed, line.number)))
        for line in read_jobs(path, defaults, tell)
    ]


def _seed(first: int, number: int) -> int:
    """Of a line; after the largest seed comes 0."""
    return (first + number - 1) % (MOST_SEED + 1)


def check_jobs(lines: Sequence[PromptLine], path: Path, manifest: Manifest) -> list[Job]:
    """The jobs of a prompt file, which must share all but prompt, seed, images and control, so that steps compare.

    Raises:
        UsageError: a line is no job, lacks an image that the bundle needs, or differs from the first in its size,
            steps, solver, shift or guidance; or a model of the bundle was distilled to steps of its own, at which the
            other one cannot be compared with it.
    """
    for model in manifest.models[:2]:
        if model.sampling is not None:
            raise UsageError(
                f"The bundle's {model.name} model has timesteps or a guidance scale of its own, but fb-calibrate "
                "compares two models at the same steps; choose the stages with fb-run --schedule."
            )
    jobs = plain_jobs(lines, path, "which fb-calibrate is to find out")
    first = None
    for line, job in zip(lines, jobs, strict=True):
        if begins_from_video(job, manifest):
            raise UsageError(
                f"Line {line.number} of {path} begins from a video, but fb-calibrate measures whole runs; leave its "
                "video and its strength out."
            )
        try:
            found, steps = _measured_at(job, manifest)
        except UsageError as error:
            raise UsageError(f"Line {line.number} of {path}: {error}") from None
        first = first or found
        if found != first:
            raise UsageError(
                f"Line {line.number} of {path} asks for {found}, but the first line for {first}; calibrate one at a "
                "time."
            )
        if steps < LEAST_STEPS:
            raise UsageError(
                f"{steps} steps were asked for, but a schedule of three stages needs at least {LEAST_STEPS}; give "
                "--steps a higher number."
            )
    return jobs


def _measured_at(job: Job, manifest: Manifest) -> tuple[str, int]:
    """What the jobs of a calibration must share, in words, and the number of their steps.

    Raises:
        UsageError: the job makes no program, or lacks an image without which the bundle makes no video.
        FlowBlendingError: a file that it names cannot be read.
    """
    alone = dataclasses.replace(job, schedule=manifest.models[0].letter, cache="off")
    check_prompt(alone, manifest)
    program = compile_job(alone, manifest)
    video = geometry_of(manifest.pipeline, program.latent_shape)
    scale = f"{program.guidance:g}"
    if program.guidance_rescale:
        scale += f" rescaled by {program.guidance_rescale:g}"
    shift = describe_shift(job_levels(job, manifest.pipeline), manifest.pipeline.tokens(program.latent_shape))
    steps = len(program.steps)
    return f"{steps} steps of {program.solver} with {shift} and guidance {scale} for {video}", steps
