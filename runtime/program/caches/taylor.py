"""TaylorSeer (arXiv 2503.06923) on a model's output: where the engine does not run, its velocity is extrapolated.

With D0 the velocity at the last computed step and g the number of steps from the computed step before to that one,

    D(i + 1) = (D(i) - D(i) as it was at the computed step before) / g
    velocity k steps later = sum over i of D(i) * k^i / i!

as in Shenyi-Z/TaylorSeer, TaylorSeer-Wan2.1 (``derivative_approximation``, ``taylor_formula``), there for the output
of every module, here for that of the whole model. The variable is the step's number, not the noise level, and every
difference is divided by the last gap. Order 1 therefore continues a straight line exactly; order 2 does not continue
a parabola exactly, because D1 is the slope half a gap earlier. So it is published, and so it is here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowblending.runtime.program.caches.arguments import read_whole
from flowblending.runtime.program.caches.cache import Cache, Decides
from flowblending.runtime.program.caches.policy import Decisions, Outline
from flowblending.runtime.program.combination import Combination

MAX_ORDER = 2

_STEPS = "interval:5"
"""Of ``taylor`` alone: TaylorSeer's own for Wan 2.1 (``fresh_threshold``)."""


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """Extrapolation over the computed steps.

    Attributes:
        order: 0 (the last velocity) to ``MAX_ORDER``; less as long as a stage has not computed ``order`` + 1 steps.
    """

    order: int

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:  # noqa: ARG002 - StepCache
        """Set the order; it is velocities that are extrapolated."""
        return dataclasses.replace(decisions, order=self.order, relative=False)


def differences(old: Sequence[Combination], velocity: Combination, gap: int, order: int) -> tuple[Combination, ...]:
    """D0, D1, ... at a computed step.

    Args:
        old: the same at the computed step before; empty if there is none in this stage.
        velocity: of this step.
        gap: steps since the computed step before.
        order: the highest to compute.
    """
    new = [velocity]
    for each in old[:order]:
        new.append((1.0 / gap) * (new[-1] - each))
    return tuple(new)


def extrapolate(terms: Sequence[Combination], distance: int) -> Combination:
    """The velocity ``distance`` steps after the step of ``terms`` (D0, D1, ...)."""
    first, *rest = terms
    total = first
    for i, each in enumerate(rest, start=1):
        total = total + distance**i / math.factorial(i) * each
    return total


def _read(arguments: str, word: str) -> Taylor:
    return Taylor(order=read_whole(word, arguments or "1", low=0, high=MAX_ORDER))


TAYLOR = Cache(
    name="taylor",
    form="taylor:ORDER",
    example="taylor:1",
    help="to extrapolate",
    decides=Decides.EXTRAPOLATION,
    read=_read,
    steps=_STEPS,
)
