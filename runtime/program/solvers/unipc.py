"""UniPC of order 2, data prediction, B(h) = e^h - 1: DPM-Solver++(2M) with a corrector.

Sources: UniPC (arXiv 2302.04867); diffusers/schedulers/scheduling_unipc_multistep.py for the order of the first and the
last steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowblending.runtime.program.combination import Combination
from flowblending.runtime.program.solvers.multistep import multistep
from flowblending.runtime.program.solvers.solver import Solver, Updates

if TYPE_CHECKING:
    from flowblending.contracts.graph import SigmaGrid
    from flowblending.runtime.program.shifts import Array


def update(sigmas: Sequence[float], velocities: Sequence[Combination], restarts: frozenset[int]) -> Updates:
    """UniP-2 of the step and UniC-2 of the step before, in one mix."""
    return multistep(sigmas, velocities, restarts, corrector=corrector)


def corrector(h: float, lambdas: Sequence[float]) -> tuple[float, float]:
    """What UniC-2 adds to UniP-2 over a step of length ``h`` in lambda, as a share of 1 - sigma_t/sigma_s.

    UniC-p solves R_p(h) a_p(h) B(h) = phi_p(h) (arXiv 2302.04867), here two equations in two unknowns.

    Args:
        h: lambda at the end of the step less lambda at its start.
        lambdas: at the start of the step before, and at the start of the step.

    Returns:
        The weights of x0 at the end of the step and of x0 at the start of the step before, each less x0 at the
        start of the step. The second is less the weight 1/2 that the predictor has given it already.
    """
    r = (lambdas[0] - lambdas[1]) / h
    b = math.expm1(-h)
    phi_1 = -1.0 / h - 1.0 / b
    phi_2 = 2.0 * ((b / -h - 1.0) / -h - 0.5) / b
    a_before = (phi_1 - phi_2) / (1.0 - r)
    return phi_1 - a_before, (a_before - 0.5) / r


def levels(grid: SigmaGrid, steps: int, tokens: int) -> tuple[Array, Array]:
    """UniPCMultistepScheduler.set_timesteps with use_flow_sigmas: float64, timesteps cut to integers.

    For the dynamic shift, with the sigmas and the mu that LTXPipeline passes.
    """
    import numpy as np

    from flowblending.runtime.program import shifts

    sigmas: Array
    if grid.kind == "shifted":
        sigmas = shifts.shift(np.linspace(1.0, 1.0 / grid.train_timesteps, steps + 1)[:-1], grid.shift)
    else:
        mu = shifts.dynamic_exponent(grid, tokens)
        sigmas = shifts.exponential_shift(np.linspace(1.0, 1.0 / steps, steps), mu)
    sigmas = shifts.stretch(sigmas, grid.shift_terminal)
    if abs(sigmas[0] - 1.0) < shifts.BELOW_ONE:
        sigmas[0] -= shifts.BELOW_ONE
    return sigmas, np.trunc(sigmas * grid.train_timesteps)


UNIPC = Solver(
    name="unipc",
    help="UniPC of order 2, whose corrector makes it one of order 3",
    order=3,
    update=update,
    levels={"shifted": levels, "dynamic-shift": levels},
    below_one=True,
)
