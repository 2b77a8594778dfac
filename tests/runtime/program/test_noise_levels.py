"""Stages with timesteps and guidance of their own: which levels are visited, and what the solvers make of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.models import Model
from flowblending.contracts.program import COND, LATENTS, UNCOND, VELOCITY, Mix, Program, Run
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.noise_levels import noise_levels
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid, sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS
from tests.support.manifests import PAIR

Array = npt.NDArray[np.float64]

WAN = SigmaGrid(kind="shifted", shift=3.0)
LTX = SigmaGrid(kind="linear-quadratic")
DISTILLED = (1000.0, 993.75, 987.5, 981.25, 975.0, 909.375, 725.0, 421.875)
"""Of ltxv-2b-0.9.6-distilled."""
LATENT = (4, 3, 5, 7)
NOISE = np.random.default_rng(0).standard_normal((1, *LATENT))


def plan(schedule: str, *, solver: str = "unipc", guidance: float = 5.0, cache: str = "off") -> Program:
    made = StageSchedule.runs(schedule)
    return compile_program(
        schedule=made,
        models=PAIR,
        solver=solver,
        grid=sigma_grid(WAN, solver, made.steps, 0),
        latent_shape=LATENT,
        guidance=guidance,
        batched=False,
        cache=parse_cache(cache),
    )


def execute(program: Program, model: Callable[[Array, str, float, str], Array], start: Array) -> list[Array]:
    """The latents before every step and after the last, in float64."""
    slots, latents = {LATENTS: start}, [start]
    for step in program.steps:
        for each in step.instructions:
            if isinstance(each, Run):
                for branch, out in zip(each.branches, each.out, strict=True):
                    slots[out] = model(slots[LATENTS], each.model, step.timestep, branch)
            else:
                assert isinstance(each, Mix)
                slots[each.out] = sum((c * slots[slot] for c, slot in each.terms), np.zeros(()))
        latents.append(slots[LATENTS])
    return latents


def bent(x: Array, model: str, timestep: float, branch: str) -> Array:
    scale = {LARGE: 0.5, SMALL: 0.4}[model] - (0.2 if branch == UNCOND else 0.0)
    return np.asarray(np.tanh(scale * x)) + timestep / 1000


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_large_distilled_large_is_three_schedulers_of_diffusers(solver: str) -> None:
    """Large: the solver's class. Distilled: the class for Euler's steps. Large again: a new one of the first kind."""
    own = [800.0, 777.7, 600.0]
    program = plan("L8 S8:g1:t800,777.7,600 L4:g2", solver=solver)
    if solver == "euler":
        base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        base = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        if solver == "dpm++":
            base = DPMSolverMultistepScheduler.from_config(base.config)
    base.set_timesteps(20)
    told = [*base.timesteps[:8].tolist(), *own, *base.timesteps[16:].tolist()]
    levels = torch.cat([base.sigmas[:8], torch.tensor(own) / 1000, base.sigmas[16:]]).double()
    kinds = ["large"] * 8 + ["distilled"] * 3 + ["large again"] * 4
    scales = {"large": 5.0, "distilled": 1.0, "large again": 2.0}

    x, kind = torch.from_numpy(NOISE), ""
    for i, timestep in enumerate(told):
        if kinds[i] != kind:
            kind = kinds[i]
            scheduler = FlowMatchEulerDiscreteScheduler() if kind == "distilled" else type(base)(**base.config)
            scheduler.set_timesteps(len(told))
            scheduler.sigmas = levels
            scheduler.set_begin_index(i)
        model = SMALL if kind == "distilled" else LARGE
        cond, uncond = (bent(x.numpy(), model, timestep, branch) for branch in (COND, UNCOND))
        velocity = torch.from_numpy(uncond + scales[kind] * (cond - uncond))
        x = scheduler.step(velocity, scheduler.timesteps[i], x, return_dict=False)[0]

    assert [step.timestep for step in program.steps] == told
    assert [step.sigma for step in program.steps] == levels[:-1].tolist()
    result = execute(program, bent, NOISE)[-1]
    assert np.linalg.norm(result - x.numpy()) / np.linalg.norm(x.numpy()) < 1e-6  # two classes round to float32
    assert (program.calls(LARGE), program.calls(SMALL)) == (2 * 12, 3)
    assert VELOCITY not in program.slots()  # the conditional branch's slot will do
    assert [step.guidance for step in program.steps] == [None] * 8 + [1.0] * 3 + [2.0] * 4


THREE = {
    letter: Model(name=name, letter=letter, components=(name,))
    for letter, name in (("B", "base"), ("H", "high"), ("N", "low"))
}
THREE["T"] = Model(name="turbo", letter="T", components=("high", "low"), boundary=0.875, letters=("H", "N"))
SCALES = {"base": 0.5, "high": 0.4, "low": 0.3}


@pytest.mark.parametrize("solver", SOLVERS.built_in)
@pytest.mark.parametrize(
    ("schedule", "steps", "shift"),
    [
        ("B@t965 H@t800:g1:euler N:g1:euler", 8, 3.0),  # at the run's levels, as Wan2GP's and TripleKSampler's phases
        ("B@t965 H@t875:lightning4 N:lightning4", 20, 5.0),  # at those that the distilled models know
        ("B@t965 T:lightning4", 20, 5.0),  # whose experts part there by themselves
    ],
)
def test_base_distilled_high_distilled_low_is_a_loop_of_diffusers(
    solver: str, schedule: str, steps: int, shift: float
) -> None:
    """Three models: the base with guidance by the run's solver, the others without it by Euler's steps."""
    spec = SigmaGrid(kind="shifted", shift=shift)
    grid = sigma_grid(spec, solver, steps, 0)
    program = compile_program(
        schedule=StageSchedule.parse(schedule, steps, 0.4, 0.2, grid=grid),
        models=THREE,
        solver=solver,
        grid=grid,
        latent_shape=LATENT,
        guidance=3.5,
        batched=False,
    )
    if solver == "euler":
        base = FlowMatchEulerDiscreteScheduler(shift=shift)
    else:
        base = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        if solver == "dpm++":
            base = DPMSolverMultistepScheduler.from_config(base.config)
    base.set_timesteps(steps)
    levels, told = base.sigmas.double(), base.timesteps.tolist()
    if "lightning4" in schedule:
        first = sum(timestep >= 965 for timestep in told)
        # Of 1000, 750, 500 and 250 at shift 5, those that lie behind the base model's steps.
        own = [5 * t / (1 + 4 * t) for t in (0.75, 0.5, 0.25)]
        told = [*told[:first], *(1000 * sigma for sigma in own)]
        levels = torch.cat([levels[:first], torch.tensor([*own, 0.0]).double()])
        kinds = ["base"] * first + ["high", "low", "low"]
    else:
        kinds = ["base" if timestep >= 965 else "high" if timestep >= 800 else "low" for timestep in told]

    def model(x: Array, name: str, timestep: float, branch: str) -> Array:
        return np.asarray(np.tanh((SCALES[name] - (0.2 if branch == UNCOND else 0.0)) * x)) + timestep / 1000

    x, kind = torch.from_numpy(NOISE), ""
    for i, timestep in enumerate(told):
        if kinds[i] != kind:
            kind = kinds[i]
            scheduler = type(base)(**base.config) if kind == "base" else FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(len(told))
            scheduler.sigmas = levels
            scheduler.set_begin_index(i)
        cond, uncond = (torch.from_numpy(model(x.numpy(), kind, timestep, branch)) for branch in (COND, UNCOND))
        velocity = uncond + 3.5 * (cond - uncond) if kind == "base" else cond
        x = scheduler.step(velocity, scheduler.timesteps[i], x, return_dict=False)[0]

    assert [step.model for step in program.steps] == kinds
    assert [step.timestep for step in program.steps] == pytest.approx(told, abs=1e-4)
    assert {kind: program.calls(kind) for kind in SCALES} == {
        kind: kinds.count(kind) * (2 if kind == "base" else 1) for kind in SCALES
    }
    result = execute(program, model, NOISE)[-1]
    assert np.linalg.norm(result - x.numpy()) / np.linalg.norm(x.numpy()) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_eulers_steps_in_a_stage_leave_no_history(solver: str) -> None:
    """They are those of a run by Euler's method, and what follows is a run of its own."""
    whole = plan("L4 S3:euler L5", solver=solver)
    levels = [*(step.sigma for step in whole.steps), 0.0]
    latents = execute(whole, bent, NOISE)
    for i in range(4, 7):
        timestep = whole.steps[i].timestep
        cond, uncond = (bent(latents[i], SMALL, timestep, branch) for branch in (COND, UNCOND))
        assert latents[i + 1] == pytest.approx(latents[i] + (levels[i + 1] - levels[i]) * (5 * cond - 4 * uncond))
    # The same stages at timesteps of their own, which are the run's, are the same program.
    told = ",".join(repr(timestep) for timestep in (1000 * level for level in levels[4:7]))
    again = execute(plan(f"L4 S3:t{told} L5", solver=solver), bent, NOISE)
    # UniPC tells models whole timesteps, and its levels lie between them.
    assert np.linalg.norm(again[-1] - latents[-1]) / np.linalg.norm(latents[-1]) < 1e-3


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_perfectly_distilled_model_is_followed_exactly(solver: str) -> None:
    """Data N(0, 1/4): x scales as the marginal's standard deviation. The distilled model knows the chord of its steps.

    With a history across or inside its stage the latents would leave the trajectory: chords are no tangents.
    """

    def deviation(sigma: float) -> float:
        return math.hypot((1 - sigma) / 2, sigma)

    program = plan("L8 S8:g1:t800,777.7,600 L4", solver=solver, guidance=1.0)
    levels = [step.sigma for step in program.steps]
    after = dict(zip((step.timestep for step in program.steps), [*levels[1:], 0.0], strict=True))

    def model(x: Array, name: str, timestep: float, branch: str) -> Array:  # noqa: ARG001
        now = next(step.sigma for step in program.steps if step.timestep == timestep)
        if name == LARGE:
            return x * (now - (1 - now) / 4) / deviation(now) ** 2
        return x * (deviation(after[timestep]) / deviation(now) - 1) / (after[timestep] - now)

    latents = execute(program, model, np.ones(()))
    for i, sigma in enumerate(levels[8:12], start=8):  # from its first step to the large model's
        assert latents[i] / latents[8] == pytest.approx(deviation(sigma) / deviation(levels[8]), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_guidance_that_changes_keeps_the_history(solver: str) -> None:
    """One scheduler throughout, whose velocity is guided by 5, then not at all, then by 2."""
    program = plan("L8:g5 L8:g1 S4:g2", solver=solver, guidance=3.0)
    plain = plan("L16 S4", solver=solver, guidance=1.0)
    scales = [5.0] * 8 + [1.0] * 8 + [2.0] * 4

    def guided(x: Array, name: str, timestep: float, branch: str) -> Array:  # noqa: ARG001
        scale = scales[[step.timestep for step in plain.steps].index(timestep)]
        uncond = bent(x, name, timestep, UNCOND)
        return uncond + scale * (bent(x, name, timestep, COND) - uncond)

    np.testing.assert_allclose(execute(program, bent, NOISE)[-1], execute(plain, guided, NOISE)[-1], rtol=1e-10)
    assert (program.calls(LARGE), program.calls(SMALL)) == (2 * 8 + 8, 2 * 4)


TRAINED = {"S": ModelSampling(timesteps=DISTILLED, guidance=1.0)}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # LTXConditionPipeline at 40 steps: 983.75 at the 14th, 557.375 at the 34th.
        ("L13 S20 L7", "L13 S20:g1:t981.25,975,909.375,725 L7"),
        ("S40", "S40:g1:t1000,993.75,987.5,981.25,975,909.375,725,421.875"),
        ("L20 S20", "L20 S20:g1:t975,909.375,725,421.875"),  # the stage begins at 975 itself
        ("S20 L20", "S20:g1:t1000,993.75,987.5,981.25 L20"),  # and 975 is left to the stage that begins there
        ("L13 S20:g3:t* L7", "L13 S20:g3:t* L7"),
        ("L13 S20:t980,700 L7", "L13 S20:g1:t980,700 L7"),
        ("L13 S20:ltxv8 L7", "L13 S20:g1:t981.2,975,909.4,725 L7"),  # a preset goes before the model's own
        ("L13 S20:g2:ltxv7 L7", "L13 S20:g2:t981.2,975,909.4,725 L7"),
        ("L40:ltxv7", "L40:g1:t1000,993.7,987.5,981.2,975,909.4,725"),
        ("L13 S20:t*:euler L7", "L13 S20:g1:t*:euler L7"),
        ("L40", "L40"),
    ],
)
def test_a_model_visits_its_own_timesteps_in_its_stages(schedule: str, expected: str) -> None:
    grid = sigma_grid(LTX, "euler", 40, 0)
    levels = noise_levels(StageSchedule.runs(schedule), grid, TRAINED)
    assert str(levels.schedule) == expected
    again = noise_levels(StageSchedule.runs(expected), grid, TRAINED)
    assert again == levels
    assert np.all(np.diff(levels.grid.sigmas) < 0)


def test_without_options_nothing_changes() -> None:
    grid = sigma_grid(WAN, "unipc", 50, 0)
    schedule = StageSchedule.runs("L20 S20 L10")
    levels = noise_levels(schedule, grid, {})
    assert (levels.schedule, levels.visits, levels.grid, levels.restarts) == (schedule, schedule, grid, frozenset())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "L13 S20:g1:t985,700 L7",
            "S20:g1:t985,700 must lie below 985 and above 557.375, where its neighbours are",
        ),
        ("L13 S20:g1:t980,557 L7", "S20:g1:t980,557 must lie below 985 and above 557.375"),
        ("L5 S15:g1:t975,900 S20:g1:t900,800", "stage S15:g1:t975,900 must lie below 995 and above 900"),
        ("S20:t998,900 L20", "begin at 998, but it starts from pure noise: they must begin above 998.75, at 1000 at"),
        ("S40:t1000.1,900", "begin at 1000.1, but it starts from pure noise"),
        (
            "L13 S20:g1:t980,979.999999 L7",
            "Timesteps of the stage S20:g1:t980,979.999999 are so close that",
        ),
        ("L37 S2 L1", "421.875) lies in the stage S2:g1, from 267.375 to 93.875; make the stage longer, or give it"),
        (
            "L37 S2:ltxv8 L1",
            "None of ltxv8's timesteps (1000,993.7,987.5,981.2,975,909.4,725,421.9) lies in the stage S2:g1:ltxv8, "
            "from 267.375 to 93.875; make the stage longer, or move its ends.",
        ),
        ("S40:t" + ",".join(str(1000 - i * 0.5) for i in range(1500)), "has 1500 steps, but the models tell 1000"),
    ],
)
def test_timesteps_out_of_place_are_refused(schedule: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        noise_levels(StageSchedule.runs(schedule), sigma_grid(LTX, "euler", 40, 0), TRAINED)
    assert message in str(error.value)


def test_another_number_of_training_timesteps() -> None:
    grid = Grid(sigmas=(1.0, 0.5, 0.25, 0.0), timesteps=(500.0, 250.0, 125.0), train_timesteps=500)
    levels = noise_levels(StageSchedule.runs("L1 S1:t200 L1"), grid, {})
    assert levels.grid.sigmas == (1.0, float(np.float32(0.4)), 0.25, 0.0)


def test_caches_leave_a_stage_with_its_own_timesteps_alone() -> None:
    program = plan("L4 S4:t850,777.7 L6", cache="interval:3+guidance:2,1001")
    calls = [sum(len(each.branches) for each in step.instructions if isinstance(each, Run)) for step in program.steps]
    assert calls == [2, 0, 0, 1, 2, 2, 2, 0, 0, 1, 0, 0]
    with pytest.raises(UsageError, match="The cache skips step 6, the first of a stage of the small model"):
        plan("L4 S4:t850,777.7 L6", cache="mask:111110111111")


def test_easycache_sees_the_velocity_of_every_stage() -> None:
    """It compares the conditional branch: stages without guidance have to write to the same slot."""
    program = plan("L4:g1 S4:t850,800 S8", cache="easycache:0.1")
    runs = [each for each in program.instructions() if isinstance(each, Run) and each.branches == (COND,)]
    assert {each.out for each in runs} == {(COND,)}
    assert program.choice is not None
    assert program.choice.starts == {0, 4, 5, 6}
    assert {distance.slot for distance in program.choice.learned[1:]} == {COND}


def test_a_cache_skips_guidance_where_there_is_some() -> None:
    program = plan("L4:g1 S6", cache="guidance:3,1001", guidance=5.0)
    assert (program.calls(LARGE), program.calls(SMALL)) == (4, 6 + 2)
    with pytest.raises(UsageError, match="but guidance is off"):
        plan("L4:g1 S6:g1", cache="guidance:3,1001", guidance=5.0)
    assert plan("L4:g3 S6", cache="guidance:2,1001", guidance=1.0).calls(LARGE) == 4 + 2
