"""What is compared: every schedule with every step cache, on every prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.models import default_schedule
from flowblending.runtime.given_files import given_digests
from flowblending.runtime.jobs import calibrated_schedule, job_geometry, job_steps
from flowblending.runtime.options import AUTO, Job
from flowblending.runtime.planned_job import check_prompt
from flowblending.runtime.program.caches.parse import OFF
from flowblending.runtime.prompt_file import PromptLine, plain_jobs

_STAGES = 3
"""Of a named schedule whose boundaries the model family gives."""


def reference_schedule(manifest: Manifest) -> str:
    """The schedule that all others are measured against, without a cache; it is always among the runs: ``LLL``."""
    return manifest.models[0].letter * _STAGES


def usual_schedules(manifest: Manifest) -> str:
    """What is compared unless told otherwise: fb-run's own, and each model alone: ``LLL,LSL,SSS``."""
    first, *others = (model.letter * _STAGES for model in manifest.models)
    return ",".join([first, *([default_schedule(manifest.models)] if others else []), *others])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a video.

    Attributes:
        schedule: ``auto``, ``LSL`` or ``L20 S20 L10``; all but the first in upper case.
        cache: as ``--cache`` takes it.
    """

    schedule: str
    cache: str = OFF

    @property
    def label(self) -> str:
        """``LSL`` or ``LSL + scm:slow``."""
        return self.schedule if self.cache == OFF else f"{self.schedule} + {self.cache}"

    def job(self, prompt: Job) -> Job:
        """The job of a prompt, made this way."""
        return dataclasses.replace(prompt, schedule=self.schedule, cache=self.cache)


_BETWEEN = r",(?!\s*[0-9.])"
"""A comma before a digit is part of what stands before it."""


def parse_variants(schedules: str, caches: str, reference: str) -> list[Variant]:
    """Read ``--schedules`` and ``--caches``; the reference comes first, and nothing comes twice.

    Args:
        schedules: separated by commas, ``LLL,auto,L20 S20 L10``; a comma before a digit belongs to a stage's timesteps,
            ``LLL,L4 S4:t600,400 L2``.
        reference: see `reference_schedule`.
        caches: likewise, with a cache's arguments, ``off,magcache:0.12,4,taylor:1``.

    Raises:
        UsageError: one of them is empty. What is no schedule or no cache is found when it is compiled.
    """
    names = [_schedule(name) for name in re.split(_BETWEEN, schedules)]
    policies = ["".join(policy.lower().split()) for policy in re.split(_BETWEEN, caches)]
    for option, words, example in (("--schedules", names, "LLL,LSL,SSS"), ("--caches", policies, "off,scm:slow")):
        if not all(words):
            raise UsageError(f"{option} has nothing where a name was expected; give {option} {example}, for example.")
    variants = [Variant(schedule=schedule, cache=cache) for schedule, cache in itertools.product(names, policies)]
    return list(dict.fromkeys([Variant(schedule=reference), *variants]))


def _schedule(text: str) -> str:
    """With stages in capitals and their options as they are written."""
    words = text.split()
    if words == [AUTO]:
        return AUTO
    found = " ".join(stage.upper() + colon + options for stage, colon, options in (w.partition(":") for w in words))
    return AUTO if found == AUTO.upper() else found


def prompts_of(lines: Sequence[PromptLine], path: Path) -> list[Job]:
    """The prompts of a file, each once.

    Raises:
        UsageError: a line is no prompt, or sets what ``--schedules`` and ``--caches`` set.
    """
    return list(dict.fromkeys(plain_jobs(lines, path, "which --{}s gives to all prompts alike")))


def check_jobs(jobs: Sequence[Job], variants: Sequence[Variant], manifest: Manifest) -> None:
    """Compile everything before anything runs, with the images and clips that are given.

    Raises:
        UsageError: a prompt's options, a schedule or a cache make no program on this bundle, a prompt lacks an image
            without which there is no video, or the prompts ask for videos of different sizes.
        FlowBlendingError: a file that a prompt names cannot be read.
    """
    for job, variant in itertools.product(jobs, variants):
        try:
            check_prompt(variant.job(job), manifest)
        except UsageError as error:
            raise UsageError(f"{variant.label}: {error}") from None
    for job in jobs:
        first = job_steps(variants[0].job(job), manifest)
        for variant in variants:
            if (steps := job_steps(variant.job(job), manifest)) != first:
                raise UsageError(
                    f"{variant.label} has {steps} steps, but {variants[0].label} has {first}; give --steps {steps}, "
                    "and schedules of as many."
                )
    sizes = dict.fromkeys(str(job_geometry(job, manifest)) for job in jobs)
    if len(sizes) > 1:
        raise UsageError(f"The prompts ask for videos of {' and of '.join(sizes)}; compare one size at a time.")


def file_stem(job: Job, variant: Variant, manifest: Manifest, place: str) -> str:
    """A readable file name for a run: the same for the same video made at the same place, else another.

    Args:
        place: the device and the threads, which times depend on.
    """
    made = variant.job(job)
    calibration = manifest.calibration
    # A calibration changes what a schedule or a cache that leaves the choice to it stands for, and nothing else.
    chosen = calibrated_schedule(made, manifest)
    constants = None if calibration is None or variant.cache == OFF else calibration.caches or None
    parts = [manifest.id, place, dataclasses.asdict(made), None if chosen is None else chosen.runs, constants]
    # Of files, a job has the names alone.
    parts += [given] if (given := given_digests(job)) else []
    content = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    words = re.sub(r"[^\w]+", "-", f"{variant.label} {job.prompt.lower()}").strip("-")[:60]
    # A file's name is limited in bytes, of which a letter may have four.
    words = words.encode()[:180].decode(errors="ignore").strip("-")
    return f"{words}-{digest}"
