"""The training loop: what is resumed equals what was never interrupted, and files are whole."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.shapes.training import LOG_STEPS, Recipe, Trainer, progress_bar


class Line:
    """Learns y = 3x - 1 from random points."""

    name = "line"

    def __init__(self, steps: int, *, fails_at: int | None = None) -> None:
        torch.manual_seed(3)
        self.module = nn.Linear(1, 1)
        self.recipe = Recipe(steps=steps, rate=0.1, warmup=5, average=0.9)
        self.fails_at = fails_at

    def loss(self, step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        if step == self.fails_at:
            raise KeyboardInterrupt
        x = torch.randn(32, 1, generator=torch.Generator().manual_seed(step))
        return (self.module(x) - (3 * x - 1)).square().mean(), {"slope": self.module.weight.item()}


def train(task: Line, folder: Path, until: float = math.inf) -> Trainer:
    trainer = Trainer(task, folder)
    with progress_bar() as progress:
        trainer.run(progress, until=until)
    return trainer


def test_the_line_is_learned_and_logged(tmp_path: Path) -> None:
    trainer = train(Line(300), tmp_path)
    weights = trainer.average
    assert weights["weight"].item() == pytest.approx(3, abs=0.02)
    assert weights["bias"].item() == pytest.approx(-1, abs=0.02)
    lines = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(LOG_STEPS, 301, LOG_STEPS))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]) == {"step", "seconds", "loss", "slope", "gradient", "rate"}


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = train(Line(40), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Line(40, fails_at=17), tmp_path / "parts")
    resumed = Trainer(Line(40), tmp_path / "parts")
    assert resumed.step == 17
    parts = train(Line(40), tmp_path / "parts")
    assert parts.step == whole.step == 40
    for name, value in whole.average.items():
        assert torch.equal(value, parts.average[name])
        assert torch.equal(whole.task.module.state_dict()[name], parts.task.module.state_dict()[name])


def test_time_that_is_over_saves_and_says_unfinished(tmp_path: Path) -> None:
    trainer = Trainer(Line(40), tmp_path)
    with progress_bar() as progress:
        assert not trainer.run(progress, until=time.monotonic())
    assert trainer.state_file.exists() and not list(tmp_path.glob("*.part"))
    assert Trainer(Line(40), tmp_path).step == 0


def test_the_average_lags_behind_by_its_decay(tmp_path: Path) -> None:
    task = Line(1)
    before = task.module.weight.item()
    trainer = train(task, tmp_path)
    # The decay starts low, so that the first weights, which are random, are soon forgotten: 1 / 11 after one step.
    expected = before + (task.module.weight.item() - before) * (1 - 1 / 11)
    assert trainer.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    recipe = Recipe(steps=1000, rate=1e-3, warmup=100)
    assert recipe.rate_at(0) == pytest.approx(1e-5)
    assert recipe.rate_at(99) == pytest.approx(1e-3, rel=0.03)
    assert recipe.rate_at(500) == pytest.approx(0.525e-3)
    assert recipe.rate_at(1000) == pytest.approx(5e-5)
