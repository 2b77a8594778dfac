"""What to generate: one prompt's options, and files of many prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import CalibratedSchedule, Geometry, Manifest
from flowblending.contracts.program import Program
from flowblending.engine.bundle.video_choice import choose_geometry
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import AUTO, StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make. None means the default of the bundle's family.

    Attributes:
        seed: of the initial noise, which is the one diffusers draws for the same seed on the CPU.
        size: such as ``832x480``, and
        frames: of the video: one that the bundle was built for.
        steps: of the run; stages with timesteps of their own stand in for as many as they say.
        schedule: ``auto`` (what the bundle was calibrated to, or LSL), ``LSL``, ``L20 S20 L10``, or with guidance and
            timesteps of a stage's own, ``L20 S20:g1:t909.4,725 L10``.
        guidance: scale of classifier-free guidance; 1 or less turns it off.
        batched_guidance: both guidance branches in one call of the engine.
        solver: ``unipc``, ``dpm++`` or ``euler``.
        frame_rate: of the video, in frames per second.
        cache: which engine calls to leave out, such as ``taylor:1``; see `flowblending.runtime.program.caches`.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    size: str | None = None
    frames: int | None = None
    steps: int | None = None
    schedule: str = AUTO
    guidance: float | None = None
    batched_guidance: bool | None = None
    solver: str | None = None
    frame_rate: float | None = None
    cache: str = "off"

    def file_stem(self, edition: str) -> str:
        """A readable file name for the job's video on a bundle: the same for the same video, else another.

        Args:
            edition: of the bundle's manifest.
        """
        words = re.sub(r"[^\w]+", "-", self.prompt.lower()).strip("-")[:40].strip("-")
        content = json.dumps([edition, dataclasses.asdict(self)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return "-".join(filter(None, (words, digest)))


def calibrated_schedule(job: Job, manifest: Manifest) -> CalibratedSchedule | None:
    """The schedule that ``fb-calibrate`` found for the bundle, if the job leaves the choice to it."""
    calibration = manifest.calibration
    return None if calibration is None or not _is_auto(job) else calibration.schedule


def _is_auto(job: Job) -> bool:
    return job.schedule.strip().lower() == AUTO


def job_geometry(job: Job, manifest: Manifest) -> Geometry:
    """The geometry of a job's video on a bundle.

    Raises:
        UsageError: the bundle was built for no such video; the message names the nearest that it makes.
    """
    return choose_geometry(manifest, job.size, job.frames)


def compile_job(job: Job, manifest: Manifest) -> Program:
    """The sampling program of a job on a bundle; runs nothing.

    Raises:
        UsageError: size, frames, steps, schedule, solver, guidance or cache that make no program.
    """
    pipeline = manifest.pipeline
    steps = pipeline.steps if job.steps is None else job.steps
    if steps > pipeline.grid.train_timesteps:
        raise UsageError(
            f"{steps} steps were asked for, but the models tell {pipeline.grid.train_timesteps} noise levels apart; "
            "give no more steps than that."
        )
    solver = job.solver or pipeline.solver
    geometry = job_geometry(job, manifest)
    latent_shape = geometry.latent_shape
    calibrated = calibrated_schedule(job, manifest)
    if calibrated is not None:
        schedule = StageSchedule.scaled(calibrated.runs, steps)
    else:
        text = "LSL" if _is_auto(job) else job.schedule
        schedule = StageSchedule.parse(text, steps, pipeline.early, pipeline.late)
    return compile_program(
        schedule=schedule,
        solver=solver,
        grid=sigma_grid(pipeline.grid, solver, steps, pipeline.tokens(latent_shape), str(geometry)),
        latent_shape=latent_shape,
        guidance=pipeline.guidance if job.guidance is None else job.guidance,
        batched=pipeline.batched_guidance if job.batched_guidance is None else job.batched_guidance,
        cache=parse_cache(job.cache),
        architectures={name: component.architecture for name, component in manifest.components.items()},
        constants=None if manifest.calibration is None else manifest.calibration.caches,
        model_sampling={name: each.sampling for name, each in manifest.components.items() if each.sampling is not None},
    )


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A line of a prompt file: its number, and the job, or why there is none."""

    number: int
    job: Job | None = None
    error: str | None = None


def read_jobs(path: Path, defaults: Job) -> list[PromptLine]:
    """The jobs of a prompt file; see `read_prompt_file` and `parse_jobs`."""
    return parse_jobs(read_prompt_file(path), path, defaults)


def read_prompt_file(path: Path) -> str:
    """The text of a prompt file, which may be a pipe and is read once.

    Raises:
        FlowBlendingError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FlowBlendingError(f"Cannot read the prompt file {path} ({error.strerror}); give another file.") from None
    except UnicodeDecodeError as error:
        raise FlowBlendingError(f"Cannot read the prompt file {path} ({error}); give a UTF-8 text file.") from None


def parse_jobs(text: str, path: Path, defaults: Job) -> list[PromptLine]:
    """The jobs of a prompt file's text: one prompt a line, or one JSON object a line with a job's fields.

    A line that is no job is returned with its error, so that the others still run. Empty lines and
    lines that start with ``#`` are left out.

    Raises:
        UsageError: it holds no prompt at all.
    """
    lines = list(_lines(text, defaults))
    if not lines:
        raise UsageError(f"The prompt file {path} holds no prompt; write one prompt a line.")
    return lines


def plain_jobs(lines: Sequence[PromptLine], path: Path, reason: str) -> list[Job]:
    """The jobs of all lines, where schedule and cache are not a line's to say.

    Args:
        lines: of a prompt file.
        path: of it, for the errors.
        reason: why not, as the end of a sentence; ``{}`` stands for the field.

    Raises:
        UsageError: a line is no job, or says either.
    """
    jobs, plain = [], Job(prompt="")
    for line in lines:
        if line.job is None:
            raise UsageError(f"Line {line.number} of {path}: {line.error}")
        for name in ("schedule", "cache"):
            if getattr(line.job, name) != getattr(plain, name):
                raise UsageError(
                    f"Line {line.number} of {path} sets its {name}, {reason.format(name)}; leave it out there."
                )
        jobs.append(line.job)
    return jobs


def _lines(text: str, defaults: Job) -> Iterator[PromptLine]:
    # Not splitlines: a JSON string may hold Unicode's own line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        try:
            fields = _parse(content) if content.startswith("{") else {"prompt": content}
            yield PromptLine(number=number, job=dataclasses.replace(defaults, **fields))
        except UsageError as error:
            yield PromptLine(number=number, error=str(error))


def _parse(text: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The line is no JSON object ({error}); write one object or one prompt a line.") from None
    types = get_type_hints(Job)
    for name, value in fields.items():
        if name not in types:
            raise UsageError(f"Unknown option {name!r}; known are {', '.join(types)}.")
        wanted = types[name]
        accepted = int | float | None if wanted == float | None else wanted
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted != bool | None):
            raise UsageError(f"Option {name} is {value!r}, but {_words(wanted)} was expected.")
    if not fields.get("prompt"):
        raise UsageError('The line has no prompt; write {"prompt": "..."}.')
    return fields


def _words(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)).replace(" | None", "").replace("None | ", "")
