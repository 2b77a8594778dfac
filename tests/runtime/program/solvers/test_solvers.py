import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.contracts.program import LATENTS, VELOCITY, Mix
from flowblending.runtime.program.combination import slot
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS, solve

EULER, DPM, UNIPC = "euler", "dpm++", "unipc"
Array = npt.NDArray[np.float64]
Scheduler = Any  # diffusers has no types

SHAPE = (1, 4, 3, 5, 7)
# Two of the classes round the sample to float32 in every step, whatever they are given.
TOLERANCE = {UNIPC: 1e-10, DPM: 1e-6, EULER: 1e-6}
GRIDS = {
    **{f"shift {shift:g}": SigmaGrid(kind="shifted", shift=shift) for shift in (1.0, 3.0, 5.0, 8.0)},
    "ltx 0.9.0": SigmaGrid(
        kind="dynamic-shift", base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=4096, shift_terminal=0.1
    ),
    "ltx 0.9.5": SigmaGrid(kind="linear-quadratic"),
}


def execute(mixes: Sequence[Mix], slots: dict[str, Array]) -> None:
    for mix in mixes:
        slots[mix.out] = sum((coefficient * slots[slot] for coefficient, slot in mix.terms), np.zeros(()))


def scheduler(solver: str, sigmas: Sequence[float]) -> Scheduler:
    """The diffusers class on the given sigmas, with coefficients in float64."""
    if solver == EULER:
        made: Scheduler = FlowMatchEulerDiscreteScheduler()
    else:
        made = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        if solver == DPM:
            made = DPMSolverMultistepScheduler.from_config(made.config)
    made.set_timesteps(len(sigmas) - 1)
    made.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    made.set_begin_index(0)
    return made


def forget(made: Scheduler) -> None:
    """What a fresh scheduler that starts at the current step would know."""
    if not isinstance(made, FlowMatchEulerDiscreteScheduler):
        made.model_outputs = [None] * made.config.solver_order
        made.lower_order_nums = 0
        made.last_sample = None


def compare(solver: str, sigmas: Sequence[float], restarts: frozenset[int]) -> float:
    """The largest relative difference after any step, each side following its own trajectory."""
    rng = np.random.default_rng(0)
    slots = {LATENTS: rng.standard_normal(SHAPE)}
    expected = torch.from_numpy(slots[LATENTS].copy())
    made = scheduler(solver, sigmas)
    worst = 0.0
    for i, mixes in enumerate(solve(solver, sigmas, restarts=restarts)):
        noise = rng.standard_normal(SHAPE)
        if i in restarts:
            forget(made)
        velocity = torch.from_numpy(noise) + torch.tanh(expected)
        expected = made.step(velocity, made.timesteps[i], expected, return_dict=False)[0]
        slots[VELOCITY] = noise + np.tanh(slots[LATENTS])
        execute(mixes, slots)
        difference = np.linalg.norm(slots[LATENTS] - expected.numpy()) / np.linalg.norm(expected.numpy())
        worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("solver", TOLERANCE)
def test_every_step_is_that_of_the_diffusers_class(solver: str, grid: SigmaGrid, steps: int) -> None:
    assert compare(solver, sigma_grid(grid, solver, steps, 1881).sigmas, frozenset()) < TOLERANCE[solver]


@pytest.mark.parametrize("restarts", [{1}, {8, 16}, {3, 4, 6, 18}, {19}, {0, 20}], ids=str)
@pytest.mark.parametrize("solver", TOLERANCE)
def test_a_restart_is_a_fresh_scheduler(solver: str, restarts: set[int]) -> None:
    sigmas = sigma_grid(GRIDS["shift 3"], solver, 20, 0).sigmas
    assert compare(solver, sigmas, frozenset(restarts)) < TOLERANCE[solver]


def test_float32_runs_agree() -> None:
    """Ours with float64 coefficients rounded once, theirs with float32 arithmetic throughout."""
    made = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    made.set_timesteps(50)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    slots, expected = {LATENTS: x}, torch.from_numpy(x.copy())
    for timestep, mixes in zip(made.timesteps, solve(UNIPC, made.sigmas.tolist()), strict=True):
        expected = made.step(torch.tanh(2 * expected), timestep, expected, return_dict=False)[0]
        slots[VELOCITY] = np.tanh(2 * slots[LATENTS])
        for mix in mixes:
            slots[mix.out] = sum((np.float32(c) * slots[slot] for c, slot in mix.terms), np.zeros((), np.float32))
    assert slots[LATENTS].dtype == np.float32
    assert np.linalg.norm(slots[LATENTS] - expected.numpy()) / np.linalg.norm(expected.numpy()) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_gaussian_flow_is_solved_to_order(solver: str) -> None:
    """Data N(0, s^2): x scales as the marginal's standard deviation. The last step, to sigma 0, has no order."""
    s = 0.5

    def variance(sigma: float) -> float:
        return ((1 - sigma) * s) ** 2 + sigma**2

    def error(steps: int) -> float:
        lambdas = np.linspace(-3.0, 3.0, steps + 1)
        sigmas = [*(1 / (1 + np.exp(lambdas))).tolist(), 0.0]
        slots = {LATENTS: np.ones(())}
        for sigma, mixes in zip(sigmas, solve(solver, sigmas)[:-1], strict=False):
            slots[VELOCITY] = slots[LATENTS] * (sigma - (1 - sigma) * s**2) / variance(sigma)
            execute(mixes, slots)
        return abs(float(slots[LATENTS]) - math.sqrt(variance(sigmas[-2]) / variance(sigmas[0])))

    slopes = [math.log2(error(steps) / error(2 * steps)) for steps in (40, 80, 160)]
    assert slopes == pytest.approx([SOLVERS.get(solver).order] * 3, abs=0.2)


def straight(x: Array, sigma: float) -> Array:
    """The flow to the point 3: every solver follows it exactly."""
    return (x - 3.0) / sigma


def bell(x: Array, sigma: float) -> Array:
    """The flow whose solution from 1 is exp(sigma_0^2 - sigma^2)."""
    return -2.0 * sigma * x


@pytest.mark.parametrize("start", [1.0, 0.99, 0.4])
@pytest.mark.parametrize(("flow", "expected", "tolerance"), [(straight, 3.0, 1e-12), (bell, None, 0.03)])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_closed_forms_from_any_start(
    solver: str,
    flow: Callable[[Array, float], Array],
    expected: float | None,
    tolerance: float,
    start: float,
) -> None:
    """sigma = 1 too, where lambda is infinite: a mix with a coefficient that is not finite cannot be made."""
    sigmas = np.linspace(start, 0.0, 41).tolist()
    slots = {LATENTS: np.ones(())}
    for sigma, mixes in zip(sigmas, solve(solver, sigmas), strict=False):
        slots[VELOCITY] = flow(slots[LATENTS], sigma)
        execute(mixes, slots)
    assert slots[LATENTS] == pytest.approx(math.exp(start**2) if expected is None else expected, rel=tolerance)


@pytest.mark.parametrize(("solver", "most", "history"), [(EULER, 1, 0), (DPM, 2, 2), (UNIPC, 2, 3)])
def test_passes_and_slots(solver: str, most: int, history: int) -> None:
    updates = solve(solver, sigma_grid(GRIDS["shift 3"], solver, 50, 0).sigmas)
    assert max(len(mixes) for mixes in updates) == most
    written = {mix.out for mixes in updates for mix in mixes}
    assert written == {LATENTS, *(f"x0_{i}" for i in range(history))}
    assert updates[-1] == (Mix(out=LATENTS, terms=((1.0, LATENTS), (updates[-1][0].terms[1][0], VELOCITY))),)
    for mixes in updates:
        assert [mix.out for mix in mixes].index(LATENTS) == len(mixes) - 1


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_steps_without_history_are_of_first_order(solver: str) -> None:
    """The first step, the last and those after a restart are Euler's, and so are those of a distilled stage."""
    sigmas = sigma_grid(GRIDS["shift 3"], solver, 9, 0).sigmas
    for step, mixes in enumerate(solve(solver, sigmas, restarts=frozenset(range(9)))):
        now, after = sigmas[step], sigmas[step + 1]
        slots = {LATENTS: np.full((), 2.0), VELOCITY: np.full((), 3.0)}
        execute(mixes, slots)
        assert slots[LATENTS] == pytest.approx(2.0 + (after - now) * 3.0, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_no_step_reads_the_velocity_of_another(solver: str) -> None:
    """Caches rely on it: a step that is left out may alternate with one that is not."""
    velocities = [slot(f"v{step}") for step in range(9)]
    updates = solve(solver, sigma_grid(GRIDS["shift 3"], solver, 9, 0).sigmas, velocities=velocities)
    for step, mixes in enumerate(updates):
        read = {name for mix in mixes for _, name in mix.terms}
        assert {name for name in read if name.startswith("v")} == {f"v{step}"}


def test_refuses_an_unknown_solver() -> None:
    with pytest.raises(UsageError, match="The solver heun is unknown; choose one of unipc, dpm\\+\\+, euler"):
        solve("heun", [1.0, 0.0])
