"""Where a run differs from how the authors of its large model sample, in a line with the options to type."""

from __future__ import annotations

from flowblending.contracts.graph import PipelineSpec
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.shifts import static_shift


def authors_line(pipeline: PipelineSpec, job: Job) -> str | None:
    """A sentence about what a job leaves to the bundle, where the bundle's authors would take something else.

    None for a model that is not known, where nothing differs, and where the job says all that does.
    """
    authors = pipeline.authors
    if authors is None:
        return None
    shift, scales = static_shift(pipeline.grid), " and ".join(f"{scale:g}" for scale in authors.guidance)
    differing: dict[str, tuple[str, str]] = {}
    if job.shift is None and shift is not None and shift != authors.shift:
        differing[f"a shift of {authors.shift:g}"] = f"{shift:g}", f"--shift {authors.shift:g}"
    if not _says_steps(job) and pipeline.steps != authors.steps:
        differing[f"{authors.steps} steps"] = str(pipeline.steps), f"--steps {authors.steps}"
    if job.guidance is None and authors.guidance != (pipeline.guidance,):
        # Two scales belong to two experts.
        both = zip(("--guidance", "--guidance-2"), authors.guidance, strict=False)
        option = " ".join(f"{name} {scale:g}" for name, scale in both)
        differing[f"guidance {scales}"] = f"{pipeline.guidance:g}", option
    if not differing:
        return None
    theirs = ", ".join(f"{what} in place of {ours}" for what, (ours, _) in differing.items())
    options = " ".join(option for _, option in differing.values() if option)
    advice = f"; for that give {options}" if options else ""
    return f"{authors.model} is sampled by its authors with {theirs} ({authors.source}){advice}."


def _says_steps(job: Job) -> bool:
    """Whether the job, or its schedule, says how many steps it has."""
    named = job.schedule.strip().lower() == AUTO
    return job.steps is not None or (not named and StageSchedule.own_steps(job.schedule) is not None)
