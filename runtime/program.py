"""The sampling program: schedule x solver x guidance x step cache, compiled to a list of two kinds of instruction.

File contract 3. Everything clever happens here, once, in float64, before the first step: what a
sampler executes is a list of `Run` (call an engine) and `Mix` (a linear combination of latent-sized
slots, in fp32). A program knows neither engines nor devices, and is tested with closed-form functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from flowblending import FlowBlendingError

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
    """``out = sum(coefficient * slot)`` in fp32.

    Coefficients are finite and each slot occurs once; if ``out`` is one of the slots, it stands first, so that
    ``out *= first; out += coefficient * slot; ...`` is a correct implementation.
    """

    out: str
    terms: tuple[tuple[float, str], ...]

    def __post_init__(self) -> None:
        slots = [slot for _, slot in self.terms]
        if not self.terms or not all(math.isfinite(coefficient) for coefficient, _ in self.terms):
            raise ValueError(f"the terms of a mix into {self.out} must be finite and at least one, got {self.terms}")
        if len(set(slots)) < len(slots) or self.out in slots[1:]:
            raise ValueError(f"a mix must name each slot once and {self.out} first, got {slots}")


Instruction = Run | Mix


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sampling step: which model it belongs to, its noise level, and what to execute.

    Attributes:
        model: ``large`` or ``small``: the stage this step is in.
        timestep: what the transformer is told, in [0, 1000].
        sigma: noise level in [0, 1].
        guidance: scale of the step's stage, if it has one of its own; None for the program's.
    """

    model: str
    timestep: float
    sigma: float
    instructions: tuple[Instruction, ...]
    guidance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """A whole trajectory: from noise in the slot ``latents`` to the result in the same slot."""

    FORMAT = 1

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

    def branches(self) -> tuple[str, ...]:
        """The text conditions that it needs: ``cond``, and ``uncond`` where guidance is on."""
        used = {branch for each in self.instructions() if isinstance(each, Run) for branch in each.branches}
        return tuple(branch for branch in (COND, UNCOND) if branch in used)

    def calls(self, model: str) -> int:
        """How often ``model`` runs on one latent, each branch counted."""
        return sum(len(each.branches) for each in self.instructions() if isinstance(each, Run) and each.model == model)

    def guided(self, step: Step) -> bool:
        """Whether a step has an unconditional branch, computed or not."""
        return (self.guidance if step.guidance is None else step.guidance) > 1.0

    def listing(self) -> str:
        """The program as text: one line per step, one line per instruction."""
        lines = [f"{self.schedule}, {self.solver}, guidance {self.guidance:g}"]
        for number, step in enumerate(self.steps, start=1):
            scale = "" if step.guidance is None else f", guidance {step.guidance:g}"
            lines.append(f"step {number}: {step.model}, timestep {step.timestep:g}, sigma {step.sigma:.6f}{scale}")
            for each in step.instructions:
                if isinstance(each, Run):
                    lines.append(f"    {', '.join(each.out)} = {each.model}({LATENTS}, {', '.join(each.branches)})")
                else:
                    terms = " ".join(f"{coefficient:+.6g} {slot}" for coefficient, slot in each.terms)
                    lines.append(f"    {each.out} = {terms}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The program as plain data for ``json.dumps``; an instruction with ``terms`` is a mix, the others are runs."""
        return {"format": self.FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Program:
        """The program that ``to_json`` described.

        Raises:
            FlowBlendingError: the data is damaged or of another format.
        """
        if content.get("format") != cls.FORMAT:
            raise FlowBlendingError(
                f"The sampling program has format {content.get('format')}, but {cls.FORMAT} was expected; "
                "write it again with this version."
            )
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FlowBlendingError(
                f"The sampling program is damaged at {place} ({first['msg']}); write it again."
            ) from None
