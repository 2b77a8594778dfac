"""The multistep update that DPM-Solver++(2M) and UniPC-2 share.

Three observations keep the lists short:

- For alpha = 1 - sigma, the data-prediction update of first order, sigma_t/sigma_s * x - alpha_t*expm1(-h) * x0,
  is r * x + (1 - r) * x0 with r = sigma_t/sigma_s: an Euler step. At sigma_t = 0, where the half log-SNR
  lambda = log(alpha/sigma) is infinite, r = 0 and the result is x0.
- UniP-2 with B(h) = e^h - 1 is the same update as DPM-Solver++(2M): UniPC is that with a corrector.
- Corrector and predictor of a step start from the same point, so that the corrector is a correction to the
  prediction, linear in clean estimates; the corrected latents need no slot of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flowblending.contracts.program import LATENTS
from flowblending.runtime.program.combination import Combination, slot
from flowblending.runtime.program.solvers.solver import Updates

Corrector = Callable[[float, Sequence[float]], tuple[float, float]]


def multistep(
    sigmas: Sequence[float],
    velocities: Sequence[Combination],
    restarts: frozenset[int],
    *,
    corrector: Corrector | None = None,
) -> Updates:
    """The update; see `Solver`.

    Args:
        sigmas: falling from at most 1 to 0 [steps + 1].
        velocities: each step's, in terms of slots [steps].
        restarts: steps before which the history is forgotten.
        corrector: from a step's length in lambda, and lambda at the starts of the step before and of the step, to the
            weights of `flowblending.runtime.program.solvers.unipc.corrector`.

    Returns:
        For each step, its instructions, which keep clean estimates in ``x0_0``, ``x0_1`` and, with a corrector,
        ``x0_2``.
    """
    steps = len(sigmas) - 1
    # Steps that use no history: the first, those after a restart, and the last, whose result is x0 alone.
    fresh = restarts | {0, steps - 1, steps}
    lambdas = [_lambda(sigma) for sigma in sigmas[:-1]]
    x = slot(LATENTS)
    kept = [slot(f"x0_{i}") for i in range(2 if corrector is None else 3)]

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
            if corrector is not None:
                weight, weight_before = (0.5, 0.0) if i - 1 in fresh else corrector(h_before, lambdas[i - 2 : i])
                oldest = kept[(i - 2) % len(kept)]
                shrunk = 1.0 - sigmas[i] / sigmas[i - 1]
                corrected = x + shrunk * (weight * (x0 - before) + weight_before * (oldest - before))
        r = sigmas[i + 1] / sigmas[i]
        mixes.append((r * corrected + (1.0 - r) * extrapolated).into(LATENTS))
        updates.append(tuple(mixes))
    return tuple(updates)


def _lambda(sigma: float) -> float:
    """Half the log signal-to-noise ratio, log(alpha/sigma), with alpha = 1 - sigma."""
    return math.log((1.0 - sigma) / sigma) if sigma < 1.0 else -math.inf
