"""The cheapest loss of quality under a budget of operations: any number of stages, chosen step by step.

A small step adds about its length in sigma times the root mean square of the velocities' difference to the error of
the latents (one Euler step's worth; that later steps damp or amplify it is left out). With that, the best schedule of
n small steps and at most k switches follows by dynamic programming over (step, small steps so far, switches so far,
model): exact for this measure, in steps^2 * k operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from flowblending import UsageError
from flowblending.export.spec import LARGE, SMALL
from flowblending.runtime.schedule import StageSchedule

_State = tuple[int, int, str]
"""Small steps so far, switches so far, model of the last step."""


def step_errors(rms: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """What a small step in place of a large one adds to the latents' error, per step.

    Args:
        rms: of the velocities' difference at every step.
        sigmas: noise level of every step; the last step goes to 0.
    """
    return [value * (now - after) for value, (now, after) in zip(rms, itertools.pairwise([*sigmas, 0.0]), strict=True)]


def small_steps(steps: int, small_cost: float, budget: float) -> int:
    """The least number of small steps that keeps a run within a budget.

    Args:
        small_cost: of a small step, as a share of a large one's.
        budget: of the run, as a share of all-large sampling's.

    Raises:
        UsageError: even all-small sampling costs more.
    """
    if budget < small_cost:
        raise UsageError(
            f"A budget of {budget:.1%} of all-large sampling was given, but all-small sampling costs "
            f"{small_cost:.1%}; give --budget at least that."
        )
    saved = 1.0 - small_cost
    return 0 if budget >= 1.0 else min(steps, math.ceil(steps * (1.0 - budget) / saved - 1e-9))


def cheapest(errors: Sequence[float], count: int, switches: int) -> tuple[StageSchedule, float]:
    """The schedule of ``count`` small steps and at most ``switches`` switches whose errors add up to the least.

    Equal sums go to the schedule with fewer switches.

    Args:
        errors: see `step_errors`.
        count: 0 to the number of steps.
        switches: at least 1, or 0 where ``count`` leaves one model alone.

    Returns:
        The schedule and its sum.
    """
    best: dict[_State, tuple[float, tuple[str, ...]]] = {}
    for step, error in enumerate(errors):
        extended: dict[_State, tuple[float, tuple[str, ...]]] = {}
        for (small, changed, last), (total, models) in best.items() if step else [((0, 0, ""), (0.0, ()))]:
            for model in (LARGE, SMALL):
                state = (small + (model == SMALL), changed + (last not in ("", model)), model)
                cost = total + (error if model == SMALL else 0.0)
                if state[0] <= count and state[1] <= switches and cost < extended.get(state, (math.inf,))[0]:
                    extended[state] = (cost, (*models, model))
        best = extended
    complete = [(cost, changed, models) for (small, changed, _), (cost, models) in best.items() if small == count]
    cost, _, models = min(complete)
    return StageSchedule.of(models), cost


def three_stage(errors: Sequence[float], count: int) -> tuple[StageSchedule, float]:
    """The same with the small steps in one piece: what `cheapest` is compared with at equal cost."""
    starts = range(len(errors) - count + 1)
    sums = {start: sum(errors[start : start + count]) for start in starts}
    start = min(sums, key=lambda each: sums[each])
    models = [LARGE] * start + [SMALL] * count + [LARGE] * (len(errors) - count - start)
    return StageSchedule.of(models), sums[start]
