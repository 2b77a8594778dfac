"""Schedules under a budget, against trying every schedule there is."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.runtime.calibrate.budget import (
    Allowance,
    allowance,
    cheapest,
    read_budget,
    small_steps,
    step_errors,
    three_stage,
)
from flowblending.runtime.calibrate.findings import BudgetTest, Tried
from flowblending.runtime.calibrate.pair import ModelPair
from flowblending.runtime.calibrate.propagation import shared_out
from flowblending.runtime.calibrate.under_budget import by_divergence, psnr
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from tests.support import manifests

PAIR = ModelPair(first="L", second="S")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("switches", [1, 2, 3, 5])
def test_no_other_schedule_costs_less(seed: int, switches: int) -> None:
    errors = np.random.default_rng(seed).uniform(0.1, 1.0, 8).tolist()
    for count in range(9):
        sums = [
            sum(error for error, model in zip(errors, models, strict=True) if model == "S")
            for models in itertools.product("LS", repeat=8)
            if models.count("S") == count and sum(a != b for a, b in itertools.pairwise(models)) <= switches
        ]
        schedule, cost = cheapest(errors, count, switches, PAIR)
        assert cost == pytest.approx(min(sums))
        assert schedule.letters.count("S") == count
        assert len(schedule.switches) <= switches
        assert cost == pytest.approx(
            sum(error for error, model in zip(errors, schedule.letters, strict=True) if model == "S")
        )


def test_small_steps_in_one_piece() -> None:
    errors = [5.0, 1.0, 2.0, 1.5, 9.0, 0.5]
    assert (str(three_stage(errors, 2, PAIR)[0]), three_stage(errors, 2, PAIR)[1]) == ("L1 S2 L3", 3.0)
    assert str(three_stage(errors, 1, PAIR)[0]) == "L5 S1"
    assert str(three_stage(errors, 0, PAIR)[0]) == "L6"
    assert str(cheapest(errors, 2, 4, PAIR)[0]) == "L1 S1 L3 S1"


def test_equal_errors_take_fewer_switches() -> None:
    assert len(cheapest([1.0] * 7, 3, 6, PAIR)[0].switches) == 1


def test_budgets() -> None:
    assert [small_steps(50, 0.2, budget) for budget in (1.0, 0.6, 0.2)] == [0, 25, 50]
    count = small_steps(50, 0.169, 0.6)
    assert 50 - count * (1 - 0.169) <= 30 < 50 - (count - 1) * (1 - 0.169)
    with pytest.raises(UsageError, match=r"A budget of 10\.0% .* costs 20\.0%; give --budget at least that"):
        small_steps(50, 0.2, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.6", (0.6, False)), ("60%", (0.6, False)), (" 62.5% ", (0.625, False)), ("12.5s", (12.5, True))],
)
def test_a_budget_is_a_share_a_percentage_or_seconds(text: str, expected: tuple[float, bool]) -> None:
    assert read_budget(text) == expected


@pytest.mark.parametrize("text", ["", "%", "s", "0%", "101%", "60", "60%s", "-1s", "nan", "inf%"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(UsageError, match=r"a share above 0, up to 1, or seconds were expected; try 0\.6, 60% or 12"):
        read_budget(text)


def test_an_error_is_the_difference_times_the_length_of_the_step() -> None:
    assert step_errors([2.0, 4.0], [1.0, 0.75]) == [0.5, 3.0]


def test_a_block_is_shared_out_among_its_steps() -> None:
    errors = [5.0, 1.0, 3.0, 2.0, 3.0, 5.0, 0.0, 0.0]
    found = shared_out([0.5, 4.0, 2.0, 7.0], [0, 1, 3, 6], errors)
    assert found == pytest.approx([0.5, 1.0, 3.0, 0.4, 0.6, 1.0, 3.5, 3.5])


def test_a_budget_in_seconds_is_that_of_a_whole_video(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "b")
    program = compile_job(Job(prompt="x", steps=10, schedule="LLL"), manifest)
    seconds = {"large": 2.0, "small": 0.5, "text_encoder": 1.0, "vae": 3.0}
    # All-large: 4 s and 10 steps of two calls, 44 s; every small step saves 3 s.
    for text, small in (("44s", 0), ("100s", 0), ("43.9s", 1), ("41s", 1), ("29.5s", 5), ("14s", 10)):
        assert allowance(text, manifest, program, seconds).small_steps == small
    assert allowance("24s", manifest, program, seconds) == Allowance(share=0.5, seconds=24.0, small_steps=7)
    with pytest.raises(UsageError, match=r"A budget of 13 s .* all-small video takes 14 s as last measured"):
        allowance("13s", manifest, program, seconds)
    with pytest.raises(UsageError, match=r"small was not measured on this machine yet; run fb-run BUNDLE"):
        allowance("13s", manifest, program, {"large": 2.0})
    with pytest.raises(UsageError, match=r"all-small video takes 84 s"):
        allowance("80s", manifest, program, {**seconds, "small": 4.0})


def test_by_the_divergence_alone() -> None:
    errors = [5.0, 1.0, 2.0, 1.5, 9.0, 0.5]
    test = by_divergence(Allowance(share=0.7, seconds=None, small_steps=2), 4, errors, PAIR)
    assert (test.chosen.schedule, test.chosen.predicted) == ("L1 S1 L3 S1", 1.5)
    assert test.three_stages == "L1 S2 L3"


def test_decibels() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
    assert psnr(0.0) == 100.0


def test_more_switches_have_to_be_measurably_better() -> None:
    def chosen(*measured: tuple[str, tuple[float, ...]]) -> str:
        tried = tuple(
            Tried(schedule=runs, switches=len(runs.split()) - 1, predicted=0.0, measured=values)
            for runs, values in measured
        )
        allowed = Allowance(share=0.5, seconds=None, small_steps=2)
        test = BudgetTest(allowance=allowed, switches=4, tried=tried, three_stages="L2 S2", blocks={0: 0.1})
        return test.chosen.schedule

    plain = ("L2 S2", (30.0, 34.0, 38.0))
    # Better by 1, 0 and -0.7: a mean of 0.1 and a standard error of 0.49; and by 1, 0.9 and 0.8 with one of 0.06.
    assert chosen(("L1 S1 L1 S1", (31.0, 34.0, 37.3)), plain) == "L2 S2"
    assert chosen(("L1 S1 L1 S1", (31.0, 34.9, 38.8)), plain) == "L1 S1 L1 S1"
    assert chosen(("L1 S1 L1 S1", (30.09, 34.08, 38.07)), plain) == "L2 S2"  # sure, and nothing
    assert chosen(("L1 S1 L1 S1", (29.0, 34.9, 36.8)), plain) == "L2 S2"
    assert chosen(("L1 S1 L1 S1", (31.0,)), ("L2 S2", (30.0,))) == "L1 S1 L1 S1"
