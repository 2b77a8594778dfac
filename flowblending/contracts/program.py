"""The sampling program: schedule x solver x guidance x step cache, compiled to a list of four kinds of instruction.

File contract 3. Everything clever happens here, once, in float64, before the first step: what a
sampler executes is a list of `Run` (call an engine), `Mix` (a linear combination of latent-sized
slots, in fp32), `Rescale` (the one step of guidance that is not linear) and `Place` (a Mix with a mask: latents
that are held). A program knows neither engines nor
devices, and is tested with closed-form functions.
What cannot be known before the first step is a `Choice`, and rare.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts import upgrade

LATENTS = "latents"
TIMESTEP = "timestep"
VELOCITY = "velocity"
COND = "cond"
UNCOND = "uncond"
GUIDED = "guided"
GIVEN = "given"
"""What stands before the name of a slot that is given, as a branch does before that of a condition."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Call ``model`` on the latents slot at the step's timestep, and write one velocity per branch.

    Attributes:
        model: the engine, a component of the bundle such as ``large``.
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


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """``out *= share * std(reference) / std(out) + 1 - share``: guidance rescale (arXiv 2305.08891, section 3.4).

    Standard deviations are over all elements of a slot, in fp64; the factor is rounded to fp32 once. Where ``out``
    does not vary, nothing is changed. With the guided velocity in ``out`` and the conditional one in ``reference``,
    it is ``rescale_noise_cfg`` of diffusers.

    Attributes:
        share: phi, above 0 and at most 1.
    """

    out: str
    reference: str
    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0 or self.out == self.reference:
            raise ValueError(
                f"a rescaling of {self.out} like {self.reference} takes two slots and a share above 0 and at most 1, "
                f"got {self.share}"
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """``out`` becomes ``source`` in some latent frames, and stays as it is in all others: a Mix with a mask.

    Attributes:
        source: a slot of those latent frames alone, as `Program.partial` says.
    """

    out: str
    source: str


Instruction = Run | Mix | Rescale | Place


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sampling step: which model it belongs to, its noise level, and what to execute.

    Attributes:
        model: the engine of the stage that it is in.
        timestep: what the transformer is told, in [0, 1000].
        sigma: noise level in [0, 1].
        guidance: scale of the step's stage, if it has one of its own; None for the program's.
        frame_timesteps: a timestep for each latent frame in place of one for all, where some are held.
    """

    model: str
    timestep: float
    sigma: float
    instructions: tuple[Instruction, ...]
    guidance: float | None = None
    frame_timesteps: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The mean of ``|slot - other|`` over all elements; of ``|slot|`` if ``other`` is None."""

    slot: str
    other: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is decided while the program runs: whether a step executes its own instructions or other ones.

    `flowblending.runtime.program.caches.easycache` has the rule and its source. It adds up a predicted change
    over the steps since the last computed one; a step whose sum stays below the threshold is left out.

    Attributes:
        threshold: of the sum; above 0.
        moved: taken when a step that may be left out is reached: how far the latents came since the step before.
        learned: taken after every computed step but the first of a stage: how far the latents came and how much the
            velocity changed since the computed step before, and how large it is; then ``kept`` is executed.
        kept: what the next steps compare with; executed after every computed step.
        reuse: of each step: the instructions in place of its own; None where it computes whatever was measured, as the
            first two of every stage do.
        starts: the first steps of stages, from 0 on.
    """

    threshold: float
    moved: Distance
    learned: tuple[Distance, Distance, Distance]
    kept: tuple[Mix, ...]
    reuse: tuple[tuple[Mix, ...] | None, ...]
    starts: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A whole trajectory: from noise in the slot ``latents`` to the result in the same slot.

    Attributes:
        guidance_rescale: phi of its `Rescale` instructions, 0 where there are none; for people.
        latent_shape: [C, F, H, W] of every slot; noise levels may depend on it.
        choice: what is decided while it runs, if anything; without it every step executes its instructions.
        partial: slots that hold some latent frames alone, and which, from 0 on; all others hold every frame.
        given: those of them that are filled before the first step, and keep what they hold.
        extra: latent frames before the video's own, which its result is without.
    """

    FORMAT = upgrade.PROGRAM.number

    schedule: str
    solver: str
    guidance: float
    latent_shape: tuple[int, int, int, int]
    steps: tuple[Step, ...]
    choice: Choice | None = None
    guidance_rescale: float = 0.0
    partial: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    extra: int = 0

    def slot_shape(self, slot: str) -> tuple[int, int, int, int]:
        """[C, F, H, W] of a slot."""
        channels, frames, height, width = self.latent_shape
        return channels, len(self.partial.get(slot, range(frames))), height, width

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction in order, as if no step were left out by a choice."""
        for step in self.steps:
            yield from step.instructions

    def slots(self) -> tuple[str, ...]:
        """Every latent-sized buffer that the program uses, ``latents`` first."""
        names = dict.fromkeys([LATENTS])
        chosen = () if self.choice is None else (self.choice.kept, *(each or () for each in self.choice.reuse))
        for instruction in (*self.instructions(), *itertools.chain(*chosen)):
            if isinstance(instruction, Run):
                names.update(dict.fromkeys(instruction.out))
            elif isinstance(instruction, Mix):
                names.update(dict.fromkeys([*(slot for _, slot in instruction.terms), instruction.out]))
            elif isinstance(instruction, Place):
                names.update(dict.fromkeys([instruction.source, instruction.out]))
            else:
                names.update(dict.fromkeys([instruction.reference, instruction.out]))
        return tuple(names)

    def branches(self) -> tuple[str, ...]:
        """The text conditions that it needs: ``cond``, and ``uncond`` where guidance is on."""
        used = {branch for each in self.instructions() if isinstance(each, Run) for branch in each.branches}
        return tuple(branch for branch in (COND, UNCOND) if branch in used)

    def calls(self, model: str) -> int:
        """How often ``model`` runs on one latent, each branch counted; at most, if there is a choice."""
        return sum(len(each.branches) for each in self.instructions() if isinstance(each, Run) and each.model == model)

    def guided(self, step: Step) -> bool:
        """Whether a step has an unconditional branch, computed or not."""
        return (self.guidance if step.guidance is None else step.guidance) > 1.0

    def undecided(self, model: str) -> int:
        """How many of those calls are decided while the program runs."""
        if self.choice is None:
            return 0
        free = [step for step, reuse in zip(self.steps, self.choice.reuse, strict=True) if reuse is not None]
        return dataclasses.replace(self, steps=tuple(free), choice=None).calls(model)

    def listing(self) -> str:
        """The program as text: one line per step, one line per instruction."""
        rescale = f", rescaled by {self.guidance_rescale:g}" if self.guidance_rescale else ""
        lines = [f"{self.schedule}, {self.solver}, guidance {self.guidance:g}{rescale}"]
        for number, step in enumerate(self.steps, start=1):
            scale = "" if step.guidance is None else f", guidance {step.guidance:g}"
            lines.append(f"step {number}: {step.model}, timestep {step.timestep:g}, sigma {step.sigma:.6f}{scale}")
            if self.choice is not None and self.choice.reuse[number - 1] is not None:
                lines.append("    unless it is left out, as is decided when it is reached:")
            for each in step.instructions:
                if isinstance(each, Run):
                    lines.append(f"    {', '.join(each.out)} = {each.model}({LATENTS}, {', '.join(each.branches)})")
                elif isinstance(each, Rescale):
                    ratio = f"std({each.reference}) / std({each.out})"
                    lines.append(f"    {each.out} *= {each.share:g} {ratio} + {1 - each.share:g}")
                elif isinstance(each, Place):
                    frames = ", ".join(map(str, self.partial[each.source]))
                    lines.append(f"    {each.out} = {each.source} in the latent frames {frames}")
                else:
                    terms = " ".join(f"{coefficient:+.6g} {slot}" for coefficient, slot in each.terms)
                    lines.append(f"    {each.out} = {terms}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The program as plain data for ``json.dumps``.

        An instruction with ``terms`` is a mix, one with a ``share`` a rescaling, one with a ``source`` a placing, and
        the others are runs.

        Raises:
            UsageError: it has a choice, which the format does not know.
        """
        if self.choice is not None:
            raise UsageError(
                "The cache easycache decides while a program runs, which a program file cannot say; give --cache "
                "easycache-static, whose constants fb-calibrate BUNDLE --prompts FILE --cache easycache measures, or "
                "another cache that decides beforehand, such as magcache or scm:slow."
            )
        content = dataclasses.asdict(self)
        del content["choice"]
        for step in content["steps"]:
            if step["frame_timesteps"] is None:
                del step["frame_timesteps"]
        return {"format": self.FORMAT, **content}

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Program:
        """The program that ``to_json`` described.

        Raises:
            FlowBlendingError: the data is damaged or of a later format.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            content = upgrade.PROGRAM.upgrade(content, "The program", "write it again with fb-run --emit-program")
        except ValueError as error:
            raise FlowBlendingError(f"The sampling program is damaged ({error}); write it again.") from None
        try:
            known = {name: value for name, value in content.items() if name != "choice"}
            return TypeAdapter(cls).validate_python(known)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FlowBlendingError(
                f"The sampling program is damaged at {place} ({first['msg']}); write it again."
            ) from None
