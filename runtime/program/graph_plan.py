"""Which steps of a program do the same with other numbers, and which are worth a CUDA graph for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from flowblending.contracts.program import Instruction, Mix, Program

LEAST_STEPS: Final = 4
"""Steps of a kind that a graph is made for. One runs before anything is captured. Capturing the next takes the host as
long as enqueueing it, and making a graph of it ready as long again or twice that; every further step saves it nearly
all of its work."""


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """Which steps become graphs.

    Attributes:
        kinds: of each step, the same number for steps that differ in timestep and factors alone; from 0 on.
        captured: the kinds that get a graph.
        why_not: why there are none, as the end of a sentence; empty if there are.
    """

    kinds: tuple[int, ...]
    captured: frozenset[int]
    why_not: str = ""

    @property
    def launches(self) -> int:
        """How many steps of one run are launched as graphs: all of a captured kind but the first."""
        return sum(kind in self.captured for kind in self.kinds) - len(self.captured)


def plan_graphs(program: Program, uncapturable: Collection[str] = (), *, by_phases: bool = False) -> GraphPlan:
    """Which steps of a program become graphs.

    Args:
        uncapturable: what some of its calls are of that cannot be captured: back ends, or engines.
        by_phases: whether engines come and go, and their addresses with them.
    """
    kinds = _kinds(program)
    captured = frozenset(kind for kind, count in Counter(kinds).items() if count >= LEAST_STEPS)
    why_not = ""
    if program.choice is not None:
        why_not = "the cache decides at every step"
    elif by_phases:
        why_not = "engines are opened and closed while the steps run"
    elif not captured:
        why_not = f"no step comes {LEAST_STEPS} times with nothing but other numbers"
    elif uncapturable:
        why_not = f"calls of {' and '.join(sorted(uncapturable))} cannot be captured"
    return GraphPlan(kinds=kinds, captured=frozenset() if why_not else captured, why_not=why_not)


def _kinds(program: Program) -> tuple[int, ...]:
    numbers: dict[tuple[object, ...], int] = {}
    return tuple(numbers.setdefault(tuple(map(_shape, step.instructions)), len(numbers)) for step in program.steps)


def _shape(instruction: Instruction) -> object:
    """An instruction without the numbers that a step may have of its own."""
    if isinstance(instruction, Mix):
        return instruction.out, tuple(slot for _, slot in instruction.terms)
    return instruction
