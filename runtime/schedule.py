"""Which model runs at which step: ``LSL`` and ``L20 S20 L10`` as plain data."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from flowblending import UsageError
from flowblending.export.spec import LARGE, SMALL

MODELS = {"L": LARGE, "S": SMALL}
LETTERS = {model: letter for letter, model in MODELS.items()}
AUTO = "auto"
"""The schedule that a bundle was calibrated to, or LSL."""

_NAME = re.compile(r"[A-Z]{3}")
_RUN = re.compile(r"([A-Z])([0-9]{1,9})")
_FORMS = "a name such as LSL or runs such as L20 S20 L10"


@dataclass(frozen=True)
class StageSchedule:
    """The model of every step. Two schedules are equal when they run the same models, however they were written.

    Attributes:
        models: ``large`` or ``small`` for each step, at least one.
    """

    models: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, steps: int, early: float, late: float) -> StageSchedule:
        """Read a schedule.

        Args:
            text: three stage letters (``LSL``: the first ``early`` share of the steps, the middle, the last ``late``
                share) or explicit runs (``L20 S20 L10``); upper or lower case.
            steps: how many steps to schedule.
            early: share of the steps, in [0, 1], that the first stage of a named schedule takes.
            late: share that its last stage takes.

        Raises:
            UsageError: ``steps`` is not positive, or ``text`` is no schedule of that many steps.
        """
        if steps < 1:
            raise _too_few(steps)
        words = text.upper().split()
        if not words:
            raise UsageError(f"The schedule is empty; give {_FORMS}.")
        if len(words) == 1 and _NAME.fullmatch(words[0]):
            runs = list(zip(words[0], _stages(steps, early, late), strict=True))
        else:
            runs = [_run(word) for word in words]
            total = sum(length for _, length in runs)
            if total != steps:
                raise UsageError(
                    f"The runs of the schedule {' '.join(words)} add up to {total} steps, but {steps} steps were "
                    "asked for; change the runs or the number of steps."
                )
        return cls(tuple(_model(letter) for letter, length in runs for _ in range(length)))

    @classmethod
    def scaled(cls, runs: str, steps: int) -> StageSchedule:
        """The schedule of ``runs`` (``L14 S26 L10``) stretched to a number of steps.

        Every step takes the model of the step that lies at the same place of the run, measured at the steps' middles.

        Raises:
            UsageError: ``steps`` is not positive, or ``runs`` are none.
        """
        words = [_run(word) for word in runs.split()]
        models = cls.parse(runs, sum(length for _, length in words), 0.0, 0.0).models
        if steps < 1:
            raise _too_few(steps)
        return cls(tuple(models[(2 * step + 1) * len(models) // (2 * steps)] for step in range(steps)))

    @property
    def switches(self) -> frozenset[int]:
        """The steps whose model is not the one of the step before."""
        return frozenset(
            step for step, (before, model) in enumerate(itertools.pairwise(self.models), start=1) if before != model
        )

    def __str__(self) -> str:
        return " ".join(f"{LETTERS[model]}{len(list(run))}" for model, run in itertools.groupby(self.models))


def _too_few(steps: int) -> UsageError:
    return UsageError(f"{steps} steps were asked for, but at least 1 is needed; give a positive number of steps.")


def _run(word: str) -> tuple[str, int]:
    match = _RUN.fullmatch(word)
    if match is None:
        raise UsageError(f"{word} is neither a schedule nor a run of one; give {_FORMS}.")
    letter, length = match[1], int(match[2])
    if length == 0:
        raise UsageError(f"The run {word} has no steps; leave it out or give it at least 1.")
    return letter, length


def _model(letter: str) -> str:
    if letter not in MODELS:
        raise UsageError(f"The stage letter {letter} is unknown; use L for the large model and S for the small one.")
    return MODELS[letter]


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
    least_early = min(early > 0, steps)
    least_late = min(late > 0, steps - least_early)
    least_middle = min(middle, steps - least_early - least_late)
    first = min(max(_round(early * steps), least_early), steps - least_late - least_middle)
    last = min(max(_round(late * steps), least_late), steps - first - least_middle)
    return first, steps - first - last, last


def _round(value: float) -> int:
    """Half up; the small term undoes products such as 0.29 * 50 = 14.499999999999998."""
    return math.floor(value + 0.5 + 1e-9)
