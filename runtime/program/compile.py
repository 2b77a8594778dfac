"""From schedule, solver, noise levels, guidance and step caches to a sampling program."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from flowblending import UsageError
from flowblending.contracts.models import Model
from flowblending.contracts.program import Program, Step
from flowblending.runtime.program.caches.easycache import observed, reused
from flowblending.runtime.program.caches.policy import Outline, StepCache, decide
from flowblending.runtime.program.caches.velocity import velocities
from flowblending.runtime.program.noise_levels import noise_levels
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid
from flowblending.runtime.program.solvers.registry import solve
from flowblending.runtime.program.strength import levels_from, schedule_from, steps_left_out, visits_left_out
from flowblending.runtime.program.visits import visits_of


def compile_program(
    *,
    schedule: StageSchedule,
    models: Mapping[str, Model],
    solver: str,
    grid: Grid,
    latent_shape: tuple[int, int, int, int],
    guidance: float,
    batched: bool,
    guidance_rescale: float = 0.0,
    restart_at_switch: bool = False,
    cache: Sequence[StepCache] = (),
    architectures: Mapping[str, str | None] | None = None,
    constants: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    engine_guidance: Mapping[str, float] | None = None,
    strength: float = 1.0,
) -> Program:
    """Compile a trajectory.

    Args:
        schedule: the model of every step, and what its stages have of their own (see
            `flowblending.runtime.program.noise_levels`).
        models: by letter, all that the schedule has. What a model was distilled to counts where a stage has nothing of
            its own.
        solver: the name of one of `flowblending.runtime.program.solvers.registry.SOLVERS`.
        grid: noise levels of as many steps as the schedule has.
        latent_shape: [C, F, H, W] of what is sampled.
        guidance: scale g of classifier-free guidance, velocity = g * cond + (1 - g) * uncond (arXiv 2207.12598);
            1 or less runs the conditional branch only, as WanPipeline, LTXPipeline and LTXConditionPipeline do.
            Stages and models with a scale of their own take that.
        batched: both branches in one call, uncond first, as the LTX pipelines do; else cond and then uncond in
            two calls, as WanPipeline does.
        guidance_rescale: phi of guidance rescale (arXiv 2305.08891, section 3.4), in [0, 1], at every guided step; 0 is
            off.
        restart_at_switch: forget a multistep solver's history at every stage's first step, instead of mixing the
            clean estimates of both models.
        cache: policies that leave out engine calls; see `flowblending.runtime.program.caches`.
        architectures: published names of the engines, for caches with constants of their own.
        constants: those measured on the bundle, by cache and engine, which go before the published ones.
        engine_guidance: by engine, a scale in place of ``guidance``; stages and models that have their own keep it.
        strength: the share of the steps that is made, the last ones; see `flowblending.runtime.program.strength`.

    Raises:
        UsageError: ``guidance`` is not finite, the rescaling or the strength is out of its bounds, the solver is
            unknown, a stage's timesteps are out of place, or a cache does not fit the run.
        ValueError: schedule and grid have different numbers of steps.
    """
    if not math.isfinite(guidance):
        raise UsageError(f"The guidance scale is {guidance}, but a finite number was expected; give one such as 5.")
    if not 0.0 <= guidance_rescale <= 1.0:
        raise UsageError(
            f"The guidance rescale is {guidance_rescale}, but a number from 0 to 1 was expected; give one such as 0.7."
        )
    sampling = {letter: model.sampling for letter, model in models.items() if model.sampling is not None}
    visited = noise_levels(schedule, grid, sampling)
    first = steps_left_out(schedule.steps, strength)
    skip = visits_left_out(visited, grid, first) if first else 0
    whole = visits_of(visited.visits, models, visited.grid, engine_guidance).begun_at(skip)
    outline = Outline(
        schedule=whole,
        timesteps=visited.grid.timesteps,
        guided=guidance > 1.0,
        architectures=architectures or {},
        constants=constants or {},
    )
    decisions = decide(cache, outline, skip).rest(skip)
    visits, left = whole.rest(skip), levels_from(visited, skip)
    calls = velocities(visits, decisions, guidance=guidance, batched=batched, rescale=guidance_rescale)
    restarts = frozenset(each - skip for each in visited.restarts if each > skip)
    restarts |= visits.switches if restart_at_switch else frozenset()
    solved = functools.partial(solve, solver, left.sigmas, restarts=restarts)
    updates = solved(velocities=[each.velocity for each in calls])
    scales = visits.guidance(guidance)
    levels = zip(visits.models, left.timesteps, left.sigmas[:-1], scales, strict=True)
    program = Program(
        schedule=str(schedule_from(visited, first, skip)),
        solver=solver,
        guidance=guidance,
        guidance_rescale=guidance_rescale if any(scale > 1.0 for scale in scales) else 0.0,
        latent_shape=latent_shape,
        steps=tuple(
            Step(
                model=model,
                timestep=timestep,
                sigma=sigma,
                guidance=None if scale == guidance else scale,
                instructions=(*each.calls, *update),
            )
            for (model, timestep, sigma, scale), each, update in zip(levels, calls, updates, strict=True)
        ),
    )
    if decisions.online is None:
        return program
    # A step's update reads no other step's velocity, so that those of computed and skipped steps may alternate.
    reuse = solved(velocities=[reused(each.velocity) for each in calls])
    starts = visits.switches | {0}
    return observed(program, decisions.online, guided=any(outline.uncond[skip:]), starts=starts, reuse=reuse)
