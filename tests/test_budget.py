"""Schedules under a budget, against trying every schedule there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.export.spec import LARGE, SMALL
from flowblending.runtime.calibrate.budget import cheapest, small_steps, step_errors, three_stage


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("switches", [1, 2, 3, 5])
def test_no_other_schedule_costs_less(seed: int, switches: int) -> None:
    errors = np.random.default_rng(seed).uniform(0.1, 1.0, 8).tolist()
    for count in range(9):
        sums = [
            sum(error for error, model in zip(errors, models, strict=True) if model == SMALL)
            for models in itertools.product((LARGE, SMALL), repeat=8)
            if models.count(SMALL) == count and sum(a != b for a, b in itertools.pairwise(models)) <= switches
        ]
        schedule, cost = cheapest(errors, count, switches)
        assert cost == pytest.approx(min(sums))
        assert schedule.models.count(SMALL) == count
        assert len(schedule.switches) <= switches
        assert cost == pytest.approx(
            sum(error for error, model in zip(errors, schedule.models, strict=True) if model == SMALL)
        )


def test_small_steps_in_one_piece() -> None:
    errors = [5.0, 1.0, 2.0, 1.5, 9.0, 0.5]
    assert (str(three_stage(errors, 2)[0]), three_stage(errors, 2)[1]) == ("L1 S2 L3", 3.0)
    assert str(three_stage(errors, 1)[0]) == "L5 S1"
    assert str(three_stage(errors, 0)[0]) == "L6"
    assert str(cheapest(errors, 2, 4)[0]) == "L1 S1 L3 S1"


def test_equal_errors_take_fewer_switches() -> None:
    assert len(cheapest([1.0] * 7, 3, 6)[0].switches) == 1


def test_budgets() -> None:
    assert [small_steps(50, 0.2, budget) for budget in (1.0, 0.6, 0.2)] == [0, 25, 50]
    count = small_steps(50, 0.169, 0.6)
    assert 50 - count * (1 - 0.169) <= 30 < 50 - (count - 1) * (1 - 0.169)
    with pytest.raises(UsageError, match=r"A budget of 10\.0% .* costs 20\.0%; give --budget at least that"):
        small_steps(50, 0.2, 0.1)


def test_an_error_is_the_difference_times_the_length_of_the_step() -> None:
    assert step_errors([2.0, 4.0], [1.0, 0.75]) == [0.5, 3.0]
