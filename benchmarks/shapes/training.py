"""The training loop: seeded, resumable, with a progress bar and a log; it knows no task.

State lies in one file per task and is replaced whole. A run that was killed goes on at the last saved step and ends
with the weights of a run that was not, on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

SAVE_SECONDS = 60.0
LOG_STEPS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task is trained.

    Args:
        steps: optimiser steps.
        rate: AdamW's learning rate after the warm-up, from which it falls to a twentieth along half a cosine.
        warmup: steps.
        average: decay of the exponential moving average of the weights, which is what the checkpoint holds.
        clip: largest norm of the gradient.
    """

    steps: int
    rate: float
    warmup: int = 100
    average: float = 0.999
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        done = min(step / self.steps, 1.0)
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.525 + 0.475 * math.cos(math.pi * done))


class Task(Protocol):
    """What is trained."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Trained in place; on the device already."""

    @property
    def recipe(self) -> Recipe:
        """Of the training."""

    def loss(self, step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The loss of a step, and figures for the log; all randomness comes from the step."""


class Trainer:
    """One task's weights, their average and the optimiser's state.

    Args:
        task: its module is on the device already.
        folder: ``<task>.pt`` (state) and ``<task>.jsonl`` (log) are written here.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.state_file = folder / f"{task.name}.pt"
        self.log_file = folder / f"{task.name}.jsonl"
        self.step = 0
        self.seconds = 0.0
        self.average = {name: value.detach().clone() for name, value in task.module.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            task.module.parameters(), lr=task.recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        if self.state_file.exists():
            self._load()

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.state_file, map_location=_device(self.task.module), weights_only=True)
        self.task.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def save(self) -> None:
        """Replace the state file; a reader sees the old one or the new one."""
        state = {
            "module": self.task.module.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        unfinished = self.state_file.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self.state_file)

    def run(self, progress: Progress, *, until: float = math.inf) -> bool:
        """Train to the recipe's last step, or until ``time.monotonic()`` reaches ``until``; True when finished."""
        recipe = self.task.recipe
        bar = progress.add_task(self.task.name, total=recipe.steps, completed=self.step, note="")
        saved = started = time.monotonic()
        before = self.seconds
        try:
            while self.step < recipe.steps and time.monotonic() < until:
                figures = self._advance()
                now = time.monotonic()
                self.seconds = before + now - started
                progress.update(bar, completed=self.step, note=f"loss {figures['loss']:.4f}")
                if self.step % LOG_STEPS == 0:
                    self._log(figures)
                if now - saved > SAVE_SECONDS:
                    self.save()
                    saved = now
        finally:
            self.save()
        return self.step >= recipe.steps

    def _advance(self) -> dict[str, float]:
        recipe, module = self.task.recipe, self.task.module
        rate = recipe.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, figures = self.task.loss(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        # torch leaves backward without annotations.
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        self.optimiser.step()
        self.step += 1
        decay = min(recipe.average, self.step / (self.step + 10))
        current = module.state_dict()
        with torch.no_grad():
            for name, value in self.average.items():
                value.lerp_(current[name], 1 - decay) if value.is_floating_point() else value.copy_(current[name])
        return {"loss": loss.item(), **figures, "gradient": norm.item(), "rate": rate}

    def _log(self, figures: Mapping[str, float]) -> None:
        line = {"step": self.step, "seconds": round(self.seconds, 1)}
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | rounded) + os.linesep)


class OutOfTimeError(Exception):
    """A session's time is over; everything is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One call of a command that trains.

    Args:
        work: folder of states and logs.
        seed: of everything random.
        device: where.
        compiled: compile the networks.
        until: ``time.monotonic()`` at which to stop.
        progress: bars go here.
    """

    work: Path
    seed: int
    device: torch.device
    compiled: bool
    until: float
    progress: Progress

    def train(self, task: Task) -> None:
        """Train a task to its end, and leave the averaged weights in its module, in evaluation mode.

        Raises:
            OutOfTimeError: it is not finished.
        """
        trainer = Trainer(task, self.work)
        if not trainer.run(self.progress, until=self.until):
            raise OutOfTimeError
        task.module.load_state_dict(trainer.average)
        task.module.eval().requires_grad_(False)

    def new(self, module: nn.Module) -> None:
        """Move a fresh module to the device, ready to train."""
        module.to(self.device).train()


@contextlib.contextmanager
def averaged(trainer: Trainer) -> Iterator[nn.Module]:
    """The task's module with the averaged weights inside; the trained ones are put back afterwards."""
    module = trainer.task.module
    trained = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(trainer.average)
    module.eval()
    try:
        yield module
    finally:
        module.load_state_dict(trained)
        module.train()


def progress_bar() -> Progress:
    """The bar of all trainings."""
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
