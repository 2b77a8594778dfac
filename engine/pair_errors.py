"""How far a pair in its precision is from the same pair in fp32, along the schedule: its program on plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending.engine.manifest import Manifest
from flowblending.engine.proof import Facts
from flowblending.engine.report_claims import FAILED, OPEN, PROVED, Claim, State
from flowblending.export.spec import LARGE, SMALL, Precision

PAIR = "pair"
LATENTS = "latents"

Floats = npt.NDArray[np.float32]
Velocity = Callable[[str, Floats, float, str], Floats]
"""Of a model, from latents [1, C, F, H, W], a timestep and a guidance branch: the velocity, like the latents."""


class PairFacts(Facts):
    """How far a pair is from fp32 in torch on one trajectory, with noise for latents and prompts.

    Attributes:
        schedule: of the trajectory, ``L20 S20 L10``.
        where: ``cpu``, or the GPU's architecture.
        velocity: by step, the relative L2 norm of the velocity's difference for the latents that fp32 has there;
            the worse of both guidance branches.
        models: the model of each step.
        final: that of the final latents' difference, when each goes its own way.
        allowed: by model, the largest difference of a velocity that passes.
        reason: why nothing was measured; else empty.
    """

    schedule: str
    where: str
    velocity: tuple[float, ...]
    models: tuple[str, ...]
    final: float | None
    allowed: dict[str, float]
    reason: str

    def worst(self, model: str) -> float:
        """The largest of a model's differences; 0 if the schedule does not run it."""
        found = [value for value, name in zip(self.velocity, self.models, strict=True) if name == model]
        # Unlike Python's own max, this does not lose a figure that is not a number.
        return float(np.max([0.0, *found]))


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a model on a trajectory: what it was given, and the velocity that it gave.

    Attributes:
        step: from 0.
    """

    step: int
    model: str
    branch: str
    timestep: float
    latents: Floats
    velocity: Floats


def follow(program: Mapping[str, Any], velocity: Velocity, latents: Floats) -> tuple[Floats, list[Call]]:
    """Interpret a sampling program (file contract 3, `flowblending.runtime.program`): a `Run` or a `Mix` at a time.

    Args:
        program: as its JSON.
        velocity: called once for every branch of every run.
        latents: fp32 [1, C, F, H, W].

    Returns:
        The final latents, and every call in order.
    """
    slots: dict[str, Floats] = {LATENTS: latents}
    calls = []
    for number, step in enumerate(program["steps"]):
        for each in step["instructions"]:
            if "terms" in each:
                slots[each["out"]] = _mix(each["terms"], slots)
                continue
            for branch, out in zip(each["branches"], each["out"], strict=True):
                slots[out] = velocity(each["model"], slots[LATENTS], step["timestep"], branch)
                calls.append(
                    Call(
                        step=number,
                        model=each["model"],
                        branch=branch,
                        timestep=step["timestep"],
                        latents=slots[LATENTS],
                        velocity=slots[out],
                    )
                )
    return slots[LATENTS], calls


def _mix(terms: list[tuple[float, str]], slots: Mapping[str, Floats]) -> Floats:
    total = np.zeros_like(slots[LATENTS])
    for coefficient, slot in terms:
        total = total + np.float32(coefficient) * slots[slot]
    return total


def slots_of(program: Mapping[str, Any]) -> int:
    """How many latent-sized buffers a program uses."""
    names = {LATENTS}
    for each in (instruction for step in program["steps"] for instruction in step["instructions"]):
        names |= {each["out"], *(slot for _, slot in each["terms"])} if "terms" in each else set(each["out"])
    return len(names)


def difference(found: Floats, expected: Floats) -> float:
    """The L2 norm of the difference by that of what was expected; 0 where both are zero."""
    distance = float(np.linalg.norm((found - expected).astype(np.float64)))
    return distance / float(np.linalg.norm(expected.astype(np.float64))) if distance else 0.0


def compare_pair(
    program: Mapping[str, Any],
    calls: list[Call],
    final: Floats,
    velocity: Velocity,
    noise: Floats,
    *,
    where: str,
    allowed: Mapping[str, float],
) -> PairFacts:
    """Measure another way of computing velocities against a trajectory.

    Args:
        program: of the trajectory.
        calls: as `follow` gave them, from ``noise`` to ``final``.
        velocity: to be measured.
        where: it is computed.
        allowed: by model.
    """
    worst = [0.0] * len(program["steps"])
    for call in calls:
        found = velocity(call.model, call.latents, call.timestep, call.branch)
        worst[call.step] = float(np.maximum(worst[call.step], difference(found, call.velocity)))
    ours, _ = follow(program, velocity, noise)
    return PairFacts(
        schedule=program["schedule"],
        where=where,
        velocity=tuple(worst),
        models=tuple(step["model"] for step in program["steps"]),
        final=difference(ours, final),
        allowed=dict(allowed),
        reason="",
    )


def unmeasured(program: Mapping[str, Any], reason: str) -> PairFacts:
    """What is said of a pair where nothing could be measured."""
    return PairFacts(
        schedule=program["schedule"], where="", velocity=(), models=(), final=None, allowed={}, reason=reason
    )


def pair_claims(pair: PairFacts | None, manifest: Manifest) -> list[Claim]:
    """What is claimed of a pair; nothing where both transformers are in fp32."""
    precisions = {manifest.components[name].spec.precision for name in (LARGE, SMALL)}
    if precisions == {Precision.FP32}:
        return []
    claim = "velocities along the schedule as in fp32"
    if pair is None or not pair.velocity:
        reason = "it was not measured" if pair is None else pair.reason
        return [Claim(component=PAIR, claim=claim, state=OPEN, detail=reason)]
    # Written so that a figure that is not a number fails.
    holds = all(pair.worst(name) <= limit for name, limit in pair.allowed.items())
    state: State = PROVED if holds else FAILED
    figures = ", ".join(f"{name} {pair.worst(name):.1e} of {limit:g}" for name, limit in pair.allowed.items())
    return [
        Claim(
            component=PAIR,
            claim=claim,
            state=state,
            detail=f"{pair.schedule} on {pair.where}: {figures}; final latents {pair.final:.1e}",
        )
    ]
