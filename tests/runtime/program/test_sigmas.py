import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.shifts import with_shift
from flowblending.runtime.program.sigmas import Grid, sigma_grid

STEPS = [1, 2, 3, 7, 20, 30, 50]
LTX_090 = SigmaGrid(
    kind="dynamic-shift", base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=4096, shift_terminal=0.1
)
LTX_095 = SigmaGrid(kind="linear-quadratic")
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def check(grid: Grid, sigmas: torch.Tensor, timesteps: torch.Tensor) -> None:
    """Bit for bit: float32 values and integers alike are exact in float64."""
    assert grid.sigmas == tuple(sigmas.double().tolist())
    assert grid.timesteps == tuple(timesteps.double().tolist())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 3.3, 5.0, 8.0])
def test_shifted_is_the_schedulers_own(shift: float, steps: int) -> None:
    grid = SigmaGrid(kind="shifted", shift=shift)

    unipc = UniPCMultistepScheduler(flow_shift=shift, **UNIPC)
    unipc.set_timesteps(steps)
    check(sigma_grid(grid, "unipc", steps, 0), unipc.sigmas, unipc.timesteps)

    for dpm in (
        DPMSolverMultistepScheduler.from_config(unipc.config),
        DPMSolverMultistepScheduler(flow_shift=shift, **UNIPC),
    ):
        dpm.set_timesteps(steps)
        check(sigma_grid(grid, "dpm++", steps, 0), dpm.sigmas, dpm.timesteps)

    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(steps)
    check(sigma_grid(grid, "euler", steps, 0), euler.sigmas, euler.timesteps)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("tokens", [24, 1881, 6144, 13376])
def test_dynamic_shift_is_that_of_the_ltx_pipeline(tokens: int, steps: int) -> None:
    euler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )
    unipc = UniPCMultistepScheduler.from_config(euler.config, **UNIPC)
    for name, scheduler in (("euler", euler), ("unipc", unipc)):
        mu = calculate_shift(tokens, 1024, 4096, 0.95, 2.05)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        check(sigma_grid(LTX_090, name, steps, tokens), scheduler.sigmas, scheduler.timesteps)


@pytest.mark.parametrize("steps", STEPS)
def test_linear_quadratic_is_that_of_the_ltx_condition_pipeline(steps: int) -> None:
    euler = FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(timesteps=linear_quadratic_schedule(steps) * 1000)
    check(sigma_grid(LTX_095, "euler", steps, 1881), euler.sigmas, euler.timesteps)


@pytest.mark.parametrize(
    ("grid", "solver"), [(LTX_090, "dpm++"), (LTX_095, "dpm++"), (LTX_095, "unipc")], ids=["090-dpm", "095-dpm", "095"]
)
def test_where_no_class_exists_the_euler_grid_starts_just_below_one(grid: SigmaGrid, solver: str) -> None:
    euler, other = sigma_grid(grid, "euler", 20, 1881), sigma_grid(grid, solver, 20, 1881)
    assert other.timesteps == euler.timesteps
    assert other.sigmas[1:] == euler.sigmas[1:]
    assert 1.0 - other.sigmas[0] == pytest.approx(1e-6, rel=0.02)


def test_wan_timesteps_are_the_known_ones() -> None:
    timesteps = sigma_grid(SigmaGrid(kind="shifted", shift=3.0), "unipc", 50, 0).timesteps
    assert timesteps[:3] == (999, 993, 986)
    assert (timesteps[20], timesteps[40], timesteps[-1]) == (818, 429, 60)


def test_one_dynamic_step_goes_from_noise_to_the_result() -> None:
    """The scheduler divides 0 by 0 here."""
    assert sigma_grid(LTX_090, "euler", 1, 1881) == Grid(sigmas=(1.0, 0.0), timesteps=(1000.0,))


def test_refuses_in_one_sentence() -> None:
    wan = SigmaGrid(kind="shifted", shift=8.0)
    with pytest.raises(UsageError, match="The solver heun is unknown; choose one of unipc, dpm\\+\\+, euler"):
        sigma_grid(wan, "heun", 50, 0)
    for steps in (0, -1):
        with pytest.raises(UsageError, match=f"{steps} steps were asked for, but at least 1 is needed"):
            sigma_grid(wan, "unipc", steps, 0)
    with pytest.raises(UsageError, match="400000 steps are so many that neighbouring noise levels are equal"):
        sigma_grid(wan, "unipc", 400_000, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("terminal", [0.1, None])
@pytest.mark.parametrize("steps", [2, 8, 50])
@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++"])
@pytest.mark.parametrize("tokens", [50_000, 120_000, 5_000_000])
def test_a_video_too_large_for_the_dynamic_shift(tokens: int, solver: str, steps: int, terminal: float | None) -> None:
    """The message names the video, and what it advises works."""
    grid = dataclasses.replace(LTX_090, shift_terminal=terminal)
    try:
        sigma_grid(grid, solver, steps, tokens, "2048x1152, 161 frames")
    except UsageError as error:
        message = str(error)
    else:
        assert (solver, terminal, tokens) == ("unipc", 0.1, 50_000)
        return
    assert message.startswith("For 2048x1152, 161 frames, the checkpoint's dynamic ")
    assert f"moves {steps} steps of {solver} so close to noise level 1" in message
    advice = message.partition("; give ")[2]
    assert advice.count("--solver") == (solver != "unipc" and terminal == 0.1 and tokens == 50_000)
    for other in re.findall(r"--solver (\S+)", advice):
        sigma_grid(grid, other, steps, tokens)
    (percent,) = map(float, re.findall(r"at most ([\d.]+) % of its pixels", advice))
    sigma_grid(grid, solver, steps, int(tokens * percent / 100))
    if steps > 2:  # two levels may differ again a few tokens later
        with pytest.raises(UsageError, match="of its pixels"):
            sigma_grid(grid, solver, steps, math.ceil(tokens * (percent + 0.01) / 100) + 1)


def test_many_steps_of_a_static_shift_are_the_steps_fault() -> None:
    grid = SigmaGrid(kind="dynamic-shift", base_shift=15.0, max_shift=15.0, shift_terminal=0.1)
    sigma_grid(grid, "euler", 4, 50_000)
    with pytest.raises(UsageError, match="900 steps are so many"):
        sigma_grid(grid, "euler", 900, 50_000)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_a_shift_takes_the_place_of_the_dynamic_one(shift: float, steps: int) -> None:
    """As the classes of diffusers have it once use_dynamic_shifting is false; shift_terminal stays.

    They write the same shift in two ways, whose float32 values differ in the last bits; a timestep that UniPC cuts to
    an integer may then be another one.
    """
    settings = {"shift_terminal": 0.1, "use_dynamic_shifting": False}
    euler = FlowMatchEulerDiscreteScheduler(shift=shift, **settings)
    unipc = UniPCMultistepScheduler(flow_shift=shift, **settings, **UNIPC)
    static = SigmaGrid(kind="dynamic-shift", base_shift=0.0, max_shift=0.0, shift_terminal=0.1)
    for grid, tokens in ((LTX_090, 1881), (LTX_090, 50_000), (static, 24)):
        for name, scheduler in (("euler", euler), ("unipc", unipc)):
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
            found = sigma_grid(with_shift(grid, shift), name, steps, tokens)
            assert np.abs(np.array(found.sigmas) - scheduler.sigmas.double().numpy()).max() < 1e-6
            assert np.abs(np.array(found.timesteps) - scheduler.timesteps.double().numpy()).max() < (
                1e-3 if name == "euler" else 1.5
            )


def test_no_shift_is_the_checkpoints() -> None:
    for grid in (LTX_090, LTX_095, SigmaGrid(kind="shifted", shift=3.0)):
        assert with_shift(grid, None) == grid
    assert with_shift(SigmaGrid(kind="shifted", shift=3.0), 5.0) == SigmaGrid(kind="shifted", shift=5.0)
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="but a finite number above 0 was expected"):
            with_shift(LTX_090, factor)
