"""What a solver is: facts about it, and the function that makes its instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowblending.contracts.program import Mix
from flowblending.runtime.program.combination import Combination

if TYPE_CHECKING:
    from flowblending.contracts.graph import SigmaGrid
    from flowblending.runtime.program.shifts import Array

Updates = tuple[tuple[Mix, ...], ...]
"""For each step, its instructions. They read ``latents`` and the slots of the velocities, write ``latents`` last, and
may keep what later steps need in slots of their own; no step reads another step's velocity."""

Update = Callable[[Sequence[float], Sequence[Combination], frozenset[int]], Updates]
"""From the sigmas, falling from at most 1 to 0 [steps + 1], each step's velocity in terms of slots [steps], and the
steps before which history is forgotten, to the steps' instructions."""

Levels = Callable[["SigmaGrid", int, int], "tuple[Array, Array]"]
"""From a checkpoint's grid, the number of steps and that of tokens to sigmas without the last 0, and timesteps."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A solver.

    Attributes:
        name: as ``--solver`` and manifests write it.
        help: a few words on it.
        order: p, where the error of a run falls with the p-th power of the length of its steps.
        update: makes the instructions. The first step, the last one and those after a restart are of first order: they
            know no history, and so a stage with timesteps of its own takes Euler's steps (see
            `flowblending.runtime.program.noise_levels`).
        levels: by the grid's kind, how the solver's diffusers class spaces its steps, where that differs from
            FlowMatchEulerDiscreteScheduler.
        below_one: whether the first sigma must be less than 1, where half the log signal-to-noise ratio is infinite.
    """

    name: str
    help: str
    order: int
    update: Update
    levels: Mapping[str, Levels] = field(default_factory=dict)
    below_one: bool = False
