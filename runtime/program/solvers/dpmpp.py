"""DPM-Solver++(2M), data prediction.

Sources: DPM-Solver++ (arXiv 2211.01095, multistep of order 2); diffusers/schedulers/scheduling_dpmsolver_multistep.py
for the order of the first and the last steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowblending.runtime.program.combination import Combination
from flowblending.runtime.program.solvers.multistep import multistep
from flowblending.runtime.program.solvers.solver import Solver, Updates

if TYPE_CHECKING:
    from flowblending.contracts.graph import SigmaGrid
    from flowblending.runtime.program.shifts import Array


def update(sigmas: Sequence[float], velocities: Sequence[Combination], restarts: frozenset[int]) -> Updates:
    """The clean estimate, extrapolated over the last two steps."""
    return multistep(sigmas, velocities, restarts)


def levels(grid: SigmaGrid, steps: int, tokens: int) -> tuple[Array, Array]:  # noqa: ARG001 - Levels
    """DPMSolverMultistepScheduler.set_timesteps with use_flow_sigmas.

    Its grid is the mirror image of UniPC's: it starts at 0.999 before the shift, and needs no step below 1.
    """
    import numpy as np

    from flowblending.runtime.program import shifts

    alphas = np.linspace(1.0, 1.0 / grid.train_timesteps, steps + 1)
    sigmas = shifts.shift(1.0 - alphas, grid.shift)[:0:-1]
    return sigmas, np.trunc(sigmas * grid.train_timesteps)


DPMPP = Solver(
    name="dpm++", help="DPM-Solver++(2M)", order=2, update=update, levels={"shifted": levels}, below_one=True
)
