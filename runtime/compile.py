"""From schedule, solver, noise levels and guidance to a sampling program."""

from __future__ import annotations

import math

from flowblending import UsageError
from flowblending.runtime.combination import Combination, slot
from flowblending.runtime.program import COND, UNCOND, VELOCITY, Program, Run, Step
from flowblending.runtime.schedule import StageSchedule
from flowblending.runtime.sigmas import Grid
from flowblending.runtime.solver import solve


def compile_program(
    *,
    schedule: StageSchedule,
    solver: str,
    grid: Grid,
    guidance: float,
    batched: bool,
    restart_at_switch: bool = False,
) -> Program:
    """Compile a trajectory.

    Args:
        schedule: the model of every step.
        solver: ``unipc``, ``dpm++`` or ``euler``.
        grid: noise levels of as many steps as the schedule has.
        guidance: scale g of classifier-free guidance, velocity = g * cond + (1 - g) * uncond (arXiv 2207.12598);
            1 or less runs the conditional branch only, as WanPipeline, LTXPipeline and LTXConditionPipeline do.
        batched: both branches in one call, uncond first, as the LTX pipelines do; else cond and then uncond in
            two calls, as WanPipeline does.
        restart_at_switch: forget a multistep solver's history whenever the model changes, instead of mixing the
            clean estimates of both models.

    Raises:
        UsageError: ``guidance`` is not finite, or the solver is unknown.
        ValueError: schedule and grid have different numbers of steps.
    """
    if not math.isfinite(guidance):
        raise UsageError(f"The guidance scale is {guidance}, but a finite number was expected; give one such as 5.")
    updates = solve(
        solver,
        grid.sigmas,
        velocity=_velocity(guidance),
        restarts=schedule.switches if restart_at_switch else frozenset(),
    )
    return Program(
        schedule=str(schedule),
        solver=solver,
        guidance=guidance,
        steps=tuple(
            Step(model=model, timestep=timestep, sigma=sigma, instructions=(*_runs(model, guidance, batched), *update))
            for model, timestep, sigma, update in zip(
                schedule.models, grid.timesteps, grid.sigmas[:-1], updates, strict=True
            )
        ),
    )


def _velocity(guidance: float) -> Combination:
    """Guidance as a sum of slots: it becomes part of the solver's instructions, and costs no pass of its own."""
    if guidance > 1.0:
        return guidance * slot(COND) + (1.0 - guidance) * slot(UNCOND)
    return slot(VELOCITY)


def _runs(model: str, guidance: float, batched: bool) -> tuple[Run, ...]:
    if guidance <= 1.0:
        return (Run(model=model, branches=(COND,), out=(VELOCITY,)),)
    if batched:
        return (Run(model=model, branches=(UNCOND, COND), out=(UNCOND, COND)),)
    return tuple(Run(model=model, branches=(branch,), out=(branch,)) for branch in (COND, UNCOND))
