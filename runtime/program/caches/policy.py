"""What every step cache is: decisions that are made before the first step, so that they become part of the program.

One policy leaves some of them to the run (`Online`). A cached velocity belongs to one model and one guidance branch.
Nothing is kept across a switch: the first step of every stage runs its engine for all branches, whatever a policy would
like.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flowblending import UsageError

if TYPE_CHECKING:
    from flowblending.runtime.program.visits import Visits


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a policy knows of a run.

    Attributes:
        schedule: the engine of every step. A step with a timestep of its stage's own is a stage by itself: such steps
            lie far apart, and nothing is reused there.
        timesteps: what the transformer is told at each step, in [0, 1000] [steps].
        guided: whether steps have an unconditional branch beside the conditional one, where their stage does not say.
        architectures: by engine, its published name (see `flowblending.contracts.graph`), for policies with constants
            of its own; None or absent if it has none.
        constants: by policy and engine, what ``fb-calibrate`` measured on the bundle; it goes before what is published.
    """

    schedule: Visits
    timesteps: tuple[float, ...]
    guided: bool
    architectures: Mapping[str, str | None] = field(default_factory=dict)
    constants: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return len(self.schedule.models)

    @property
    def starts(self) -> frozenset[int]:
        """The first step of every stage, from 0 on."""
        return self.schedule.switches | {0}

    @property
    def uncond(self) -> tuple[bool, ...]:
        """Whether each step has an unconditional branch."""
        return tuple(scale > 1.0 for scale in self.schedule.guidance(math.inf if self.guided else 1.0))


@dataclass(frozen=True, kw_only=True)
class Online:
    """What is decided while the program runs; see `flowblending.contracts.program.Choice`.

    Attributes:
        threshold: of the rule.
        free: for each step, whether it may be skipped; the others compute.
    """

    threshold: float
    free: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What runs, and how to stand in for what does not.

    Attributes:
        cond: for each step, whether the engine runs for the conditional branch (the only one without guidance).
        uncond: the same for the unconditional branch; never where ``cond`` is false.
        order: of the extrapolation over the computed steps where neither runs; 0 takes the last velocity as it is.
        relative: with order 0: what is taken as it is is the difference between velocity and latents.
        online: set if some steps may be skipped that compute according to all the rest.
    """

    cond: tuple[bool, ...]
    uncond: tuple[bool, ...]
    order: int = 0
    relative: bool = False
    online: Online | None = None

    def only(self, computed: Sequence[bool]) -> Decisions:
        """These decisions with no engine running at steps other than those ``computed``."""
        pairs = list(zip(self.cond, self.uncond, computed, strict=True))
        return dataclasses.replace(
            self,
            cond=tuple(cond and run for cond, _, run in pairs),
            uncond=tuple(uncond and run for _, uncond, run in pairs),
        )

    def computing(self, step: int, *, uncond: bool) -> Decisions:
        """These decisions with the engine running at a step, for the unconditional branch too if there is one."""
        return dataclasses.replace(
            self,
            cond=tuple(each or index == step for index, each in enumerate(self.cond)),
            uncond=tuple(uncond if index == step else each for index, each in enumerate(self.uncond)),
        )

    def rest(self, step: int) -> Decisions:
        """Those of the steps from one on, counted anew."""
        online = self.online
        return dataclasses.replace(
            self,
            cond=self.cond[step:],
            uncond=self.uncond[step:],
            online=None if online is None else dataclasses.replace(online, free=online.free[step:]),
        )


class StepCache(Protocol):
    """A policy. Several may follow one another, each leaving out more engine calls than the one before."""

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """The decisions with this policy's added.

        Raises:
            UsageError: the policy does not fit the run.
        """
        ...


def decide(cache: Sequence[StepCache], outline: Outline, begin: int = 0) -> Decisions:
    """What the policies leave of a run; without any, every engine call.

    Args:
        begin: the step of the run with which it begins, which computes whatever the policies say; a stage begins there.

    Raises:
        UsageError: a policy does not fit the run or the others, or skips the first step of a stage.
    """
    decisions = Decisions(cond=(True,) * outline.steps, uncond=outline.uncond)
    for policy in cache:
        decisions = policy.narrow(decisions, outline)
    if begin:
        decisions = decisions.computing(begin, uncond=outline.uncond[begin])
    for step in sorted(outline.starts):
        if not decisions.cond[step] or decisions.uncond[step] != outline.uncond[step]:
            raise UsageError(
                f"The cache skips step {step + 1}, the first of a stage of the {outline.schedule.models[step]} model, "
                "which has nothing to reuse there yet; let that step compute."
            )
    complete = Decisions(cond=decisions.cond, uncond=outline.uncond, online=decisions.online)
    if decisions.online is not None and (decisions != complete or not all(decisions.cond)):
        raise UsageError(
            "The cache easycache decides while the program runs, and other caches cannot build on that; give it "
            "alone, or take easycache-static, which fb-calibrate BUNDLE --prompts FILE --cache easycache measures."
        )
    return decisions
