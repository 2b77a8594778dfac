"""Noise levels and timesteps of a run, bit for bit those of the diffusers schedulers and pipelines, without torch.

The schedulers round sigmas to float32 when they store them and compute coefficients from what they stored. So does
this file: its float64 sigmas are float32 values, and arithmetic that diffusers does in float32 is done in float32
here. A difference in the last bit would be harmless to the solver, but not where a timestep is cut to an integer,
or where 1 - sigma = 1e-6 loses its leading digits.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.solver import DPM, EULER, SOLVERS, UNIPC

Array = npt.NDArray[np.floating[Any]]

BELOW_ONE = 1e-6
"""How far below 1 the first sigma must lie for log((1 - sigma) / sigma) to be finite; UniPCMultistepScheduler's."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The noise levels that a run visits.

    Attributes:
        sigmas: strictly falling from at most 1 to 0 [steps + 1]; exact float32 values.
        timesteps: what the transformer is told at each step, in [0, train_timesteps] [steps].
        train_timesteps: the timestep of noise level 1.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    train_timesteps: int = 1000


def sigma_grid(grid: SigmaGrid, solver: str, steps: int, tokens: int, video: str = "this video") -> Grid:
    """The noise levels of a run.

    Where the solver's diffusers class can make the grid, the result is that class's: ``shifted`` with any solver
    (WanPipeline), ``dynamic-shift`` with ``euler`` and ``unipc`` (LTXPipeline), ``linear-quadratic`` with ``euler``
    (LTXConditionPipeline). Elsewhere it is the grid of ``euler`` with the first sigma just below 1.

    Args:
        grid: the checkpoint's.
        solver: ``unipc``, ``dpm++`` or ``euler``.
        steps: number of model calls.
        tokens: latent frames x height x width in patches, which the dynamic shift depends on.
        video: that has so many, for messages.

    Raises:
        UsageError: the solver is unknown, ``steps`` is not positive, or there are so many steps, or tokens under a
            dynamic shift, that float32 cannot tell the sigmas apart.
    """
    if solver not in SOLVERS:
        raise UsageError(f"The solver {solver} is unknown; choose one of {', '.join(SOLVERS)}.")
    if steps < 1:
        raise UsageError(f"{steps} steps were asked for, but at least 1 is needed; give a positive number of steps.")
    sigmas, timesteps = _levels(grid, solver, steps, tokens)
    if not _fall(sigmas):
        raise UsageError(_too_close(grid, solver, steps, tokens, video))
    return Grid(
        sigmas=tuple(sigmas.tolist()),
        timesteps=tuple(timesteps.astype(np.float64).tolist()),
        train_timesteps=grid.train_timesteps,
    )


def _levels(grid: SigmaGrid, solver: str, steps: int, tokens: int) -> tuple[Array, Array]:
    """Sigmas float32 with the last one, 0, and timesteps."""
    if solver == DPM and grid.kind == "shifted":
        sigmas, timesteps = _dpm(grid, steps)
    elif solver == UNIPC and grid.kind in ("shifted", "dynamic-shift"):
        sigmas, timesteps = _unipc(grid, steps, tokens)
    else:
        sigmas, timesteps = _euler(grid, steps, tokens)
        if solver != EULER:
            sigmas[0] = min(sigmas[0], np.float32(1.0 - BELOW_ONE))
    return np.append(sigmas.astype(np.float32), np.float32(0.0)), timesteps


def _fall(sigmas: Array) -> bool:
    return bool(np.all(np.diff(sigmas) < 0))


def _too_close(grid: SigmaGrid, solver: str, steps: int, tokens: int, video: str) -> str:
    """Why neighbouring noise levels are equal, and what there is to do.

    A dynamic shift moves the levels of large videos towards 1: at exp(mu) from about 2^23 on, float32 has no numbers
    between them. The classes differ in where they round.
    """

    def works(other: str, fewer: int) -> bool:
        return _fall(_levels(grid, other, steps, fewer)[0])

    if grid.kind != "dynamic-shift" or not works(solver, 1):
        return f"{steps} steps are so many that neighbouring noise levels are equal; ask for far fewer."
    most = bisect.bisect_left(range(1, tokens), True, key=lambda fewer: not works(solver, fewer))
    others = [f"--solver {other}" for other in SOLVERS if works(other, tokens)]
    remedies = [*others, f"a video of at most {most} tokens (latent frames x height x width)"]
    return (
        f"For {video} with its {tokens} latent tokens, the checkpoint's dynamic shift moves {steps} steps of {solver} "
        f"so close to noise level 1 that neighbouring ones are equal; give {' or '.join(remedies)}."
    )


def _unipc(grid: SigmaGrid, steps: int, tokens: int) -> tuple[Array, Array]:
    """UniPCMultistepScheduler.set_timesteps with use_flow_sigmas: float64, timesteps cut to integers.

    For the dynamic shift, with the sigmas and the mu that LTXPipeline passes.
    """
    sigmas: Array
    if grid.kind == "shifted":
        sigmas = _shift(np.linspace(1.0, 1.0 / grid.train_timesteps, steps + 1)[:-1], grid.shift)
    else:
        sigmas = _exponential_shift(np.linspace(1.0, 1.0 / steps, steps), _mu(grid, tokens))
    sigmas = _stretch(sigmas, grid.shift_terminal)
    if abs(sigmas[0] - 1.0) < BELOW_ONE:
        sigmas[0] -= BELOW_ONE
    return sigmas, np.trunc(sigmas * grid.train_timesteps)


def _dpm(grid: SigmaGrid, steps: int) -> tuple[Array, Array]:
    """DPMSolverMultistepScheduler.set_timesteps with use_flow_sigmas.

    Its grid is the mirror image of UniPC's: it starts at 0.999 before the shift, and needs no step below 1.
    """
    alphas = np.linspace(1.0, 1.0 / grid.train_timesteps, steps + 1)
    sigmas = _shift(1.0 - alphas, grid.shift)[:0:-1]
    return sigmas, np.trunc(sigmas * grid.train_timesteps)


def _euler(grid: SigmaGrid, steps: int, tokens: int) -> tuple[Array, Array]:
    """FlowMatchEulerDiscreteScheduler.set_timesteps, with what the pipeline of each kind passes to it."""
    scale = np.float32(grid.train_timesteps)
    sigmas: Array
    if grid.kind == "linear-quadratic":
        # LTXConditionPipeline passes timesteps, from which the scheduler derives the sigmas again.
        timesteps = _linear_quadratic(steps).astype(np.float32) * scale
        return timesteps / scale, timesteps
    if grid.kind == "dynamic-shift":
        sigmas = _exponential_shift(np.linspace(1.0, 1.0 / steps, steps).astype(np.float32), _mu(grid, tokens))
    else:
        # The scheduler spreads the steps between the shifted ends of its training grid, and shifts them once more.
        ends = _shift(np.array([grid.train_timesteps, 1], np.float32) / scale, grid.shift).astype(np.float64)
        first, last = ends * grid.train_timesteps
        sigmas = _shift(np.linspace(first, last, steps) / grid.train_timesteps, grid.shift)
    sigmas = _stretch(sigmas, grid.shift_terminal).astype(np.float32)
    return sigmas, sigmas * scale


def _shift(sigmas: Array, shift: float) -> Array:
    """The timestep shift of Stable Diffusion 3 (arXiv 2403.03206)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _exponential_shift(sigmas: Array, mu: float) -> Array:
    """The static shift by exp(mu), written as diffusers computes it (``_time_shift_exponential``)."""
    # Beyond, all sigmas are 1 in float64 as well, and float32 overflows.
    shift = math.exp(min(mu, 80.0))
    return shift / (shift + (1 / sigmas - 1))


def _mu(grid: SigmaGrid, tokens: int) -> float:
    """The shift's exponent, linear in the number of tokens (diffusers pipelines/ltx, ``calculate_shift``)."""
    slope = (grid.max_shift - grid.base_shift) / (grid.max_tokens - grid.base_tokens)
    return tokens * slope + (grid.base_shift - slope * grid.base_tokens)


def _stretch(sigmas: Array, terminal: float | None) -> Array:
    """Stretch 1 - sigma so that the last sigma is ``terminal`` (``stretch_shift_to_terminal``).

    Where the last sigma is 1, as that of a single step is, diffusers divides 0 by 0; here they stay as they are.
    """
    if not terminal or sigmas[-1] == 1:
        return sigmas
    alphas = 1 - sigmas
    stretched: Array = 1 - alphas / (alphas[-1] / sigmas.dtype.type(1 - terminal))
    return stretched


def _linear_quadratic(steps: int, threshold: float = 0.025) -> Array:
    """Half of the steps linear in sigma down to 1 - ``threshold``, the others quadratic down towards 0.

    The two parts meet with the same slope. Source: diffusers pipelines/ltx/pipeline_ltx_condition.py,
    ``linear_quadratic_schedule``, after Movie Gen (arXiv 2410.13720).
    """
    if steps == 1:
        return np.ones(1)
    half = steps // 2
    rest = steps - half
    excess = half - threshold * steps
    a = excess / (half * rest**2)
    b = threshold / half - 2 * excess / rest**2
    i = np.arange(steps, dtype=np.float64)
    alphas: Array = np.where(i < half, i * threshold / half, a * i**2 + b * i + a * half**2)
    return 1.0 - alphas
