"""Which model runs at which step: ``LSL``, ``L20 S20 L10`` and ``L20 S20:g1:t975,725 L10`` as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flowblending import UsageError
from flowblending.runtime.program.stage import FORMS, Stage, model_of, read_stage

_NAME = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class StageSchedule:
    """The stages of a run. `parse` and `of` make one of what belongs together, however it was written.

    Attributes:
        stages: at least one.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, models: Iterable[str]) -> StageSchedule:
        """The schedule that runs ``large`` or ``small`` at each step, as the run goes."""
        return cls(_joined(Stage(model=model, steps=1) for model in models))

    @classmethod
    def parse(cls, text: str, steps: int, early: float, late: float) -> StageSchedule:
        """Read a schedule.

        Args:
            text: three stage letters (``LSL``: the first ``early`` share of the steps, the middle, the last ``late``
                share) or explicit runs (``L20 S20 L10``), which may have a guidance scale and timesteps of their own
                (``S20:g1:t981,909,725``); upper or lower case.
            steps: how many steps to schedule.
            early: share of the steps, in [0, 1], that the first stage of a named schedule takes.
            late: share that its last stage takes.

        Raises:
            UsageError: ``steps`` is not positive, or ``text`` is no schedule of that many steps.
        """
        if steps < 1:
            raise _too_few(steps)
        if _is_name(text):
            named = zip(text.strip().upper(), _stages(steps, early, late), strict=True)
            models = [(model_of(letter), length) for letter, length in named]
            return cls(_joined(Stage(model=model, steps=length) for model, length in models if length))
        schedule = cls.runs(text)
        if schedule.steps != steps:
            raise UsageError(
                f"The runs of the schedule {schedule} add up to {schedule.steps} steps, but {steps} steps were "
                "asked for; change the runs or the number of steps."
            )
        return schedule

    @classmethod
    def own_steps(cls, text: str) -> int | None:
        """How many steps a schedule says that it has; None for a name such as ``LSL``, which has any number.

        Raises:
            UsageError: ``text`` is no schedule.
        """
        return None if _is_name(text) else cls.runs(text).steps

    @classmethod
    def runs(cls, text: str) -> StageSchedule:
        """Read explicit runs, such as ``str`` prints; they say how many steps they have.

        Raises:
            UsageError: ``text`` is no such schedule.
        """
        words = text.split()
        if not words:
            raise UsageError(f"The schedule is empty; give {FORMS}.")
        return cls(_joined(read_stage(word) for word in words))

    @classmethod
    def scaled(cls, runs: str, steps: int) -> StageSchedule:
        """The schedule of ``runs`` (``L14 S26 L10``) stretched to a number of steps.

        Every step takes the model of the step that lies at the same place of the run, measured at the steps' middles.

        Raises:
            UsageError: ``steps`` is not positive, or ``runs`` are none.
        """
        models = cls.runs(runs).models
        if steps < 1:
            raise _too_few(steps)
        return cls.of(models[(2 * step + 1) * len(models) // (2 * steps)] for step in range(steps))

    @property
    def steps(self) -> int:
        """How many steps the run has, those that a stage's own timesteps stand in for included."""
        return sum(stage.steps for stage in self.stages)

    @property
    def models(self) -> tuple[str, ...]:
        """The model of every step."""
        return tuple(stage.model for stage in self.stages for _ in range(stage.steps))

    @property
    def switches(self) -> frozenset[int]:
        """The first step of every stage but the first: where the model changes, or what it is asked for."""
        return frozenset(sum(stage.steps for stage in self.stages[:count]) for count in range(1, len(self.stages)))

    def guidance(self, otherwise: float) -> tuple[float, ...]:
        """The guidance scale of every step: its stage's, or ``otherwise`` where the stage has none."""
        scales = [otherwise if stage.guidance is None else stage.guidance for stage in self.stages]
        return tuple(scale for scale, stage in zip(scales, self.stages, strict=True) for _ in range(stage.steps))

    def __str__(self) -> str:
        return " ".join(map(str, self.stages))


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text.strip().upper()) is not None


def _joined(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages, those that continue the one before as one with it."""
    joined: list[Stage] = []
    for stage in stages:
        if joined and stage.continues(joined[-1]):
            joined[-1] = replace(joined[-1], steps=joined[-1].steps + stage.steps)
        else:
            joined.append(stage)
    return tuple(joined)


def _too_few(steps: int) -> UsageError:
    return UsageError(f"{steps} steps were asked for, but at least 1 is needed; give a positive number of steps.")


def _stages(steps: int, early: float, late: float) -> tuple[int, int, int]:
    """Lengths of the three stages of a named schedule.

    Half a step rounds up, and every share above 0 gets at least one step; where there are too few steps for
    that, the early stage comes first (it decides structure and motion), then the late one, then the middle.
    """
    if not (early >= 0 and late >= 0 and early + late <= 1 + 1e-9):
        raise UsageError(
            f"The early share {early:g} and the late share {late:g} are no shares of one run; "
            "give numbers from 0 to 1 that add up to 1 at most."
        )
    middle = early + late < 1 - 1e-9
    least_early = min(int(early > 0), steps)
    least_late = min(int(late > 0), steps - least_early)
    least_middle = min(int(middle), steps - least_early - least_late)
    first = min(max(_round(early * steps), least_early), steps - least_late - least_middle)
    last = min(max(_round(late * steps), least_late), steps - first - least_middle)
    return first, steps - first - last, last


def _round(value: float) -> int:
    """Half up; the small term undoes products such as 0.29 * 50 = 14.499999999999998."""
    return math.floor(value + 0.5 + 1e-9)
