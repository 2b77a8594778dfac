"""``calibration-N.json``: what ``fb-calibrate`` measured on a bundle, kept beside what follows from it.

The manifest names these files and says what runs take from them; see `flowblending.contracts.manifest.Calibration`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade

FORMAT = upgrade.EVIDENCE.number

Series = dict[str, dict[str, list[float]]]
"""Values of every step, by two names: of a divergence its guidance branch and measure, of a cache its model."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredPrompt(_Frozen):
    """A prompt that was measured, and the seed of its noise."""

    prompt: str
    negative_prompt: str | None
    seed: int


class MeasuredDivergence(_Frozen):
    """How far the models' velocities are from one another along a trajectory; spread is the standard deviation."""

    mean: Series
    spread: Series
    prompts: list[Series]


class ProxyBoundaries(_Frozen):
    """The boundaries by the divergence alone, in steps."""

    criterion: str
    early: int
    late: int


class MeanAndSpread(_Frozen):
    """Of several prompts."""

    mean: float
    spread: float


class TriedEarly(MeanAndSpread):
    """A number of large steps before the small ones, and what every prompt keeps with it."""

    large_steps_first: int
    prompts: list[float]


class EarlyBoundary(_Frozen):
    """Which numbers of large steps were tried before the small ones."""

    criterion: str
    measure: str
    threshold: float
    tried: list[TriedEarly]
    chosen: int


class TriedLate(_Frozen):
    """A number of large steps after the small ones."""

    large_steps_last: int
    distance: float
    similarity: MeanAndSpread


class LateBoundary(_Frozen):
    """Which numbers of large steps were tried after the small ones.

    Attributes:
        noise: standard deviation over prompts of all-large sampling's distance.
        spread: that of the difference that leaving out the late stage makes; None if it was not measured.
        decided: whether the difference was larger than its spread; if not, the model family's boundary was kept.
        prompts_needed: how many prompts it would have taken; None where it was, or where no number could be told.
    """

    criterion: str
    measure: str
    all_large: float
    noise: float
    spread: float | None
    tried: list[TriedLate]
    chosen: int
    decided: bool
    prompts_needed: int | None


class ScheduleEvidence(_Frozen):
    """Why a schedule was chosen.

    Attributes:
        letters: of the first model, whose steps are called large, and of the one that takes some of them.
        number: of the file in its bundle.
        budget: schedules within a share of the cost, as the version that measured them told it.
    """

    number: int = Field(ge=1)
    format: int = FORMAT
    schedule: str
    letters: tuple[str, str]
    steps: int
    solver: str
    guidance: float
    sigmas: list[float]
    prompts: list[MeasuredPrompt]
    divergence: dict[str, MeasuredDivergence]
    proxy: ProxyBoundaries
    early: EarlyBoundary | None
    late: LateBoundary | None
    budget: dict[str, JsonValue] | None = None


class MeasuredConstants(_Frozen):
    """Constants of a step cache, by what they are of."""

    mean: dict[str, list[float]]
    spread: dict[str, list[float]]


class CacheEvidence(_Frozen):
    """Where the constants of step caches come from.

    Attributes:
        number: of the file in its bundle.
    """

    number: int = Field(ge=1)
    format: int = FORMAT
    steps: int
    prompts: list[MeasuredPrompt]
    caches: dict[str, MeasuredConstants]


Evidence = ScheduleEvidence | CacheEvidence


def read_evidence(path: Path) -> Evidence:
    """Read a file of any format up to the present one.

    Raises:
        FlowBlendingError: it is missing, damaged, or of a later format.
    """
    again = "calibrate the bundle again with fb-calibrate"
    try:
        content = upgrade.EVIDENCE.upgrade(json.loads(path.read_bytes()), path, again)
        found: Evidence = TypeAdapter(CacheEvidence if "caches" in content else ScheduleEvidence).validate_python(
            content
        )
    except (OSError, ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FlowBlendingError(f"{path} is no readable calibration ({reason}); {again}.") from None
    return found
