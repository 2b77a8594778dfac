"""The prompts of a calibration: noise of its own for each, everything else the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.bundle.geometry import geometry_of
from flowblending.runtime.jobs import Job, PromptLine, compile_job, parse_jobs, plain_jobs, read_prompt_file

LEAST_STEPS = 3
"""One for each stage."""


def read_prompts(path: Path, defaults: Job) -> list[PromptLine]:
    """The lines of a prompt file, each with noise of its own: line N without a seed takes the default and N - 1 more.

    With one noise for all, the results would differ by their prompts alone, and distances between sets say little.

    Raises:
        FlowBlendingError: the file cannot be read, or holds no prompt at all.
    """
    text = read_prompt_file(path)
    lines = parse_jobs(text, path, defaults)
    # A line without a seed of its own is one that follows the default.
    others = parse_jobs(text, path, dataclasses.replace(defaults, seed=defaults.seed + 1))
    return [
        line
        if line.job is None or line == other
        else dataclasses.replace(line, job=dataclasses.replace(line.job, seed=defaults.seed + line.number - 1))
        for line, other in zip(lines, others, strict=True)
    ]


def check_jobs(lines: Sequence[PromptLine], path: Path, manifest: Manifest) -> list[Job]:
    """The jobs of a prompt file, which must share all but prompt and seed, so that steps can be compared.

    Raises:
        UsageError: a line is no job, or differs from the first in its size, steps, solver or guidance; or a model of
            the bundle was distilled to steps of its own, at which the other one cannot be compared with it.
    """
    for name, component in manifest.components.items():
        if component.sampling is not None:
            raise UsageError(
                f"The bundle's {name} model has timesteps or a guidance scale of its own, but fb-calibrate compares "
                "two models at the same steps; choose the stages with fb-run --schedule."
            )
    jobs = plain_jobs(lines, path, "which fb-calibrate is to find out")
    first = None
    for line, job in zip(lines, jobs, strict=True):
        program = compile_job(dataclasses.replace(job, schedule="LLL", cache="off"), manifest)
        video = geometry_of(manifest.pipeline, program.latent_shape)
        found = f"{len(program.steps)} steps of {program.solver} with guidance {program.guidance:g} for {video}"
        first = first or found
        if found != first:
            raise UsageError(
                f"Line {line.number} of {path} asks for {found}, but the first line for {first}; calibrate one at a "
                "time."
            )
        if len(program.steps) < LEAST_STEPS:
            raise UsageError(
                f"{len(program.steps)} steps were asked for, but a schedule of three stages needs at least "
                f"{LEAST_STEPS}; give --steps a higher number."
            )
    return jobs
