"""Which model runs at which step: ``LSL``, ``L20 S20 L10`` and ``L@0.82 S@0.43:g1 L`` as plain data.

A schedule knows letters. Which models they stand for, and which engines those are, the bundle says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.runtime.program.boundaries import Boundary, check_order, round_half_up
from flowblending.runtime.program.stage import FORMS, OpenStage, Stage, read_open_stage, read_stage

if TYPE_CHECKING:
    from flowblending.runtime.program.sigmas import Grid

_NAME = re.compile(r"[A-Z]+")
_SHARES = 3
"""Stages of a name whose boundaries the family gives."""


@dataclass(frozen=True)
class StageSchedule:
    """The stages of a run. `parse` and `of` make one of what belongs together, however it was written.

    Attributes:
        stages: at least one.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, letters: Iterable[str]) -> StageSchedule:
        """The schedule that runs the model of a letter at each step, as the run goes."""
        return cls(_joined(Stage(letter=letter, steps=1) for letter in letters))

    @classmethod
    def parse(
        cls,
        text: str,
        steps: int,
        early: float,
        late: float,
        *,
        boundaries: Sequence[Boundary] = (),
        grid: Grid | None = None,
    ) -> StageSchedule:
        """Read a schedule.

        Args:
            text: stage letters (``LSL``: the first ``early`` share of the steps, the middle, the last ``late``
                share; of any number of stages if the boundaries are given) or explicit runs (``L20 S20 L10``), which
                may say where they end in place of their steps (``L@0.82 S@0.43 L``) and may have a guidance scale and
                timesteps of their own (``S20:g1:t981,909,725``); upper or lower case.
            steps: how many steps to schedule.
            early: share of the steps, in [0, 1], that the first stage of a named schedule takes.
            late: share that its last stage takes.
            boundaries: between the stages of a named schedule, in place of these shares.
            grid: noise levels of so many steps; needed only where there are boundaries.

        Raises:
            UsageError: ``steps`` is not positive, ``text`` is no schedule of that many steps, or a stage has none.
        """
        if steps < 1:
            raise _too_few(steps)
        if _is_name(text):
            return cls(_joined(_named(text.strip().upper(), steps, (early, late), boundaries, grid)))
        if boundaries:
            raise UsageError(
                f"Boundaries are for a schedule of stage letters such as LSL, but {text.strip() or 'an empty one'} was "
                "given; write them behind its letters: L@0.82 S@0.43 L."
            )
        if cls.own_steps(text) is None:
            return cls(_joined(_placed(_open_stages(text), steps, grid)))
        schedule = cls.runs(text)
        if schedule.steps != steps:
            raise _other_sum(str(schedule), schedule.steps, steps)
        return schedule

    @classmethod
    def own_steps(cls, text: str) -> int | None:
        """How many steps a schedule says that it has.

        None for a name such as ``LSL``, and where a stage says where it ends: they have any number.

        Raises:
            UsageError: ``text`` is no schedule.
        """
        if _is_name(text):
            return None
        lengths = [stage.length for stage in _open_stages(text)]
        known = [length for length in lengths if isinstance(length, int)]
        return sum(known) if len(known) == len(lengths) else None

    @classmethod
    def letters_in(cls, text: str) -> tuple[str, ...]:
        """Every letter that a schedule names, each once, in its order.

        Raises:
            UsageError: ``text`` is no schedule.
        """
        stages = text.strip().upper() if _is_name(text) else [stage.letter for stage in _open_stages(text)]
        return tuple(dict.fromkeys(stages))

    @classmethod
    def runs(cls, text: str) -> StageSchedule:
        """Read explicit runs, such as ``str`` prints; they say how many steps they have.

        Raises:
            UsageError: ``text`` is no such schedule.
        """
        return cls(_joined(read_stage(word) for word in _words(text)))

    @classmethod
    def scaled(cls, runs: str, steps: int) -> StageSchedule:
        """The schedule of ``runs`` (``L14 S26 L10``) stretched to a number of steps.

        Every step takes the model of the step that lies at the same place of the run, measured at the steps' middles.

        Raises:
            UsageError: ``steps`` is not positive, or ``runs`` are none.
        """
        letters = cls.runs(runs).letters
        if steps < 1:
            raise _too_few(steps)
        return cls.of(letters[(2 * step + 1) * len(letters) // (2 * steps)] for step in range(steps))

    @classmethod
    def fitted(cls, text: str, grid: Grid) -> StageSchedule:
        """The schedule that was found for another run, on the noise levels of this one.

        Runs are stretched, as by `scaled`. Stages that say where they end (``L@0.82 S@0.43 L``) end there, and those
        that no step is left for are left out: where a run has few steps, that is no reason to refuse it.

        Raises:
            UsageError: ``text`` is none of both.
        """
        steps = len(grid.timesteps)
        if cls.own_steps(text) is not None:
            return cls.scaled(text, steps)
        stages, start = list[Stage](), 0
        for stage in _open_stages(text):
            end = _end(stage, start, steps, grid)
            if end > start:
                stages.append(stage.of(end - start))
                start = end
        return cls(_joined(stages))

    @property
    def steps(self) -> int:
        """How many steps the run has, those that a stage's own timesteps stand in for included."""
        return sum(stage.steps for stage in self.stages)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letter of every step."""
        return tuple(stage.letter for stage in self.stages for _ in range(stage.steps))

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


def _named(
    letters: str, steps: int, shares: tuple[float, float], boundaries: Sequence[Boundary], grid: Grid | None
) -> list[Stage]:
    """The stages of a name."""
    if boundaries or len(letters) == 1:
        if len(boundaries) != len(letters) - 1:
            given = f"{len(boundaries)} boundar{'y was' if len(boundaries) == 1 else 'ies were'}"
            raise UsageError(
                f"{given} given for the schedule {letters}, but its stages have {len(letters) - 1} between them; give "
                "one for each switch, or other letters."
            )
        ends = zip(letters, (*boundaries, None), strict=True)
        return _placed([OpenStage(letter=letter, length=end) for letter, end in ends], steps, grid)
    if len(letters) != _SHARES:
        raise UsageError(
            f"The schedule {letters} has {len(letters)} stages, but a model family gives the boundaries of three; "
            f"give boundaries ({len(letters) - 1}), three letters such as LSL, or runs such as L20 S20 L10."
        )
    lengths = _stages(steps, *shares)
    return [Stage(letter=letter, steps=length) for letter, length in zip(letters, lengths, strict=True) if length]


def _placed(stages: Sequence[OpenStage], steps: int, grid: Grid | None) -> list[Stage]:
    """The stages of a run, of which some say where they end.

    Raises:
        UsageError: one has no step, or they are not the whole run.
    """
    check_order([each.length for each in stages if isinstance(each.length, Boundary)], "The schedule")
    placed, start = list[Stage](), 0
    for stage in stages:
        last = stage is stages[-1]
        if stage.length is None and not last:
            raise UsageError(
                f"The stage {stage} says neither how many steps it has nor where it ends, which only the last may "
                f"leave to the run; give it steps, or an end such as {stage}@0.82."
            )
        if isinstance(stage.length, Boundary) and last:
            raise UsageError(
                f"The last stage {stage} ends before the run does; leave out where it ends, or add a stage behind it."
            )
        end = _end(stage, start, steps, grid)
        if end <= start:
            raise _no_step(stage, len(placed) + 1, start, steps, grid)
        placed.append(stage.of(end - start))
        start = end
    if start != steps:
        raise _other_sum(" ".join(map(str, placed)), start, steps)
    return placed


def _end(stage: OpenStage, start: int, steps: int, grid: Grid | None) -> int:
    """The first step behind a stage."""
    if isinstance(stage.length, int):
        return start + stage.length
    if stage.length is None:
        return steps
    if grid is None or len(grid.timesteps) != steps:
        raise ValueError("boundaries of stages need the noise levels of the run")
    return stage.length.step(grid)


def _no_step(stage: OpenStage, number: int, start: int, steps: int, grid: Grid | None) -> UsageError:
    around = [
        f"step {step + 1} has sigma {grid.sigmas[step]:.4f} (timestep {grid.timesteps[step]:.4g})"
        for step in (start - 1, start)
        if grid is not None and 0 <= step < steps
    ]
    return UsageError(
        f"Of {steps} steps none is left for stage {number}, {stage}: {' and '.join(around) or 'all are taken'}; "
        "move the boundaries, take more steps, or leave the stage out."
    )


def _words(text: str) -> list[str]:
    words = text.split()
    if not words:
        raise UsageError(f"The schedule is empty; give {FORMS}.")
    return words


def _open_stages(text: str) -> list[OpenStage]:
    return [read_open_stage(word) for word in _words(text)]


def _other_sum(schedule: str, found: int, steps: int) -> UsageError:
    return UsageError(
        f"The runs of the schedule {schedule} add up to {found} steps, but {steps} steps were "
        "asked for; change the runs or the number of steps."
    )


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
    first = min(max(round_half_up(early * steps), least_early), steps - least_late - least_middle)
    last = min(max(round_half_up(late * steps), least_late), steps - first - least_middle)
    return first, steps - first - last, last
