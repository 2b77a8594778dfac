"""Whether a calibration fits into the device's memory, found out before the work."""

from __future__ import annotations

import dataclasses

from flowblending import OutOfMemoryError
from flowblending.contracts.conditions import is_shown
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.memory.choose import gigabytes
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import plan_resident
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline


def check_memory(pipeline: Pipeline, job: Job, *, decodes: bool) -> None:
    """Refuse a calibration whose engines, which all stay open, are too much.

    Args:
        job: one of those that it measures.
        decodes: whether it looks at frames.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    manifest = pipeline.bundle.manifest
    letters = "".join(model.letter for model in manifest.models)
    programs = [compile_job(dataclasses.replace(job, schedule=letter, cache="off"), manifest) for letter in letters]
    # A trajectory has the steps of every model, one after the other.
    joined = dataclasses.replace(programs[0], steps=tuple(step for each in programs for step in each.steps))
    frames = bool(job.image) or job.video is not None or is_shown(manifest.pipeline.conditions)
    run = run_memory(
        manifest,
        joined,
        texts=len(joined.branches()),
        decode=decodes,
        tiling=manifest.vae_tiling,
        frames=frames,
    )
    plan, free = plan_resident(run), pipeline.engines.free(run)
    if free is not None and plan.needs > free:
        raise OutOfMemoryError(
            f"This calibration keeps every engine open, which takes {gigabytes(plan.needs)} of the GPU, and "
            f"{gigabytes(free)} are free; stop other programs on the GPU, measure a smaller --size, or calibrate on "
            "another machine: what is found holds for the bundle."
        )
