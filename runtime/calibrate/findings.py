"""What a calibration found, as data: for the bundle, for the terminal and for the plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowblending.contracts.evidence import FORMAT
from flowblending.runtime.calibrate.boundaries import PROXY_LEVEL
from flowblending.runtime.calibrate.budget import Allowance
from flowblending.runtime.calibrate.divergence import Divergence, Series, mean_of, spread_of
from flowblending.runtime.calibrate.features import LATENT
from flowblending.runtime.calibrate.pair import ModelPair
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.registry import measured_caches

NOTHING = 0.1
"""A gain in dB that nobody sees, however sure it is: not worth a switch."""


@dataclass(frozen=True, kw_only=True)
class SimilarityTest:
    """The early boundary's criterion.

    Attributes:
        measure: ``latent`` or ``module:function``.
        threshold: what the mean has to keep.
        values: by the number of large steps before the small ones, of every prompt.
        chosen: that number.
    """

    measure: str
    threshold: float
    values: Mapping[int, Sequence[float]]
    chosen: int

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        what = "cosine of the final latents" if self.measure == LATENT else f"mean cosine of {self.measure}'s features"
        return (
            f"earliest switch from which on the {what} with all-large sampling of the same noise stays at or above "
            f"{self.threshold:.0%}"
        )


@dataclass(frozen=True, kw_only=True)
class DistanceTest:
    """The late boundary's criterion.

    Attributes:
        measure: ``latent`` or ``module:function``.
        values: distances by the number of large steps at the end.
        all_large: of all-large sampling.
        noise: its standard deviation over prompts.
        spread: that of the difference that leaving out the late stage makes.
        similarities: by the same number, of every prompt, to all-large sampling; for information.
        chosen: that number, or the model family's where nothing was decided.
        decided: whether the difference is larger than its spread.
        prompts_needed: how many prompts would make it so; None where it is, or where no number can be told.
    """

    measure: str
    values: Mapping[int, float]
    all_large: float
    noise: float
    spread: float
    similarities: Mapping[int, Sequence[float]]
    chosen: int
    decided: bool
    prompts_needed: int | None

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        what = (
            "statistics of the final latents (no feature function was given, so that this is no FID)"
            if self.measure == LATENT
            else f"{self.measure}'s features"
        )
        return (
            f"latest return from which on the Fréchet distance of {what} to all-large sampling of other noise is above "
            "all-large sampling's own by at most the standard deviation over prompts of what leaving out the late "
            "stage changes it by; where it changes it by no more than that, the model family's return"
        )


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A schedule under a budget.

    Attributes:
        predicted: from its small steps' measurements: dB, or the sum of the proxy.
        measured: PSNR of every prompt's frames to all-large sampling's in dB; none by the proxy.
    """

    schedule: str
    switches: int
    predicted: float
    measured: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BudgetTest:
    """Schedules under a budget, of equal cost.

    Attributes:
        switches: how many were allowed.
        tried: the best for each number of switches, and the best of three stages.
        three_stages: the one whose small steps are in one piece.
        blocks: by its first step, the mean square of what every block does to the frames, which count from 0 to 1;
            none by the proxy.
    """

    allowance: Allowance
    switches: int
    tried: tuple[Tried, ...]
    three_stages: str
    blocks: Mapping[int, float]

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        if not self.blocks:
            return "least sum of the guided velocities' RMS differences times the steps' lengths in sigma"
        return (
            "fewest switches whose PSNR to all-large sampling of the same noise is the highest, within "
            f"{NOTHING:g} dB or one standard error over prompts, among the schedules that look best by what blocks of "
            "small steps do to the frames"
        )

    @property
    def chosen(self) -> Tried:
        """The fewest switches that nothing is better than by more than 0.1 dB and the standard error over prompts."""
        if not self.blocks:
            return min(self.tried, key=lambda each: (each.predicted, each.switches))
        best = max(self.tried, key=lambda each: statistics(each.measured)["mean"])
        for each in sorted(self.tried, key=lambda each: each.switches):
            gains = statistics([ours - theirs for ours, theirs in zip(best.measured, each.measured, strict=True)])
            if gains["mean"] <= max(NOTHING, gains["spread"] / len(best.measured) ** 0.5):
                return each
        return best


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A finished calibration of a schedule.

    Attributes:
        sigmas: noise level of every step.
        prompts: what was measured.
        divergences: by the schedule whose trajectory was followed, of every prompt.
        proxy: early and late boundary by the divergence alone.
        early: None if only the divergence was measured.
        late: None also if no step is left to the small model.
        budget: only if a budget was given; ``early`` and ``late`` are None then.
        runs: the schedule chosen.
        pair: the models that it is of.
    """

    steps: int
    sigmas: tuple[float, ...]
    solver: str
    guidance: float
    prompts: tuple[Job, ...]
    divergences: Mapping[str, Sequence[Divergence]]
    proxy: tuple[int, int]
    early: SimilarityTest | None
    late: DistanceTest | None
    budget: BudgetTest | None
    runs: str
    pair: ModelPair

    @property
    def by_divergence(self) -> bool:
        """Whether the divergence alone chose the schedule: no results were compared."""
        return self.early is None and (self.budget is None or not self.budget.blocks)

    def evidence(self) -> dict[str, object]:
        """Everything as plain data for ``json.dumps``."""
        return {
            "format": FORMAT,
            "schedule": self.runs,
            "letters": [self.pair.first, self.pair.second],
            "steps": self.steps,
            "solver": self.solver,
            "guidance": self.guidance,
            "sigmas": self.sigmas,
            "prompts": _prompts(self.prompts),
            "divergence": {runs: divergence_evidence(found) for runs, found in self.divergences.items()},
            "proxy": {
                "criterion": f"from the lowest divergence outwards, up to {PROXY_LEVEL:.0%} of the way to either end's",
                "early": self.proxy[0],
                "late": self.proxy[1],
            },
            "early": None if self.early is None else _similarity_evidence(self.early),
            "late": None if self.late is None else _distance_evidence(self.late),
            "budget": None if self.budget is None else _budget_evidence(self.budget),
        }


def divergence_evidence(found: Sequence[Divergence]) -> dict[str, object]:
    """Mean, spread and every prompt's own distances."""
    distances = [each.distances for each in found]
    return {"mean": mean_of(distances), "spread": spread_of(distances), "prompts": distances}


def cache_evidence(
    found: Sequence[Divergence], names: Sequence[str], jobs: Sequence[Job], steps: int
) -> tuple[Series, dict[str, object]]:
    """The constants of step caches, by name and model: the means over prompts; and the same as evidence."""
    measured = [each.caches for each in found]
    mean, spread = mean_of(measured), spread_of(measured)
    constants: Series = {}
    for name in names:
        _, measurement = measured_caches()[name]
        constants |= measurement.constants(measured, mean, measurement.series)
    evidence = {
        "format": FORMAT,
        "steps": steps,
        "prompts": _prompts(jobs),
        "caches": {name: {"mean": mean[name], "spread": spread[name]} for name in names},
    }
    return constants, evidence


def _prompts(jobs: Sequence[Job]) -> list[dict[str, object]]:
    return [{"prompt": job.prompt, "negative_prompt": job.negative_prompt, "seed": job.seed} for job in jobs]


def _similarity_evidence(test: SimilarityTest) -> dict[str, object]:
    tried = [
        {"large_steps_first": count, **statistics(values), "prompts": list(values)}
        for count, values in sorted(test.values.items())
    ]
    return {
        "criterion": test.criterion,
        "measure": test.measure,
        "threshold": test.threshold,
        "tried": tried,
        "chosen": test.chosen,
    }


def _distance_evidence(test: DistanceTest) -> dict[str, object]:
    tried = [
        {"large_steps_last": count, "distance": value, "similarity": statistics(test.similarities[count])}
        for count, value in sorted(test.values.items())
    ]
    return {
        "criterion": test.criterion,
        "measure": test.measure,
        "all_large": test.all_large,
        "noise": test.noise,
        "spread": test.spread,
        "tried": tried,
        "chosen": test.chosen,
        "decided": test.decided,
        "prompts_needed": test.prompts_needed,
    }


def _budget_evidence(test: BudgetTest) -> dict[str, object]:
    tried = [
        dataclasses.asdict(each) | {"measured": each.measured and statistics(each.measured), "prompts": each.measured}
        for each in test.tried
    ]
    return {
        "criterion": test.criterion,
        "budget": test.allowance.share,
        "seconds": test.allowance.seconds,
        "small_steps": test.allowance.small_steps,
        "switches": test.switches,
        "tried": tried,
        "chosen": test.chosen.schedule,
        "three_stages": test.three_stages,
        "blocks": [{"first_step": start + 1, "mean_square": square} for start, square in test.blocks.items()],
    }


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation, the latter 0 for a single value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "spread": spread}
