"""Solvers of the flow dx/dsigma = v(x, sigma), compiled to `Mix` instructions.

With flow prediction the clean estimate is x0 = x - sigma * v, and every update of Euler, DPM-Solver++(2M) and
UniPC is linear in the latents and in the clean estimates of the last steps, with coefficients that depend on the
sigmas alone. They are computed here in float64.

Three observations keep the lists short:

- For alpha = 1 - sigma, the data-prediction update of first order, sigma_t/sigma_s * x - alpha_t*expm1(-h) * x0,
  is r * x + (1 - r) * x0 with r = sigma_t/sigma_s: an Euler step. At sigma_t = 0, where the half log-SNR
  lambda = log(alpha/sigma) is infinite, r = 0 and the result is x0.
- UniP-2 with B(h) = e^h - 1 is the same update as DPM-Solver++(2M): UniPC is that with a corrector.
- Corrector and predictor of a step start from the same point, so that the corrector is a correction to the
  prediction, linear in clean estimates; the corrected latents need no slot of their own.

Sources: Flow Matching (arXiv 2210.02747); DPM-Solver++ (arXiv 2211.01095, multistep of order 2, data prediction);
UniPC (arXiv 2302.04867, data prediction, B(h) = e^h - 1); diffusers/schedulers/scheduling_flow_match_euler_discrete.py,
scheduling_dpmsolver_multistep.py and scheduling_unipc_multistep.py for the order of the first and the last steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from flowblending import UsageError
from flowblending.contracts.program import LATENTS, VELOCITY, Mix
from flowblending.runtime.program.combination import Combination, slot

EULER = "euler"
DPM = "dpm++"
UNIPC = "unipc"
SOLVERS = (UNIPC, DPM, EULER)


def solve(
    solver: str,
    sigmas: Sequence[float],
    *,
    velocities: Sequence[Combination] | None = None,
    restarts: frozenset[int] = frozenset(),
) -> tuple[tuple[Mix, ...], ...]:
    """What to do after each step's model call: from the latents at ``sigmas[i]`` to those at ``sigmas[i + 1]``.

    Args:
        solver: ``euler`` (order 1), ``dpm++`` (DPM-Solver++ 2M, order 2) or ``unipc`` (UniPC-2, order 3).
        sigmas: falling from at most 1 to 0 [steps + 1].
        velocities: each step's velocity in terms of slots [steps]; the slot ``velocity`` unless told otherwise.
        restarts: steps before which the history of a multistep solver is forgotten, as in a fresh run from there.

    Returns:
        For each step, its instructions. They read ``latents`` and the slots of ``velocities``, write ``latents``,
        and keep clean estimates in up to three slots ``x0_0``, ``x0_1``, ``x0_2``.

    Raises:
        UsageError: the solver is unknown.
    """
    if velocities is None:
        velocities = [slot(VELOCITY)] * (len(sigmas) - 1)
    if solver == EULER:
        return _euler(sigmas, velocities)
    if solver in (DPM, UNIPC):
        return _multistep(sigmas, velocities, restarts, corrector=solver == UNIPC)
    raise UsageError(f"The solver {solver} is unknown; choose one of {', '.join(SOLVERS)}.")


def _euler(sigmas: Sequence[float], velocities: Sequence[Combination]) -> tuple[tuple[Mix, ...], ...]:
    x = slot(LATENTS)
    return tuple(
        ((x + (after - now) * velocity).into(LATENTS),)
        for (now, after), velocity in zip(itertools.pairwise(sigmas), velocities, strict=True)
    )


def _multistep(
    sigmas: Sequence[float], velocities: Sequence[Combination], restarts: frozenset[int], *, corrector: bool
) -> tuple[tuple[Mix, ...], ...]:
    steps = len(sigmas) - 1
    # Steps that use no history: the first, those after a restart, and the last, whose result is x0 alone.
    fresh = restarts | {0, steps - 1, steps}
    lambdas = [_lambda(sigma) for sigma in sigmas[:-1]]
    x = slot(LATENTS)
    kept = [slot(f"x0_{i}") for i in range(3 if corrector else 2)]

    updates = []
    for i in range(steps):
        mixes = []
        x0 = x - sigmas[i] * velocities[i]
        if i + 1 not in fresh:
            mixes.append(x0.into(f"x0_{i % len(kept)}"))
            x0 = kept[i % len(kept)]
        corrected, extrapolated = x, x0
        if i not in fresh:
            before = kept[(i - 1) % len(kept)]
            h, h_before = lambdas[i + 1] - lambdas[i], lambdas[i] - lambdas[i - 1]
            extrapolated = x0 + 0.5 * h / h_before * (x0 - before)
            if corrector:
                weight, weight_before = (0.5, 0.0) if i - 1 in fresh else _corrector(h_before, lambdas[i - 2 : i])
                oldest = kept[(i - 2) % len(kept)]
                shrunk = 1.0 - sigmas[i] / sigmas[i - 1]
                corrected = x + shrunk * (weight * (x0 - before) + weight_before * (oldest - before))
        r = sigmas[i + 1] / sigmas[i]
        mixes.append((r * corrected + (1.0 - r) * extrapolated).into(LATENTS))
        updates.append(tuple(mixes))
    return tuple(updates)


def _corrector(h: float, lambdas: Sequence[float]) -> tuple[float, float]:
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


def _lambda(sigma: float) -> float:
    """Half the log signal-to-noise ratio, log(alpha/sigma), with alpha = 1 - sigma."""
    return math.log((1.0 - sigma) / sigma) if sigma < 1.0 else -math.inf
