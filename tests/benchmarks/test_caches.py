"""Schedules times caches: the front, and the command on the trained pair."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.caches import combinations, main
from benchmarks.pareto import Point, front
from flowblending import FlowBlendingError

ROOT = Path(__file__).parents[2]


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.caches", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_front_has_what_nothing_beats_in_both() -> None:
    costs = {
        "a": (0.1, 20.0),
        "b": (0.2, 19.0),
        "c": (0.2, 25.0),
        "d": (0.5, 25.0),
        "e": (0.9, 30.0),
        "f": (1, math.inf),
    }
    points = [
        Point(schedule=name, variant="", flops=flops, time=1 - flops, psnr=psnr)
        for name, (flops, psnr) in costs.items()
    ]
    assert [point.schedule for point in front(points, lambda point: point.flops)] == ["a", "c", "e", "f"]
    # The dearest in FLOPs takes the least time here, and is the best.
    assert [point.schedule for point in front(points, lambda point: point.time)] == ["f"]


def test_every_schedule_meets_every_cache_and_calibrated_ones_none() -> None:
    every = combinations(["LSL"], ["L1 S2 L1"], ["off", "scm:slow"], 4, [3])
    assert [(each.name, each.job.schedule, each.job.steps, each.job.cache) for each in every] == [
        ("LLL", "L4", 4, "off"),
        ("LLL, scm:slow", "L4", 4, "scm:slow"),
        ("LLL, 3 steps", "L3", 3, "off"),
        ("LLL, 3 steps, dpm++", "L3", 3, "off"),
        ("LSL", "L2 S1 L1", 4, "off"),
        ("LSL, scm:slow", "L2 S1 L1", 4, "scm:slow"),
        ("LSL, 3 steps", "L1 S1 L1", 3, "off"),
        ("LSL, 3 steps, dpm++", "L1 S1 L1", 3, "off"),
        ("L1 S2 L1", "L1 S2 L1", 4, "off"),
    ]
    assert [each.job.solver for each in every].count("dpm++") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "1"], "1 prompts were asked for, but a spread needs at least 2"),
        (["--checkpoints", "nowhere"], "nowhere lacks large and small and features.safetensors"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["caches", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(FlowBlendingError, match=message):
        main()
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_program_on_the_trained_pair(tmp_path: Path) -> None:
    caches = ("off", "magcache", "easycache:0.05,3")
    options = ("--prompts", "2", "--steps", "12", "--schedules", "LSL", "--caches", *caches, "--fewer", "6")
    done = run("--out", tmp_path, *options, "--calibration-prompts", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "caches.json").read_text())
    flops = {row["name"]: row["flops"] for row in content["rows"] if row["runs"]}
    assert flops["LLL"] == 1
    assert flops["LLL, 6 steps"] == pytest.approx(0.5)
    assert flops["LSL, magcache"] < flops["LSL"]
    # Decided while it samples: what was really called is counted.
    assert flops["LLL, easycache:0.05,3"] <= 1
    calibrated = [name for name in flops if re.fullmatch(r"([LS]\d+ ?)+", name)]
    assert 1 <= len(calibrated) <= 2
    for name in calibrated:
        assert flops[name] <= 0.665
    table = (tmp_path / "caches.md").read_text()
    assert table.count("\n| L") == len(flops) - sum(name.startswith("S") for name in calibrated)
    with Image.open(tmp_path / "caches.png") as image:
        assert image.width > 1000
