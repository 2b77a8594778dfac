"""Precisions on the trained pair: the command's table and JSON."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.precision import EVERYWHERE, SCHEDULE, Result, Variant, variants, worth
from benchmarks.schedules.run import STEPS
from flowblending.runtime.program.schedule import StageSchedule

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
def test_one_prompt_is_too_few() -> None:
    command = [sys.executable, "-m", "benchmarks.precision", "--prompts", "1", "--out", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: 1 prompts were asked for.*\n", done.stderr)
    assert not (ROOT / "x").exists()
