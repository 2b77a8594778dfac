"""What ``fb-build-engines`` was told about fp8: which blocks are kept, and what is calibrated on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.contracts.conditions import Source, is_shown, pixel_sources, takes, takes_control
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.models import EXPERTS
from flowblending.engine.backends.registry import BACKENDS

if TYPE_CHECKING:
    from flowblending.runtime.options import Job

PERCENTILE = 100.0
MARGIN = 1.1
"""E4M3 has 18 binary orders of magnitude, so room above costs next to nothing and clipping costs a lot."""

PROMPTS = (
    "A cat walks on the grass, realistic style.",
    "Aerial view of waves breaking on a rocky shore at dusk, slow camera pan.",
    "Close-up of an old man who laughs and turns to the camera, warm light, shallow depth of field.",
    "Cars and neon signs in a rainy city street at night; people with umbrellas cross the road.",
)
"""What is calibrated on unless prompts are given: an animal, a landscape, a face, many things in motion."""


@dataclass(frozen=True, kw_only=True)
class Fp8Options:
    """The options as given; None where one was not.

    Attributes:
        attention: whether what enters attention is quantised, and the attention of the plan is to be in fp8.
        keep: blocks at either end that are not quantised: ``2``, or ``large=3,small=1``.
        calibration: a file to take the ranges from.
        prompts: a file of prompts, one a line, or JSON lines with their images, controls and masks.
        schedule: of the trajectories.
        steps: of the trajectories.
        size: of the videos that are sampled, ``320x192``; None is the bundle's.
        frames: of them; None is the bundle's.
        percentile: of the absolute values in a call, in (0, 100].
        margin: factor on it, at least 1.
    """

    attention: bool = False
    keep: str | None = None
    calibration: Path | None = None
    prompts: Path | None = None
    schedule: str | None = None
    steps: int | None = None
    size: str | None = None
    frames: int | None = None
    percentile: float | None = None
    margin: float | None = None

    def given(self) -> dict[str, str]:
        """The options that were given, as on the command line; an empty text for one that takes none."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "attention"}
        given = {_OPTIONS[name]: str(value) for name, value in values.items() if value is not None}
        return given | ({ATTENTION: ""} if self.attention else {})

    def check(self, models: Collection[str], backend: str, names: Sequence[str]) -> None:
        """Refuse options that contradict one another or have nothing to act on.

        Args:
            models: the transformers that are built in fp8.
            backend: what they are built for.
            names: of all models.

        Raises:
            UsageError: likewise.
        """
        given = list(self.given())
        if given and not models:
            raise UsageError(f"{given[0]} was given, but nothing is built in fp8; add --precision fp8 or leave it out.")
        if self.attention and not BACKENDS.get(backend).fp8_attention:
            able = " or ".join(each.name for each in BACKENDS.rows() if each.fp8_attention)
            raise UsageError(
                f"{ATTENTION} was given, but {backend} has no attention in fp8; leave it out, or build with "
                f"--backend {able}."
            )
        beside = [option for option in given if option not in (ATTENTION, "--fp8-keep", "--fp8-calibration")]
        if self.calibration is not None and beside:
            raise UsageError(
                f"--fp8-calibration takes the ranges from a file, which {beside[0]} cannot change; give one of the two."
            )
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise UsageError(
                f"A percentile of {self.percentile:g} was given, but one above 0 and up to 100 was expected."
            )
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 1):
            raise UsageError(f"A margin of {self.margin:g} was given, but a factor of 1 or more was expected; try 1.1.")
        self._keep(names)

    def kept(self, component: str) -> int | None:
        """How many blocks of a model are kept at either end; None where it is left to the number of its blocks.

        Args:
            component: its engine; what is said of a model holds for both of its experts.
        """
        chosen, model = self._keep(), component.partition("_")[0]
        return next((chosen[name] for name in (component, model, _EVERY) if name in chosen), None)

    def _keep(self, names: Collection[str] | None = None) -> dict[str, int]:
        """Numbers by what was named.

        Raises:
            UsageError: the option is neither a number nor a number for each of some models.
        """
        chosen: dict[str, int] = {}
        for item in self.keep.split(",") if self.keep is not None else []:
            name, equals, number = item.strip().rpartition("=")
            known = names is None or name.removesuffix(EXPERTS[0]).removesuffix(EXPERTS[1]) in names
            if (equals and not known) or not number.isdecimal():
                examples = ",".join(f"{each}={3 - min(place, 2)}" for place, each in enumerate(names or ["large"]))
                raise UsageError(
                    f"--fp8-keep {self.keep} was given, but a number of blocks was expected; "
                    f"try --fp8-keep 2 or --fp8-keep {examples}."
                )
            if not equals:
                chosen.clear()
            chosen[name if equals else _EVERY] = int(number)
        return chosen

    def read_jobs(self) -> tuple[Job, ...]:
        """The prompts to calibrate on, with the images and videos that their lines give.

        Raises:
            FlowBlendingError: the file cannot be read.
            UsageError: there is no prompt in it, or a line says something else.
        """
        from flowblending.runtime.option_values import make_job
        from flowblending.runtime.prompt_file import read_jobs

        if self.prompts is None:
            return tuple(make_job({"prompt": prompt}) for prompt in PROMPTS)
        jobs = []
        for line in read_jobs(self.prompts, make_job({"prompt": ""})):
            if line.job is None:
                raise UsageError(f"Line {line.number} of {self.prompts}: {line.error}")
            others = sorted(line.given - {"prompt", *_GIVEN})
            if others:
                raise UsageError(
                    f"Line {line.number} of {self.prompts} sets its {others[0]}, but a calibration takes prompts with "
                    "their images and controls alone; leave it out there."
                )
            jobs.append(line.job)
        return tuple(jobs)

    def check_shown(self, jobs: Sequence[Job], pipeline: PipelineSpec, in_fp8: Collection[str]) -> str | None:
        """Refuse to calibrate models that are shown images or a control on prompts that give none.

        What they are shown is a part of what enters their layers, and ranges found without it would be too small.

        Args:
            jobs: that `read_jobs` gives.
            pipeline: of the bundle.
            in_fp8: the components that are built in fp8.

        Returns:
            A line to tell the user, where models that also make videos from text alone are calibrated on text.

        Raises:
            UsageError: no prompt gives anything.
        """
        from flowblending.runtime.given_files import given_files

        given = any(given_files(each) for each in jobs)
        if not in_fp8 or self.calibration is not None or given or not pixel_sources(pipeline.conditions):
            return None
        option = "video" if takes_control(pipeline.conditions) else "image"
        example = f'{{"prompt": "...", "{option}": "{"poses.mp4" if option == "video" else "cat.png"}"}}'
        source = "none of the built-in prompts" if self.prompts is None else f"no line of {self.prompts}"
        if is_shown(pipeline.conditions):
            raise UsageError(
                f"{min(in_fp8)} is to be in fp8 and is shown images or videos, but {source} gives any to calibrate it "
                f"on; give --fp8-prompts FILE with lines such as {example}."
            )
        if not takes(pipeline.conditions, Source.IMAGE):
            return None
        return (
            f"fp8 is calibrated on text alone, since {source} gives an image; for videos that begin with one, give "
            f"--fp8-prompts FILE with lines such as {example}."
        )


_GIVEN = ("image", "video", "mask", "reference", "control_scale", "fit", "resample_fps")
"""What the lines of a file of prompts may say beside them."""

_EVERY = ""
"""What a number without a name is for."""

ATTENTION = "--fp8-attention"
_OPTIONS = {
    "keep": "--fp8-keep",
    "calibration": "--fp8-calibration",
    "prompts": "--fp8-prompts",
    "schedule": "--fp8-schedule",
    "steps": "--fp8-steps",
    "size": "--fp8-size",
    "frames": "--fp8-frames",
    "percentile": "--fp8-percentile",
    "margin": "--fp8-margin",
}
