"""Beginning a run at a noise level below the first, from latents that are no noise: video to video by strength.

The whole run is laid out first, schedule, caches and all, and the steps above the level are left out then. So every
noise level keeps the model that the schedule gives it, and masks of caches count the steps of the whole run.

Source: ``get_timesteps`` of diffusers' pipeline_wan_video2video.py and pipeline_ltx_condition.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

from flowblending import UsageError
from flowblending.runtime.program.noise_levels import NoiseLevels
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid
from flowblending.runtime.program.stage import Stage


def steps_left_out(steps: int, strength: float) -> int:
    """How many of a run's steps lie above the level at which a strength begins.

    Args:
        steps: of the whole run.
        strength: share of them that is made, above 0 and at most 1; rounded down to whole steps.

    Raises:
        UsageError: it leaves no step, or is out of bounds.
    """
    if not 0.0 < strength <= 1.0:
        raise UsageError(
            f"The strength is {strength:g}, but a number above 0 and at most 1 was expected; give one such as 0.6."
        )
    made = min(int(steps * strength), steps)
    if not made:
        least = math.ceil(1000 / steps) / 1000
        raise UsageError(
            f"A strength of {strength:g} leaves none of {steps} steps; give {least:g} or more, or more steps."
        )
    return steps - made


def visits_left_out(visited: NoiseLevels, grid: Grid, first: int) -> int:
    """How many of the noise levels that a run visits lie above the one of its step ``first``.

    They are as many as the steps before it, but for stages with timesteps of their own.

    Raises:
        UsageError: all of them do.
    """
    level = grid.sigmas[first]
    found = next((index for index, sigma in enumerate(visited.grid.sigmas[:-1]) if sigma <= level), None)
    if found is None:
        raise UsageError(
            f"The schedule {visited.schedule} visits no noise level at or below {level:.4g}, where this strength "
            "begins; give a larger one."
        )
    return found


def schedule_from(visited: NoiseLevels, first: int, visits: int) -> StageSchedule:
    """What is left of a schedule, for people.

    Args:
        first: steps of the run that are left out.
        visits: noise levels that are left out.
    """
    left: list[Stage] = []
    for stage in visited.schedule.stages:
        own = len(stage.timesteps or ())
        count = own or stage.steps
        if visits < count:
            timesteps = stage.timesteps[visits:] if stage.timesteps else stage.timesteps
            steps = max(1, stage.steps - max(first, 0)) if own else stage.steps - visits
            left.append(replace(stage, steps=steps, timesteps=timesteps))
        visits, first = max(visits - count, 0), first - stage.steps
    return StageSchedule(tuple(left))


def levels_from(visited: NoiseLevels, visits: int) -> Grid:
    """The noise levels that are left of those visited."""
    return replace(visited.grid, sigmas=visited.grid.sigmas[visits:], timesteps=visited.grid.timesteps[visits:])
