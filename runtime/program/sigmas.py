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

import numpy as np

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.shifts import BELOW_ONE, Array
from flowblending.runtime.program.solvers import euler
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.program.solvers.solver import Solver


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


_MANY_STEPS = 8


def sigma_grid(grid: SigmaGrid, solver: str, steps: int, tokens: int, video: str = "this video") -> Grid:
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
        video: that has so many, for messages.

    Raises:
        UsageError: the solver is unknown, ``steps`` is not positive, or there are so many steps, or tokens under a
            dynamic shift, that float32 cannot tell the sigmas apart.
    """
    chosen = SOLVERS.get(solver)
    if steps < 1:
        raise UsageError(f"{steps} steps were asked for, but at least 1 is needed; give a positive number of steps.")
    sigmas, timesteps = _levels(grid, chosen, steps, tokens)
    if not _fall(sigmas):
        raise UsageError(_too_close(grid, chosen, steps, tokens, video))
    return Grid(
        sigmas=tuple(sigmas.tolist()),
        timesteps=tuple(timesteps.astype(np.float64).tolist()),
        train_timesteps=grid.train_timesteps,
    )


def _levels(grid: SigmaGrid, solver: Solver, steps: int, tokens: int) -> tuple[Array, Array]:
    """Sigmas float32 with the last one, 0, and timesteps."""
    levels = solver.levels.get(grid.kind)
    sigmas, timesteps = (levels or euler.levels)(grid, steps, tokens)
    if levels is None and solver.below_one:
        sigmas[0] = min(sigmas[0], np.float32(1.0 - BELOW_ONE))
    return np.append(sigmas.astype(np.float32), np.float32(0.0)), timesteps


def _fall(sigmas: Array) -> bool:
    return bool(np.all(np.diff(sigmas) < 0))


def _too_close(grid: SigmaGrid, solver: Solver, steps: int, tokens: int, video: str) -> str:
    """Why neighbouring noise levels are equal, and what there is to do.

    A dynamic shift moves the levels of large videos towards 1: at exp(mu) from about 2^23 on, float32 has no numbers
    between them. The classes differ in where they round.
    """

    def works(other: Solver, fewer: int, count: int = steps) -> bool:
        return _fall(_levels(grid, other, count, fewer)[0])

    if grid.kind != "dynamic-shift" or not works(solver, 1):
        return f"{steps} steps are so many that neighbouring noise levels are equal; ask for far fewer."
    # Few levels may be equal at one size and differ again at a larger one; many never do, and lie closer.
    count = max(steps, _MANY_STEPS)
    most = bisect.bisect_left(range(1, tokens), True, key=lambda fewer: not works(solver, fewer, count))
    others = [f"--solver {name}" for name in SOLVERS.built_in if works(SOLVERS.get(name), tokens)]
    # With as many frames, there are as many tokens as pixels, but for a factor.
    percent = math.floor(most / tokens * 10_000) / 100
    remedies = [*others, f"a size of at most {percent:g} % of its pixels, which the bundle may have to be built for"]
    return (
        f"For {video}, the checkpoint's dynamic shift moves {steps} steps of "
        f"{solver.name} so close to noise level 1 that neighbouring ones are equal; give {' or '.join(remedies)}."
    )
