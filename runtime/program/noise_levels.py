"""From a schedule to the noise levels that a run visits, in which a stage may have timesteps of its own.

A step-distilled model knows few timesteps, and was trained without guidance. The authors of FlowBlending run one in
place of the small model: large, distilled, large. Its stage stands in for steps of the run, as every stage does, but
visits its own levels in their place, sigma = timestep / 1000. The step before it ends at its first level, and its last
step at the level where the next stage begins: no model sees a noise level that is not its own, and there is one sampler
state throughout.

A multistep solver's history is reset where such a stage begins, at each of its steps, and where it ends. The history
stands for the slope of one function, the clean estimate along the noise levels. A distilled model's estimate is another
function: it is trained so that a single step of first order lands at its next timestep (a chord of the trajectory,
where the large model gives a tangent), so that there is no error of first order to correct, and a difference between
the two models is no slope; it would be multiplied by the ratio of the two step lengths, which have nothing to do with
one another. Every solver therefore takes Euler's steps in such a stage, and begins anew behind it. So it does in a
stage that asks for Euler's steps at the run's own levels, as a distilled model may. Between other stages that share the
run's levels the history is kept, also where the guidance changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowblending import UsageError
from flowblending.contracts.model_sampling import ModelSampling, write_number
from flowblending.runtime.program.presets import PRESETS
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid
from flowblending.runtime.program.stage import Stage


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """What a run visits.

    Attributes:
        schedule: with the guidance and the timesteps that presets and models ask for filled in.
        visits: the letter and the guidance of every step that is made; with timesteps of its own, each is a stage.
        grid: noise levels of as many steps.
        restarts: steps before which a multistep solver's history is forgotten.
    """

    schedule: StageSchedule
    visits: StageSchedule
    grid: Grid
    restarts: frozenset[int]


def noise_levels(schedule: StageSchedule, grid: Grid, model_sampling: Mapping[str, ModelSampling]) -> NoiseLevels:
    """Lay out a run.

    Args:
        schedule: its stages.
        grid: noise levels of as many steps as the schedule has.
        model_sampling: by letter, what its model was trained for. It counts where the stage does not say, and has no
            preset; of the timesteps, as of a preset's, those that lie in the stage: below the level at which it would
            begin, or at it, and above the next stage's.

    Raises:
        UsageError: a stage has no timesteps in its place, they do not lie between those of its neighbours, or
            there are more steps than the models know noise levels.
        ValueError: schedule and grid have different numbers of steps.
    """
    if schedule.steps != len(grid.timesteps):
        raise ValueError(f"a schedule of {schedule.steps} steps and a grid of {len(grid.timesteps)}")
    stages: list[Stage] = []
    levels: list[Grid] = []
    start = 0
    for stage in schedule.stages:
        end = start + stage.steps
        otherwise = model_sampling.get(stage.letter, ModelSampling())
        sampling = otherwise if stage.preset is None else PRESETS[stage.preset].sampling
        stages.append(_filled(stage, sampling, grid, start, end))
        levels.append(_own(stages[-1].timesteps, grid) if stages[-1].timesteps else _slice(grid, start, end))
        start = end
    _check(stages, levels, grid)
    visits = [visit for stage, level in zip(stages, levels, strict=True) for visit in _visits(stage, level)]
    eulers = [
        stage.euler or bool(stage.timesteps)
        for stage, level in zip(stages, levels, strict=True)
        for _ in level.timesteps
    ]
    return NoiseLevels(
        schedule=StageSchedule(tuple(stages)),
        visits=StageSchedule(tuple(visits)),
        grid=replace(
            grid,
            sigmas=(*(sigma for level in levels for sigma in level.sigmas), 0.0),
            timesteps=tuple(timestep for level in levels for timestep in level.timesteps),
        ),
        restarts=frozenset(
            step for step, (before, now) in enumerate(itertools.pairwise(eulers), start=1) if before or now
        ),
    )


def _filled(stage: Stage, sampling: ModelSampling, grid: Grid, start: int, end: int) -> Stage:
    """A stage in place of the steps from ``start`` to before ``end``, with what its model asks for."""
    if stage.guidance is None:
        stage = replace(stage, guidance=sampling.guidance)
    if stage.timesteps is not None or not sampling.timesteps:
        return stage
    first, last = grid.sigmas[start] if start else 1.0, grid.sigmas[end]
    own = tuple(
        timestep
        for timestep, sigma in zip(sampling.timesteps, _sigmas(sampling.timesteps, grid), strict=True)
        if last < sigma <= first
    )
    if not own:
        whose = f"model {stage.letter}'s own timesteps" if stage.preset is None else f"{stage.preset}'s timesteps"
        instead = f"give it timesteps: {stage}:t* takes the run's" if stage.preset is None else "move its ends"
        raise UsageError(
            f"None of {whose} ({','.join(f'{each:g}' for each in sampling.timesteps)}) lies in the stage {stage}, from "
            f"{first * grid.train_timesteps:.6g} to {last * grid.train_timesteps:.6g}; make the stage longer, or "
            f"{instead}."
        )
    return replace(stage, timesteps=own, preset=None)


def _sigmas(timesteps: Iterable[float], grid: Grid) -> list[float]:
    """As FlowMatchEulerDiscreteScheduler makes them of timesteps: rounded to float32, and then divided."""
    sigmas: list[float] = (np.array(list(timesteps), np.float32) / np.float32(grid.train_timesteps)).tolist()
    return sigmas


def _own(timesteps: tuple[float, ...], grid: Grid) -> Grid:
    return replace(grid, sigmas=tuple(_sigmas(timesteps, grid)), timesteps=timesteps)


def _slice(grid: Grid, start: int, end: int) -> Grid:
    return replace(grid, sigmas=grid.sigmas[start:end], timesteps=grid.timesteps[start:end])


def _visits(stage: Stage, level: Grid) -> list[Stage]:
    count = len(level.timesteps)
    visit = Stage(letter=stage.letter, steps=1, guidance=stage.guidance)
    return [visit] * count if stage.timesteps else [replace(visit, steps=count)]


def _check(stages: Sequence[Stage], levels: Sequence[Grid], grid: Grid) -> None:
    """Refuse timesteps that are out of place."""
    scale = grid.train_timesteps
    total = sum(len(level.timesteps) for level in levels)
    if total > scale:
        raise UsageError(
            f"The schedule has {total} steps, but the models tell {scale} noise levels apart; give its stages "
            "fewer timesteps."
        )
    ends = [*(level.sigmas[0] for level in levels[1:]), 0.0]
    starts = [None, *(level.sigmas[-1] for level in levels[:-1])]
    for stage, level, start, end in zip(stages, levels, starts, ends, strict=True):
        if not stage.timesteps:
            continue
        first, last = level.sigmas[0], level.sigmas[-1]
        if any(before <= after for before, after in itertools.pairwise(level.sigmas)):
            raise UsageError(f"Timesteps of the stage {stage} are so close that they are equal; leave some out.")
        if start is None and not grid.sigmas[1] < first <= 1.0:
            raise UsageError(
                f"The first stage's timesteps begin at {write_number(stage.timesteps[0])}, but it starts from pure "
                f"noise: they must begin above {grid.sigmas[1] * scale:.6g}, at {scale} at most."
            )
        if (start is not None and first >= start) or last <= end:
            above = scale if start is None else start * scale
            raise UsageError(
                f"The timesteps of the stage {stage} must lie below {above:.6g} and above {end * scale:.6g}, "
                "where its neighbours are; change them, or the lengths of the stages."
            )
