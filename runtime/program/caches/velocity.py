"""From decisions to engine calls: which slots they write, and each step's velocity as a sum of slots.

A velocity that is reused costs no instruction: its slots are left as they are, and the solver's mixes read them. Where
it is reused relative to the latents, these are copied at the last computed step before a skipped one.

Guidance rescale is not linear, so that a guided velocity that is rescaled has a slot of its own. What is reused or
extrapolated at a skipped step is then that slot: the velocity as it was rescaled.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field, replace

from flowblending.contracts.program import COND, GUIDED, LATENTS, UNCOND, VELOCITY, Mix, Rescale, Run
from flowblending.runtime.program.caches.easycache import COMPUTED, reused
from flowblending.runtime.program.caches.policy import Decisions
from flowblending.runtime.program.caches.taylor import differences, extrapolate
from flowblending.runtime.program.combination import Combination, slot
from flowblending.runtime.program.visits import Visits


@dataclass(frozen=True, kw_only=True)
class StepVelocity:
    """The engine calls of a step (none where it is skipped), and the guided velocity after them.

    Attributes:
        calls: with a copy of the latents before them where it is needed, and guidance behind them if it is rescaled.
    """

    calls: tuple[Run | Mix | Rescale, ...]
    velocity: Combination


def velocities(
    schedule: Visits, decisions: Decisions, *, guidance: float, batched: bool, rescale: float = 0.0
) -> tuple[StepVelocity, ...]:
    """The calls and the velocity of every step.

    Args:
        schedule: the engine of every step.
        decisions: for as many steps; the first step of every stage computes.
        guidance: scale of classifier-free guidance, where a stage has none of its own; 1 or less runs the conditional
            branch only.
        batched: both branches in one call, uncond first; else cond and then uncond in two calls.
        rescale: share of `Rescale` at every guided step; 0 for none.
    """
    steps = []
    scales = schedule.guidance(guidance)
    # One slot serves the conditional branch of guided stages and the only one of the others.
    single = COND if max(scales) > 1.0 else VELOCITY
    begin = functools.partial(_Stage, batched=batched, order=decisions.order, single=single, rescale=rescale)
    stage = begin(guidance=scales[0])
    for step, model in enumerate(schedule.models):
        if step in schedule.switches:
            stage = begin(guidance=scales[step])
        if decisions.cond[step]:
            made = stage.compute(step, model, uncond=decisions.uncond[step])
            if decisions.relative and not all(decisions.cond[step + 1 : step + 2]):
                made = replace(made, calls=(slot(LATENTS).into(COMPUTED), *made.calls))
        else:
            made = stage.skip(step)
            if decisions.relative:
                made = replace(made, velocity=reused(made.velocity))
        steps.append(made)
    return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """A step at which the engine ran.

    Attributes:
        slots: number of the set of slots it wrote.
        full: number of the set of the last step at which both branches ran.
        differences: see `differences`.
    """

    step: int
    slots: int
    full: int
    differences: tuple[Combination, ...]


@dataclass(kw_only=True)
class _Stage:
    """What one model's steps since the last switch have left in the slots; ``single`` is the slot without guidance."""

    guidance: float
    batched: bool
    order: int
    single: str
    rescale: float
    past: list[_Computed] = field(default_factory=list)

    def compute(self, step: int, model: str, *, uncond: bool) -> StepVelocity:
        """Run the engine, into slots that nothing needs any more."""
        # Order n takes the velocities of n earlier steps, and a skipped branch the difference of the last full one.
        needed = self.past[max(len(self.past) - self.order, 0) :]
        alone = self.guidance > 1.0 and not uncond
        live = {number for each in needed for number in (each.slots, each.full)}
        if alone:
            live.add(self.past[-1].full)
        slots = next(number for number in itertools.count() if number not in live)
        full = self.past[-1].full if alone else slots
        velocity = _velocity(self.guidance, slots, full, self.single)
        calls: tuple[Run | Mix | Rescale, ...]
        calls = _runs(model, self.guidance, self.batched, slots, self.single, alone=alone)
        if self.rescale and self.guidance > 1.0:
            out = _name(GUIDED, slots)
            calls += (velocity.into(out), Rescale(out=out, reference=_name(COND, slots), share=self.rescale))
            velocity = slot(out)
        last = self.past[-1] if self.past else None
        terms = (velocity,) if last is None else differences(last.differences, velocity, step - last.step, self.order)
        self.past = [*needed, _Computed(step=step, slots=slots, full=full, differences=terms)]
        return StepVelocity(calls=calls, velocity=velocity)

    def skip(self, step: int) -> StepVelocity:
        """Continue from the computed steps."""
        last = self.past[-1]
        return StepVelocity(calls=(), velocity=extrapolate(last.differences, step - last.step))


def _name(slot_name: str, number: int) -> str:
    """Of a slot in a set; the first set has the names that a program without a cache uses."""
    return f"{slot_name}_{number}" if number else slot_name


def _velocity(guidance: float, slots: int, full: int, single: str) -> Combination:
    """Guidance as a sum of slots: it becomes part of the solver's instructions, and costs no pass of its own.

    With uncond = cond + (uncond - cond) of the set ``full``: where that is the set itself, plain guidance.
    """
    if guidance <= 1.0:
        return slot(_name(single, slots))
    cond, uncond = slot(_name(COND, full)), slot(_name(UNCOND, full))
    if slots == full:
        return guidance * cond + (1.0 - guidance) * uncond
    return slot(_name(COND, slots)) + (1.0 - guidance) * (uncond - cond)


def _runs(model: str, guidance: float, batched: bool, slots: int, single: str, *, alone: bool) -> tuple[Run, ...]:
    cond, uncond = _name(COND, slots), _name(UNCOND, slots)
    if guidance <= 1.0:
        return (Run(model=model, branches=(COND,), out=(_name(single, slots),)),)
    if alone:
        return (Run(model=model, branches=(COND,), out=(cond,)),)
    if batched:
        return (Run(model=model, branches=(UNCOND, COND), out=(uncond, cond)),)
    return tuple(Run(model=model, branches=(branch,), out=(out,)) for branch, out in ((COND, cond), (UNCOND, uncond)))
