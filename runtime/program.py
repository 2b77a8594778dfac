"""The sampling program: schedule x solver x guidance, compiled to a list of two kinds of instruction.

File contract 3. Everything clever happens here, once, in float64, before the first step: what a
sampler executes is a list of `Run` (call an engine) and `Mix` (a linear combination of latent-sized
slots, in fp32). A program knows neither engines nor devices, and is tested with closed-form functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LATENTS = "latents"
VELOCITY = "velocity"
COND = "cond"
UNCOND = "uncond"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Call ``model`` on the latents slot at the step's timestep, and write one velocity per branch.

    Attributes:
        model: ``large`` or ``small``.
        branches: the text conditions (``cond``, ``uncond``) of one call; two of them make a batch of two.
        out: one slot per branch. The slots of one call lie side by side in memory, in this order.
    """

    model: str
    branches: tuple[str, ...]
    out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """``out = sum(coefficient * slot)`` in fp32; ``out`` may be one of the slots."""

    out: str
    terms: tuple[tuple[float, str], ...]


Instruction = Run | Mix


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sampling step: which model it belongs to, its noise level, and what to execute.

    Attributes:
        model: ``large`` or ``small``: the stage this step is in.
        timestep: what the transformer is told, in [0, 1000].
        sigma: noise level in [0, 1].
    """

    model: str
    timestep: float
    sigma: float
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A whole trajectory: from noise in the slot ``latents`` to the result in the same slot."""

    schedule: str
    solver: str
    guidance: float
    steps: tuple[Step, ...]

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction in order."""
        for step in self.steps:
            yield from step.instructions

    def slots(self) -> tuple[str, ...]:
        """Every latent-sized buffer that the program uses, ``latents`` first."""
        names = dict.fromkeys([LATENTS])
        for instruction in self.instructions():
            if isinstance(instruction, Run):
                names.update(dict.fromkeys(instruction.out))
            else:
                names.update(dict.fromkeys([*(slot for _, slot in instruction.terms), instruction.out]))
        return tuple(names)

    def calls(self, model: str) -> int:
        """How often ``model`` runs on one latent, each branch counted."""
        return sum(
            len(each.branches) for each in self.instructions() if isinstance(each, Run) and each.model == model
        )
