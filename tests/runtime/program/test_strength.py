"""Runs that begin at a noise level below the first: what diffusers' schedulers do of it, and what is left of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanVideoToVideoPipeline,
)

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.program import COND, LATENTS, UNCOND, Mix, Program, Run
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.program.strength import steps_left_out
from tests.support.manifests import PAIR

Array = npt.NDArray[np.float64]

WAN = SigmaGrid(kind="shifted", shift=3.0)
LATENT = (4, 3, 5, 7)
START = np.random.default_rng(0).standard_normal((1, *LATENT))


def plan(
    schedule: str,
    strength: float = 1.0,
    *,
    steps: int = 20,
    solver: str = "unipc",
    guidance: float = 5.0,
    cache: str = "off",
    restart_at_switch: bool = False,
    constants: dict[str, dict[str, tuple[float, ...]]] | None = None,
) -> Program:
    return compile_program(
        schedule=StageSchedule.parse(schedule, steps, 0.4, 0.2),
        models=PAIR,
        solver=solver,
        grid=sigma_grid(WAN, solver, steps, 0),
        latent_shape=LATENT,
        guidance=guidance,
        batched=False,
        cache=parse_cache(cache),
        strength=strength,
        restart_at_switch=restart_at_switch,
        constants=constants,
    )


def bent(x: Array, model: str, timestep: float, branch: str) -> Array:
    scale = {LARGE: 0.5, SMALL: 0.4}[model] - (0.2 if branch == UNCOND else 0.0)
    return np.asarray(np.tanh(scale * x)) + timestep / 1000


def execute(program: Program, model: Callable[[Array, str, float, str], Array] = bent) -> Array:
    slots = {LATENTS: START}
    for step in program.steps:
        for each in step.instructions:
            if isinstance(each, Run):
                for branch, out in zip(each.branches, each.out, strict=True):
                    slots[out] = model(slots[LATENTS], each.model, step.timestep, branch)
            else:
                assert isinstance(each, Mix)
                slots[each.out] = sum((c * slots[slot] for c, slot in each.terms), np.zeros(()))
    return slots[LATENTS]


def reference_scheduler(solver: str, steps: int) -> Any:
    if solver == "unipc":
        made: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    elif solver == "dpm++":
        made = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    else:
        made = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_equals_the_loop_of_the_reference_pipeline(solver: str, strength: float) -> None:
    """WanVideoToVideoPipeline's, with a transformer that is swapped between steps of the whole run."""
    scheduler = reference_scheduler(solver, 20)
    pipeline = object.__new__(WanVideoToVideoPipeline)
    object.__setattr__(pipeline, "scheduler", scheduler)
    kept, count = WanVideoToVideoPipeline.get_timesteps(pipeline, 20, scheduler.timesteps, strength, "cpu")
    first = 20 - count
    x = torch.from_numpy(START)
    sigma = scheduler.sigmas[scheduler.index_for_timestep(kept[0])]
    scheduler.sigmas = scheduler.sigmas.double()
    for index, timestep in enumerate(kept, start=first):
        model = SMALL if 8 <= index < 16 else LARGE
        cond, uncond = (torch.from_numpy(bent(x.numpy(), model, float(timestep), each)) for each in (COND, UNCOND))
        x = scheduler.step(uncond + 5.0 * (cond - uncond), timestep, x, return_dict=False)[0]
    program = plan("LSL", strength, solver=solver)
    assert len(program.steps) == count
    assert program.steps[0].sigma == float(sigma)
    assert [step.timestep for step in program.steps] == kept.tolist()
    got = execute(program)
    assert np.linalg.norm(got - x.numpy()) / np.linalg.norm(x.numpy()) < (1e-9 if solver == "unipc" else 1e-6)


def test_every_noise_level_keeps_its_model() -> None:
    whole = plan("L8 S8 L4").steps
    for strength, schedule in ((0.95, "L7 S8 L4"), (0.6, "S8 L4"), (0.5, "S6 L4"), (0.2, "L4"), (0.05, "L1")):
        program = plan("L8 S8 L4", strength)
        assert program.schedule == schedule
        kept = whole[-len(program.steps) :]
        assert [(each.model, each.sigma, each.timestep) for each in program.steps] == [
            (each.model, each.sigma, each.timestep) for each in kept
        ]


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_all_of_the_strength_is_the_run_itself(solver: str) -> None:
    assert plan("LSL", 1.0, solver=solver) == plan("LSL", solver=solver)


def test_restarts_and_switches_move_with_the_steps() -> None:
    restarted = plan("L8 S8 L4", 0.5, restart_at_switch=True)
    kept = plan("L8 S8 L4", 0.5)
    differ = [index for index, pair in enumerate(zip(restarted.steps, kept.steps, strict=True)) if pair[0] != pair[1]]
    assert differ
    assert differ[0] in (5, 6)


def calls(program: Program) -> list[bool]:
    return [any(isinstance(each, Run) for each in step.instructions) for step in program.steps]


@pytest.mark.parametrize("cache", ["scm:fast", "interval:3", "mask:11010101010101010111", "magcache"])
def test_caches_decide_of_the_whole_run(cache: str) -> None:
    """What is left computes at the steps at which the whole run does, and at its first."""
    measured = {"magcache": {LARGE: tuple(np.linspace(1, 0.97, 20)), SMALL: tuple(np.linspace(1, 0.98, 20))}}
    whole = calls(plan("LLL", cache=cache, constants=measured))
    assert not all(whole)
    for strength in (0.7, 0.45):
        left = calls(plan("LLL", strength, cache=cache, constants=measured))
        first = 20 - len(left)
        assert left[0]
        if cache in ("interval:3", "magcache"):  # count anew from a stage's first step on
            assert 0 < sum(left) < len(left)
        else:
            assert left[1:] == whole[first + 1 :]


def test_an_online_cache_leaves_the_first_steps_alone() -> None:
    program = plan("LLL", 0.6, cache="easycache:0.05,1")
    assert program.choice is not None
    assert len(program.choice.reuse) == 12
    assert [each is None for each in program.choice.reuse[:3]] == [True, True, False]
    assert program.choice.starts == {0}


def test_timesteps_of_a_stage_are_left_out_one_by_one() -> None:
    """A run begins at the first level that is no higher than the one that the strength says."""
    schedule = "L4 S12:g1:t940,900,800,600 L4"
    assert [round(each.timestep) for each in plan(schedule).steps][4:8] == [940, 900, 800, 600]
    for strength, timesteps in ((0.8, (900, 800, 600)), (0.5, (600,)), (0.25, ())):
        program = plan(schedule, strength)
        level = plan("L20").steps[20 - int(20 * strength)].sigma
        assert program.steps[0].sigma <= level
        assert [round(each.timestep) for each in program.steps][: len(timesteps)] == list(timesteps)
        assert len(program.steps) == len(timesteps) + 4
        shown = StageSchedule.runs(program.schedule)
        assert shown.stages[0].timesteps == (timesteps or None)
        assert shown.steps == (int(20 * strength) if timesteps else 4)
        assert [step.guidance for step in program.steps] == [1.0] * len(timesteps) + [None] * 4
    with pytest.raises(UsageError, match=r"S20:g1:t990,950 visits no noise level at or below 0\.\d+, .* a larger one"):
        plan("S20:g1:t990,950", 0.1)


def test_strengths_that_are_none() -> None:
    for strength in (0.0, -0.1, 1.01, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"The strength is .*, but a number above 0 and at most 1 was expected"):
            plan("LLL", strength)
    with pytest.raises(UsageError, match=r"strength of 0\.04 leaves none of 20 steps; give 0\.05 or more, or more"):
        plan("LLL", 0.04)
    for steps in range(1, 1001):
        told = 1000 / steps
        least = np.ceil(told) / 1000
        assert steps_left_out(steps, float(f"{least:g}")) < steps


@pytest.mark.parametrize("steps", [1, 4, 7, 30, 50])
def test_steps_are_counted_as_diffusers_counts_them(steps: int) -> None:
    scheduler = reference_scheduler("unipc", steps)
    for strength in np.linspace(0.05, 1, 96):
        pipeline = object.__new__(WanVideoToVideoPipeline)
        object.__setattr__(pipeline, "scheduler", scheduler)
        _, count = WanVideoToVideoPipeline.get_timesteps(pipeline, steps, scheduler.timesteps, float(strength), "cpu")
        if count:
            assert steps_left_out(steps, float(strength)) == steps - count
        else:
            with pytest.raises(UsageError, match="leaves none"):
                steps_left_out(steps, float(strength))
