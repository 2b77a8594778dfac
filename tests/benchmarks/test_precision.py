"""Precisions on the trained pair: the command's table and JSON."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import precision, precision_stages
from benchmarks.precision import EVERYWHERE, SCHEDULE, Result, Variant, variants, worth
from benchmarks.precision_stages import VARIANTS, row
from benchmarks.schedules.run import STEPS, Made
from flowblending import UsageError
from flowblending.runtime.program.schedule import StageSchedule


def result(psnr: list[float]) -> Result:
    return Result(samples={"psnr": np.array(psnr)}, megabytes=1, build_seconds=1)


def test_without_stages_both_models_are_shown_the_whole_trajectory() -> None:
    models = StageSchedule.parse(EVERYWHERE, STEPS, 0, 0).letters
    for first in range(0, STEPS, 4):
        assert set(models[first : first + 4]) == {"L", "S"}
    assert [each.calibration for each in variants()].count(EVERYWHERE) == 2


def test_the_worth_of_stages_is_a_difference_of_pairs() -> None:
    results = {
        Variant(precision="fp8", calibration=SCHEDULE): result([40, 50, 61]),
        Variant(precision="fp8", calibration=EVERYWHERE): result([39, 49, 59]),
    }
    assert worth(results) == ["Stage-aware calibration of fp8: +1.33 ± 0.33 dB."]


def test_steps_in_fp8_are_those_of_the_engines_that_are() -> None:
    clip = Made(
        frames=np.zeros((1, 1, 1, 3), np.float32),
        latents=np.zeros(1, np.float32),
        flops=2.0,
        loop=0,
        engines=0,
        total=0,
    )
    half = dataclasses.replace(clip, flops=1.0)
    rows = {name: row(each, result([1, 2]), [half], [clip]) for name, each in VARIANTS.items()}
    assert {each.operations for each in rows.values()} == {0.5}
    assert [each.fp8 for each in rows.values()] == [(0, 40), (0, 40), (16, 40), (40, 40), (16, 40)]
    assert [each.variant.pair for each in rows.values()] == [False, True, False, False, True]


@pytest.mark.parametrize("program", [precision, precision_stages])
def test_one_prompt_is_too_few(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program.__name__, "--prompts", "1", "--out", "x"])
    with pytest.raises(UsageError, match="1 prompts were asked for"):
        program.main()
    assert not list(tmp_path.iterdir())
