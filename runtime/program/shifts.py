"""The shifts of noise levels that solvers' grids are made with, in the arithmetic of diffusers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid

Array = npt.NDArray[np.floating[Any]]

BELOW_ONE = 1e-6
"""How far below 1 the first sigma must lie for log((1 - sigma) / sigma) to be finite; UniPCMultistepScheduler's."""


def shift(sigmas: Array, factor: float) -> Array:
    """The timestep shift of Stable Diffusion 3 (arXiv 2403.03206)."""
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def exponential_shift(sigmas: Array, mu: float) -> Array:
    """The static shift by exp(mu), written as diffusers computes it (``_time_shift_exponential``)."""
    # Beyond, all sigmas are 1 in float64 as well, and float32 overflows.
    shift = math.exp(min(mu, 80.0))
    return shift / (shift + (1 / sigmas - 1))


def dynamic_exponent(grid: SigmaGrid, tokens: int) -> float:
    """The shift's exponent, linear in the number of tokens (diffusers pipelines/ltx, ``calculate_shift``)."""
    slope = (grid.max_shift - grid.base_shift) / (grid.max_tokens - grid.base_tokens)
    return tokens * slope + (grid.base_shift - slope * grid.base_tokens)


def stretch(sigmas: Array, terminal: float | None) -> Array:
    """Stretch 1 - sigma so that the last sigma is ``terminal`` (``stretch_shift_to_terminal``).

    Where the last sigma is 1, as that of a single step is, diffusers divides 0 by 0; here they stay as they are.
    """
    if not terminal or sigmas[-1] == 1:
        return sigmas
    alphas = 1 - sigmas
    stretched: Array = 1 - alphas / (alphas[-1] / sigmas.dtype.type(1 - terminal))
    return stretched


def linear_quadratic(steps: int, threshold: float = 0.025) -> Array:
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


def with_shift(grid: SigmaGrid, factor: float | None) -> SigmaGrid:
    """A checkpoint's noise levels with another shift; None for its own.

    It is the setting ``flow_shift`` of UniPC and DPM-Solver++ in diffusers, and ``shift`` of
    FlowMatchEulerDiscreteScheduler. That class ignores it where the shift is dynamic; here it takes the place of the
    dynamic one, as if ``use_dynamic_shifting`` were false. ``shift_terminal`` stays.

    Raises:
        UsageError: the levels have no shift, or the factor is not above 0 and finite.
    """
    if factor is None:
        return grid
    if grid.kind == "linear-quadratic":
        raise UsageError(
            f"A shift of {factor:g} was given, but the noise levels of this model's pipeline are a fixed curve without "
            "one (linear-quadratic); leave it out."
        )
    if not (0.0 < factor < math.inf):
        raise UsageError(f"The shift is {factor:g}, but a finite number above 0 was expected; give one such as 5.")
    if grid.kind == "shifted":
        return dataclasses.replace(grid, shift=factor)
    return dataclasses.replace(grid, base_shift=math.log(factor), max_shift=math.log(factor))


def static_shift(grid: SigmaGrid) -> float | None:
    """The factor of noise levels that depend on no number of tokens; None for others."""
    if grid.kind == "shifted":
        return grid.shift
    if grid.kind == "dynamic-shift" and grid.base_shift == grid.max_shift:
        return math.exp(grid.base_shift)
    return None


def describe_shift(grid: SigmaGrid, tokens: int) -> str:
    """The shift in words, such as ``shift 3``."""
    if grid.kind == "linear-quadratic":
        return "no shift (linear-quadratic)"
    factor = shift_of(grid, tokens)
    return (
        f"shift {factor:g}" if static_shift(grid) is not None else (f"shift {factor:.4g} (dynamic, of {tokens} tokens)")
    )


def shift_of(grid: SigmaGrid, tokens: int) -> float | None:
    """The factor at a number of tokens; None for noise levels that have none."""
    if grid.kind == "linear-quadratic":
        return None
    factor = static_shift(grid)
    return math.exp(min(dynamic_exponent(grid, tokens), 80.0)) if factor is None else factor
