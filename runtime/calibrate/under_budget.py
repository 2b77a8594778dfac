"""The best schedule under a budget, by what its small steps do to the videos of the calibration's prompts.

Blocks of small steps are measured one by one; from them the best schedule is predicted for every number of switches,
and the one whose small steps are in one piece; and these few are then made and measured, so that a prediction that
fails costs nothing but time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flowblending.runtime.calibrate.boundaries import candidates
from flowblending.runtime.calibrate.budget import Allowance, cheapest, three_stage
from flowblending.runtime.calibrate.features import Latents
from flowblending.runtime.calibrate.findings import BudgetTest, Tried
from flowblending.runtime.calibrate.pair import ModelPair
from flowblending.runtime.calibrate.propagation import block_ticks, measure_blocks, measure_schedules, shared_out
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.calibrate.work import Work
from flowblending.runtime.measures.networks import Frames
from flowblending.runtime.options import Job
from flowblending.runtime.planned_job import Start
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.console import Console

_LEAST = 1e-10
"""Mean squares count as at least this, 100 dB: equal videos have a number then, too."""


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Measures what blocks and schedules do to every prompt's video; what is finished is read from the work folder.

    Attributes:
        parts: blocks that the steps are measured in.
        key: what a job's measurements depend on.
        trajectory: along a job's steps.
        start: what a job starts from.
        decoder: makes frames of a job's latents.
        pair: the models.
    """

    work: Work
    console: Console
    parts: int
    key: Callable[[Job], object]
    trajectory: Callable[[Job], StepTrajectory]
    start: Callable[[Job], Start]
    decoder: Callable[[Job], Callable[[Latents], Frames]]
    pair: ModelPair

    def blocks(self, jobs: Sequence[Job], steps: int) -> list[list[float]]:
        """The blocks' mean squares of every prompt; the divergence is kept, too.

        Raises:
            FlowBlendingError: an engine failed, or the work folder cannot be written.
        """
        starts = block_starts(steps, self.parts)
        keys = [self._blocks_key(job, steps) for job in jobs]
        missing = sum(self._known(key) is None for key in keys)
        title = "small steps in blocks"
        with self.console.progress(title, total=missing * block_ticks(steps, starts)) as advance:
            return [self._blocks(job, key, starts, lambda: advance(1)) for job, key in zip(jobs, keys, strict=True)]

    def schedules(self, jobs: Sequence[Job], runs: Sequence[str], steps: int) -> dict[str, list[float]]:
        """How far every prompt's videos with these schedules are from all-large sampling's, in dB (PSNR).

        Raises:
            FlowBlendingError: as for `blocks`, which has to come before.
        """
        missing = {
            index: [each for each in runs if self.work.read("budget", [self.key(job), each]) is None]
            for index, job in enumerate(jobs)
        }
        total = steps * sum(map(len, missing.values()))
        with self.console.progress("schedules under the budget", total=total) as advance:
            for index, job in enumerate(jobs):
                self._schedules(job, missing[index], steps, lambda: advance(1))
        return {each: [psnr(self.work.read("budget", [self.key(job), each])) for job in jobs] for each in runs}

    def _blocks_key(self, job: Job, steps: int) -> object:
        return [self.key(job), list(block_starts(steps, self.parts))]

    def _known(self, key: object) -> list[float] | None:
        known = self.work.read("blocks", key)
        return None if known is None or self.work.read_array("blocks", key) is None else list(known)

    def _blocks(self, job: Job, key: object, starts: Sequence[int], tick: Callable[[], None]) -> list[float]:
        known = self._known(key)
        if known is not None:
            return known
        trajectory = self.trajectory(job)
        divergence, squares, latents = measure_blocks(trajectory, self.start(job), starts, self.decoder(job), tick)
        alone = f"{self.pair.first}{trajectory.steps}"
        self.work.write("divergence", [self.key(job), alone], dataclasses.asdict(divergence))
        self.work.write_array("blocks", key, latents)
        self.work.write("blocks", key, squares)
        return squares

    def _schedules(self, job: Job, runs: Sequence[str], steps: int, tick: Callable[[], None]) -> None:
        if not runs:
            return
        latents = self.work.read_array("blocks", self._blocks_key(job, steps))
        assert latents is not None  # measured before
        letters = {each: StageSchedule.scaled(each, steps).letters for each in runs}
        found = measure_schedules(
            self.trajectory(job), self.start(job), letters, all_large=latents, decode=self.decoder(job), tick=tick
        )
        for each, square in found.items():
            self.work.write("budget", [self.key(job), each], square)


def by_propagation(
    allowance: Allowance,
    switches: int,
    *,
    jobs: Sequence[Job],
    errors: Sequence[float],
    squares: Sequence[Sequence[float]],
    made: Propagation,
) -> BudgetTest:
    """Predict the best schedules and make them; see `BudgetTest.chosen` for which one is taken.

    Args:
        errors: of every step alone; see `step_errors`.
        squares: of every block, of every prompt.
    """
    starts, mean = block_starts(len(errors), made.parts), np.mean(squares, axis=0).tolist()
    costs, count = shared_out(mean, starts, errors), allowance.small_steps
    plain = three_stage(costs, count, made.pair)
    schedules = [
        *(cheapest(costs, count, allowed, made.pair) for allowed in _allowed(count, len(costs), switches)),
        plain,
    ]
    predicted = {str(schedule): square for schedule, square in schedules}
    measured = made.schedules(jobs, list(predicted), len(errors))
    tried = [_tried(runs, psnr(square), measured[runs]) for runs, square in predicted.items()]
    return BudgetTest(
        allowance=allowance,
        switches=switches,
        tried=tuple(sorted(tried, key=lambda each: each.switches)),
        three_stages=str(plain[0]),
        blocks=dict(zip(starts, mean, strict=True)),
    )


def by_divergence(allowance: Allowance, switches: int, errors: Sequence[float], pair: ModelPair) -> BudgetTest:
    """Take the schedule with the least sum of its small steps' own errors; nothing is generated."""
    schedules = (
        cheapest(errors, allowance.small_steps, switches, pair),
        three_stage(errors, allowance.small_steps, pair),
    )
    tried = {str(schedule): _tried(str(schedule), error, ()) for schedule, error in schedules}
    return BudgetTest(
        allowance=allowance,
        switches=switches,
        tried=tuple(tried.values()),
        three_stages=str(schedules[1][0]),
        blocks={},
    )


def block_starts(steps: int, parts: int) -> list[int]:
    """The first step of every block."""
    return candidates(steps, parts)[:-1]


def _allowed(count: int, steps: int, switches: int) -> range:
    """Numbers of switches to allow; a single model has none."""
    return range(1, switches + 1) if 0 < count < steps else range(1)


def psnr(square: float) -> float:
    """In dB, of a mean square of values that count from 0 to 1; at most 100."""
    return -10.0 * math.log10(max(square, _LEAST))


def _tried(runs: str, predicted: float, measured: Sequence[float]) -> Tried:
    return Tried(schedule=runs, switches=len(runs.split()) - 1, predicted=predicted, measured=tuple(measured))
