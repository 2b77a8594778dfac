from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.program import COND, LATENTS, UNCOND, VELOCITY, Mix, Program, Run
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid, sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS, solve
from tests.support.manifests import PAIR

Array = npt.NDArray[np.float64]
Model = Callable[[Array, float, str], Array]

WAN = SigmaGrid(kind="shifted", shift=3.0)
LATENT = (4, 3, 5, 7)
NOISE = np.random.default_rng(0).standard_normal((1, *LATENT))


def large(x: Array, timestep: float, branch: str) -> Array:
    bent: Array = np.tanh(x * (0.5 if branch == COND else 0.3))
    return bent + timestep / 1000


def small(x: Array, timestep: float, branch: str) -> Array:
    bent: Array = np.tanh(x * (0.4 if branch == COND else 0.2))
    return bent + timestep / 900


def plan(
    schedule: str = "LSL",
    *,
    steps: int = 10,
    solver: str = "unipc",
    guidance: float = 5.0,
    batched: bool = False,
    restart_at_switch: bool = False,
) -> Program:
    return compile_program(
        schedule=StageSchedule.parse(schedule, steps, 0.4, 0.2),
        models=PAIR,
        solver=solver,
        grid=sigma_grid(WAN, solver, steps, 0),
        latent_shape=LATENT,
        guidance=guidance,
        batched=batched,
        restart_at_switch=restart_at_switch,
    )


def execute(program: Program, models: Mapping[str, Model]) -> Array:
    """A sampler in float64."""
    slots: dict[str, Array] = {LATENTS: NOISE}
    for step in program.steps:
        for each in step.instructions:
            if isinstance(each, Run):
                for branch, out in zip(each.branches, each.out, strict=True):
                    slots[out] = models[each.model](slots[LATENTS], step.timestep, branch)
            else:
                assert isinstance(each, Mix)
                slots[each.out] = sum((c * slots[slot] for c, slot in each.terms), np.zeros(()))
    return slots[LATENTS]


@pytest.mark.parametrize(
    ("schedule", "steps", "large_steps"), [("LSL", 50, 30), ("LLL", 50, 50), ("SSS", 50, 0), ("L1 S6", 7, 1)]
)
@pytest.mark.parametrize(("guidance", "branches"), [(5.0, 2), (1.0, 1)])
def test_engine_calls(schedule: str, steps: int, large_steps: int, guidance: float, branches: int) -> None:
    for batched in (False, True):
        program = plan(schedule, steps=steps, guidance=guidance, batched=batched)
        assert program.calls(LARGE) == branches * large_steps
        assert program.calls(SMALL) == branches * (steps - large_steps)
        runs = [each for each in program.instructions() if isinstance(each, Run)]
        assert len(runs) == steps * (1 if batched else branches)


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_all_large_is_a_loop_with_one_model_bit_for_bit(solver: str) -> None:
    grid = sigma_grid(WAN, solver, 20, 0)
    slots = {LATENTS: NOISE}
    for i, mixes in enumerate(solve(solver, grid.sigmas)):
        slots[VELOCITY] = large(slots[LATENTS], grid.timesteps[i], COND)
        if solver == "euler":
            slots[LATENTS] = slots[LATENTS] + (grid.sigmas[i + 1] - grid.sigmas[i]) * slots[VELOCITY]
        else:
            for mix in mixes:
                slots[mix.out] = sum((c * slots[slot] for c, slot in mix.terms), np.zeros(()))
    got = execute(plan("LLL", steps=20, solver=solver, guidance=1.0), {LARGE: large})
    assert np.array_equal(got, slots[LATENTS])


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_switch_between_equal_models_changes_nothing(solver: str) -> None:
    blended = execute(plan("LSL", steps=20, solver=solver), {LARGE: large, SMALL: large})
    assert np.array_equal(blended, execute(plan("LLL", steps=20, solver=solver), {LARGE: large}))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_a_blended_guided_run_is_the_reference_loop(batched: bool, restart: bool) -> None:
    """WanPipeline's loop with a transformer that is swapped between steps."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.from_numpy(NOISE)
    for i, timestep in enumerate(scheduler.timesteps):
        model = small if 8 <= i < 16 else large
        if restart and i in (8, 16):
            scheduler.model_outputs, scheduler.lower_order_nums, scheduler.last_sample = [None, None], 0, None
        cond, uncond = (torch.from_numpy(model(x.numpy(), float(timestep), branch)) for branch in (COND, UNCOND))
        x = scheduler.step(uncond + 5.0 * (cond - uncond), timestep, x, return_dict=False)[0]
    program = plan("LSL", steps=20, batched=batched, restart_at_switch=restart)
    assert program.schedule == "L8 S8 L4"
    np.testing.assert_allclose(execute(program, {LARGE: large, SMALL: small}), x.numpy(), rtol=1e-10)


def test_order_of_the_branches() -> None:
    """WanPipeline calls cond first; the LTX pipelines run one batch with uncond first."""

    def first_runs(program: Program) -> list[Run]:
        return [each for each in program.steps[0].instructions if isinstance(each, Run)]

    assert first_runs(plan(batched=False)) == [
        Run(model=LARGE, branches=(COND,), out=(COND,)),
        Run(model=LARGE, branches=(UNCOND,), out=(UNCOND,)),
    ]
    assert first_runs(plan(batched=True)) == [Run(model=LARGE, branches=(UNCOND, COND), out=(UNCOND, COND))]
    for guidance in (1.0, 0.0, -2.0):
        unguided = plan(guidance=guidance, batched=True)
        assert first_runs(unguided) == [Run(model=LARGE, branches=(COND,), out=(VELOCITY,))]
        assert UNCOND not in unguided.slots()


def test_guidance_costs_no_pass_of_its_own() -> None:
    program = plan(solver="euler", steps=2)
    mixes = [each for each in program.instructions() if isinstance(each, Mix)]
    assert len(mixes) == 2
    assert program.slots() == (LATENTS, COND, UNCOND)
    assert {slot for _, slot in mixes[0].terms} == {LATENTS, COND, UNCOND}


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_refuses_a_guidance_that_is_no_number(guidance: float) -> None:
    with pytest.raises(UsageError, match=f"The guidance scale is {guidance}, but a finite number was expected"):
        plan(guidance=guidance)


def test_refuses_a_grid_of_another_length() -> None:
    with pytest.raises(ValueError, match="a schedule of 1 steps and a grid of 2"):
        compile_program(
            schedule=StageSchedule.of("L"),
            models=PAIR,
            solver="euler",
            grid=Grid(sigmas=(1.0, 0.5, 0.0), timesteps=(1000.0, 500.0)),
            latent_shape=LATENT,
            guidance=1.0,
            batched=False,
        )
