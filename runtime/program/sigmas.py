"""Noise levels and timesteps of a run, bit for bit those of the diffusers schedulers and pipelines, without torch.

The schedulers round sigmas to float32 when they store them and compute coefficients from what they stored. So does
this file: its float64 sigmas are float32 values, and arithmetic that diffusers does in float32 is done in float32
here. A difference in the last bit would be harmless to the solver, but not where a timestep is cut to an integer,
or where 1 - sigma = 1e-6 loses its leading digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.shifts import BELOW_ONE
from flowblending.runtime.program.solvers import euler
from flowblending.runtime.program.solvers.registry import SOLVERS


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


def sigma_grid(grid: SigmaGrid, solver: str, steps: int, tokens: int) -> Grid:
    """The noise levels of a run.

    Where the solver's diffusers class can make the grid, the result is that class's: ``shifted`` with UniPC,
    DPM-Solver++ and Euler (WanPipeline), ``dynamic-shift`` with Euler and UniPC (LTXPipeline), ``linear-quadratic``
    with Euler (LTXConditionPipeline). Elsewhere it is the grid of Euler, with the first sigma just below 1 for solvers
    that need that.

    Args:
        grid: the checkpoint's.
        solver: the name of one of `SOLVERS`.
        steps: number of model calls.
        tokens: latent frames x height x width in patches, which the dynamic shift depends on.

    Raises:
        UsageError: the solver is unknown, ``steps`` is not positive, or there are so many steps that float32
            cannot tell their sigmas apart.
    """
    chosen = SOLVERS.get(solver)
    if steps < 1:
        raise UsageError(f"{steps} steps were asked for, but at least 1 is needed; give a positive number of steps.")
    levels = chosen.levels.get(grid.kind)
    sigmas, timesteps = (levels or euler.levels)(grid, steps, tokens)
    if levels is None and chosen.below_one:
        sigmas[0] = min(sigmas[0], np.float32(1.0 - BELOW_ONE))
    sigmas = np.append(sigmas.astype(np.float32), np.float32(0.0))
    if not np.all(np.diff(sigmas) < 0):
        raise UsageError(f"{steps} steps are so many that neighbouring noise levels are equal; ask for far fewer.")
    return Grid(
        sigmas=tuple(sigmas.tolist()),
        timesteps=tuple(timesteps.astype(np.float64).tolist()),
        train_timesteps=grid.train_timesteps,
    )
