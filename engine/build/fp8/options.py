"""What ``fb-build-engines`` was told about fp8: which blocks are kept, and what is calibrated on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from flowblending import UsageError
from flowblending.contracts.models import EXPERTS
from flowblending.engine.backends.registry import BACKENDS

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
        prompts: a file of prompts, one a line.
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

    def read_prompts(self) -> tuple[str, ...]:
        """The prompts to calibrate on.

        Raises:
            FlowBlendingError: the file cannot be read.
            UsageError: there is no prompt in it.
        """
        if self.prompts is None:
            return PROMPTS
        from flowblending.runtime.option_values import make_job
        from flowblending.runtime.prompt_file import read_jobs

        prompts = []
        for line in read_jobs(self.prompts, make_job({"prompt": ""})):
            if line.job is None:
                raise UsageError(f"Line {line.number} of {self.prompts}: {line.error}")
            others = sorted(line.given - {"prompt"})
            if others:
                raise UsageError(
                    f"Line {line.number} of {self.prompts} sets its {others[0]}, but a calibration takes prompts "
                    "alone; leave it out there."
                )
            prompts.append(line.job.prompt)
        return tuple(prompts)


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
