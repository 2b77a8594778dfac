"""A calibration from prompts to a schedule: what is measured of every prompt, in which order, and what follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import COND
from flowblending.runtime.calibrate.boundaries import (
    by_proxy,
    candidates,
    family_boundaries,
    proxy_boundaries,
    three_stages,
)
from flowblending.runtime.calibrate.budget import Allowance, step_errors
from flowblending.runtime.calibrate.choose import choose_early, choose_late
from flowblending.runtime.calibrate.divergence import (
    COSINE,
    GUIDED,
    RMS,
    Divergence,
    mean_of,
    measure,
    series_names,
)
from flowblending.runtime.calibrate.features import Latents
from flowblending.runtime.calibrate.findings import BudgetTest, Findings
from flowblending.runtime.calibrate.measure import (
    Early,
    Late,
    Measures,
    by_count,
    early_ticks,
    late_ticks,
    measure_early,
    measure_late,
)
from flowblending.runtime.calibrate.pair import ModelPair, pair_of
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.calibrate.under_budget import Propagation, by_divergence, by_propagation
from flowblending.runtime.calibrate.work import Work
from flowblending.runtime.given_files import given_digests
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.measures.networks import Frames
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import Start, plan_job
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.console import Console

OTHER_NOISE = 1_000_003
"""Added to a prompt's seed for the all-large result that the distances are taken from."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What to measure.

    Attributes:
        parts: boundaries are tried at every ``parts``-th part of the run.
        threshold: the similarity that the early boundary keeps.
        proxy_only: choose by the divergence alone, and generate nothing.
        blended: also measure the divergence along the chosen schedule's trajectory.
        budget: choose the best schedule of any number of stages within it; None for the boundaries of three stages.
        switches: at most so many in a schedule under a budget.
    """

    parts: int
    threshold: float
    measures: Measures
    proxy_only: bool
    blended: bool
    budget: Allowance | None = None
    switches: int = 4


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """Measures prompts with a bundle's engines; finished measurements are read from the work folder."""

    pipeline: Pipeline
    request: CalibrationRequest
    work: Work
    console: Console

    @property
    def decodes(self) -> bool:
        """Whether a schedule is chosen by frames: by a measure of them, or under a budget by what they become."""
        measures = (self.request.measures.similarity, self.request.measures.distance)
        by_frames = self.request.budget is not None or any(each.of_frames is not None for each in measures)
        return by_frames and not self.request.proxy_only

    @cached_property
    def pair(self) -> ModelPair:
        """The models that a schedule is chosen of."""
        return pair_of(self._manifest)

    def divergence(self, jobs: Sequence[Job], runs: str, letters: Sequence[str] = ()) -> list[Divergence]:
        """Of every prompt along the trajectory of ``runs``.

        Args:
            letters: of the models that are evaluated; empty for the pair.
        """
        taken = StageSchedule.scaled(runs, self._steps(jobs)).letters
        # What was measured of the pair is known by the same key, whoever asks for it.
        pair = [model.letter for model in self._manifest.models[:2]]
        others = [list(letters)] if letters and list(letters) != pair else []
        keys = [[self._key(job), str(StageSchedule.of(taken)), *others] for job in jobs]
        missing = sum(self._known_divergence(key) is None for key in keys)
        with self.console.progress(f"divergence along {runs}", total=missing * len(taken)) as advance:
            return [
                self._divergence(job, key, taken, letters, lambda: advance(1))
                for job, key in zip(jobs, keys, strict=True)
            ]

    def findings(self, jobs: Sequence[Job]) -> Findings:
        """Measure everything that the request asks for, and choose.

        Raises:
            FlowBlendingError: an engine or a feature function failed, or the work folder cannot be written.
        """
        steps = self._steps(jobs)
        tried = candidates(steps, self.request.parts)
        program = compile_job(dataclasses.replace(jobs[0], schedule=self.pair.first, cache="off"), self._manifest)
        sigmas = tuple(step.sigma for step in program.steps)
        early, late, early_test, late_test, budget_test = 0, 0, None, None, None
        if self.request.budget is not None:
            divergences, budget_test = self._under(self.request.budget, jobs, sigmas)
            proxy = proxy_boundaries(_guided(divergences))
        elif self.request.proxy_only:
            divergences = self.divergence(jobs, f"{self.pair.first}{steps}")
            proxy = proxy_boundaries(_guided(divergences))
            early, late = by_proxy(proxy, family_boundaries(self._manifest.pipeline, steps)[0], steps)
        else:
            measured = self._early(jobs, tried)
            divergences = self.divergence(jobs, f"{self.pair.first}{steps}")
            proxy = proxy_boundaries(_guided(divergences))
            early_test = choose_early(measured, self.request.measures.similarity.name, self.request.threshold)
            early = early_test.chosen
            if early < steps:
                returns = self._late(jobs, measured, early, tried)
                family = min(family_boundaries(self._manifest.pipeline, steps)[1], steps - early)
                late_test = choose_late(measured, returns, self.request.measures.distance.name, family)
                late = late_test.chosen
        runs = three_stages(steps, early, late, self.pair) if budget_test is None else budget_test.chosen.schedule
        along = {f"{self.pair.first}{steps}": divergences}
        if self.request.blended and runs not in along:
            along[runs] = self.divergence(jobs, runs)
        return Findings(
            steps=steps,
            sigmas=sigmas,
            solver=program.solver,
            guidance=program.guidance,
            prompts=tuple(jobs),
            divergences=along,
            proxy=proxy,
            early=early_test,
            late=late_test,
            budget=budget_test,
            runs=runs,
            pair=self.pair,
        )

    @property
    def _manifest(self) -> Manifest:
        return self.pipeline.bundle.manifest

    def _steps(self, jobs: Sequence[Job]) -> int:
        return jobs[0].steps or self._manifest.pipeline.steps

    def _key(self, job: Job) -> dict[str, object]:
        fields = dataclasses.asdict(dataclasses.replace(job, schedule="", cache=""))
        given = given_digests(job)
        return {"bundle": self._manifest.id, "job": fields, **({"given": given} if given else {})}

    def _divergence(
        self, job: Job, key: object, taken: Sequence[str], letters: Sequence[str], tick: Callable[[], None]
    ) -> Divergence:
        known = self._known_divergence(key)
        if known is not None:
            return known
        found = measure(self._trajectory(job, letters), self._start(job), taken, tick)
        self.work.write("divergence", key, dataclasses.asdict(found))
        return found

    def _known_divergence(self, key: object) -> Divergence | None:
        known = self.work.read("divergence", key)
        # An earlier version measured fewer constants, and so does a bundle without signals.
        needed = series_names(signals=bool(self._manifest.signals))
        return Divergence(**known) if known is not None and needed <= set(known["caches"]) else None

    def _early(self, jobs: Sequence[Job], tried: Sequence[int]) -> list[Early]:
        names = [self.request.measures.similarity.name, self.request.measures.distance.name]
        steps = self._steps(jobs)
        tried = [count for count in tried if count < steps]
        found = []
        keys = [[self._key(job), names, tried] for job in jobs]
        missing = sum(self._known_early(key) is None for key in keys)
        title = "switching to the small model"
        with self.console.progress(title, total=missing * early_ticks(steps, tried)) as advance:
            for job, key in zip(jobs, keys, strict=True):
                known = self._known_early(key)
                found.append(known or self._measure_early(job, key, tried, lambda: advance(1)))
        return found

    def _known_early(self, key: object) -> Early | None:
        known, latents = self.work.read("early", key), self.work.read_array("early", key)
        if known is None or latents is None:
            return None
        return Early(
            similarities=by_count(known["similarities"]),
            large=np.array(known["large"]),
            reference=np.array(known["reference"]),
            latents=latents,
        )

    def _measure_early(self, job: Job, key: object, tried: Sequence[int], tick: Callable[[], None]) -> Early:
        trajectory = self._trajectory(job)
        other = dataclasses.replace(job, seed=job.seed + OTHER_NOISE)
        divergence, early = measure_early(
            trajectory,
            self._start(job),
            other=self._start(other),
            tried=tried,
            measures=self.request.measures,
            decode=self._decoder(job),
            tick=tick,
        )
        alone = f"{self.pair.first}{trajectory.steps}"
        self.work.write("divergence", [self._key(job), alone], dataclasses.asdict(divergence))
        self.work.write_array("early", key, early.latents)
        content = {
            "similarities": early.similarities,
            "large": early.large.tolist(),
            "reference": early.reference.tolist(),
        }
        self.work.write("early", key, content)
        return early

    def _late(self, jobs: Sequence[Job], measured: Sequence[Early], early: int, tried: Sequence[int]) -> list[Late]:
        names = [self.request.measures.similarity.name, self.request.measures.distance.name]
        steps = self._steps(jobs)
        tried = sorted({count for count in tried if count < steps - early} | {0, steps - early})
        keys = [[self._key(job), names, early, tried] for job in jobs]
        missing = sum(self.work.read("late", key) is None for key in keys)
        found = []
        title = "returning to the large model"
        with self.console.progress(title, total=missing * late_ticks(steps, early, tried)) as advance:
            for job, key, one in zip(jobs, keys, measured, strict=True):
                known = self.work.read("late", key)
                if known is None:
                    late = measure_late(
                        self._trajectory(job),
                        self._start(job),
                        early=early,
                        tried=tried,
                        all_large=one,
                        measures=self.request.measures,
                        decode=self._decoder(job),
                        tick=lambda: advance(1),
                    )
                    features = {count: each.tolist() for count, each in late.features.items()}
                    self.work.write("late", key, {"similarities": late.similarities, "features": features})
                else:
                    features = {int(count): np.array(each) for count, each in known["features"].items()}
                    late = Late(similarities=by_count(known["similarities"]), features=features)
                found.append(late)
        return found

    def _under(
        self, budget: Allowance, jobs: Sequence[Job], sigmas: Sequence[float]
    ) -> tuple[list[Divergence], BudgetTest]:
        steps, switches = len(sigmas), self.request.switches
        made = Propagation(
            work=self.work,
            console=self.console,
            parts=self.request.parts,
            key=self._key,
            trajectory=self._trajectory,
            start=self._start,
            decoder=self._decoder,
            pair=self.pair,
        )
        squares = [] if self.request.proxy_only else made.blocks(jobs, steps)
        divergences = self.divergence(jobs, f"{self.pair.first}{steps}")
        errors = step_errors(_guided(divergences, RMS), sigmas)
        if self.request.proxy_only:
            return divergences, by_divergence(budget, switches, errors, self.pair)
        return divergences, by_propagation(budget, switches, jobs=jobs, errors=errors, squares=squares, made=made)

    def _trajectory(self, job: Job, letters: Sequence[str] = ()) -> StepTrajectory:
        pair = letters or (self.pair.first, self.pair.second)
        return StepTrajectory.open(self.pipeline, job, pair, self.console.warn)

    def _start(self, job: Job) -> Start:
        planned = plan_job(dataclasses.replace(job, schedule=self.pair.first, cache="off"), self._manifest)
        return planned.start(job.seed, self.pipeline.encode_frames)

    def _decoder(self, job: Job) -> Callable[[Latents], Frames]:
        return lambda latents: self.pipeline.pixels(latents, job)


def _guided(divergences: Sequence[Divergence], measure: str = COSINE) -> list[float]:
    """The mean distance after guidance, or of the one branch there is, of every step."""
    mean = mean_of([each.distances for each in divergences])
    return mean[GUIDED if GUIDED in mean else COND][measure]
