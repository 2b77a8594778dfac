"""Every solver, the one to be offered first first."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending.contracts.program import VELOCITY
from flowblending.runtime.program.combination import Combination, slot
from flowblending.runtime.program.solvers.dpmpp import DPMPP
from flowblending.runtime.program.solvers.euler import EULER
from flowblending.runtime.program.solvers.solver import Solver, Updates
from flowblending.runtime.program.solvers.unipc import UNIPC
from flowblending.system.registry import Registry

SOLVERS: Registry[Solver] = Registry("solver", "flowblending.solvers", (UNIPC, DPMPP, EULER))

METAVAR = "{" + ",".join(SOLVERS.built_in) + "}"
"""What command lines show in place of a name; installed packages may add others."""


def solve(
    solver: str,
    sigmas: Sequence[float],
    *,
    velocities: Sequence[Combination] | None = None,
    restarts: frozenset[int] = frozenset(),
) -> Updates:
    """What to do after each step's model call: from the latents at ``sigmas[i]`` to those at ``sigmas[i + 1]``.

    Args:
        solver: the name of one of ``SOLVERS``.
        sigmas: falling from at most 1 to 0 [steps + 1].
        velocities: each step's velocity in terms of slots [steps]; the slot ``velocity`` unless told otherwise.
        restarts: steps before which the history of a multistep solver is forgotten, as in a fresh run from there.

    Returns:
        For each step, its instructions.

    Raises:
        UsageError: the solver is unknown.
    """
    if velocities is None:
        velocities = [slot(VELOCITY)] * (len(sigmas) - 1)
    return SOLVERS.get(solver).update(sigmas, velocities, restarts)
