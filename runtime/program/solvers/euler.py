"""Euler's method: x at the next sigma is x + (next sigma - sigma) * v.

Sources: Flow Matching (arXiv 2210.02747); diffusers/schedulers/scheduling_flow_match_euler_discrete.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowblending.contracts.program import LATENTS
from flowblending.runtime.program.combination import Combination, slot
from flowblending.runtime.program.solvers.solver import Solver, Updates

if TYPE_CHECKING:
    from flowblending.contracts.graph import SigmaGrid
    from flowblending.runtime.program.shifts import Array


def update(sigmas: Sequence[float], velocities: Sequence[Combination], restarts: frozenset[int]) -> Updates:  # noqa: ARG001 - there is no history
    """One mix a step."""
    x = slot(LATENTS)
    return tuple(
        ((x + (after - now) * velocity).into(LATENTS),)
        for (now, after), velocity in zip(itertools.pairwise(sigmas), velocities, strict=True)
    )


def levels(grid: SigmaGrid, steps: int, tokens: int) -> tuple[Array, Array]:
    """FlowMatchEulerDiscreteScheduler.set_timesteps, with what the pipeline of each kind passes to it."""
    import numpy as np

    from flowblending.runtime.program import shifts

    scale = np.float32(grid.train_timesteps)
    sigmas: Array
    if grid.kind == "linear-quadratic":
        # LTXConditionPipeline passes timesteps, from which the scheduler derives the sigmas again.
        timesteps = shifts.linear_quadratic(steps).astype(np.float32) * scale
        return timesteps / scale, timesteps
    if grid.kind == "dynamic-shift":
        mu = shifts.dynamic_exponent(grid, tokens)
        sigmas = shifts.exponential_shift(np.linspace(1.0, 1.0 / steps, steps).astype(np.float32), mu)
    else:
        # The scheduler spreads the steps between the shifted ends of its training grid, and shifts them once more.
        ends = shifts.shift(np.array([grid.train_timesteps, 1], np.float32) / scale, grid.shift).astype(np.float64)
        first, last = ends * grid.train_timesteps
        sigmas = shifts.shift(np.linspace(first, last, steps) / grid.train_timesteps, grid.shift)
    sigmas = shifts.stretch(sigmas, grid.shift_terminal).astype(np.float32)
    return sigmas, sigmas * scale


EULER = Solver(name="euler", help="Euler's method", order=1, update=update)
