"""How far a pair in its precision is from the same pair in fp32, along the schedule: its program on plain arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.proof import Facts
from flowblending.engine.build.proof.claims import FAILED, OPEN, PROVED, Claim, State

PAIR = "pair"
LATENTS = "latents"

Floats = npt.NDArray[np.float32]
Velocity = Callable[[str, Floats, float, str], Floats]
"""Of a model, from latents [1, C, F, H, W], a timestep and a guidance branch: the velocity, like the latents."""

ALLOWED: Mapping[Precision, float] = {
    Precision.FP32: 5e-5,
    Precision.FP16: 1e-2,
    Precision.FP16_MIXED: 5e-3,
    Precision.BF16: 5e-2,
    Precision.FP8: 0.15,
}
"""By precision, the largest difference of a model's velocities, all of its calls together, that passes.

Between what rounding costs and what a fault costs; docs/proof.md has the measurements. In fp8, a trained pair differs
by 0.05 to 0.06, and by 0.2 to 1.3 with ranges too small or of another layer, with branches or models swapped.
"""


class PairFacts(Facts):
    """How far a pair is from fp32 in torch on one trajectory, of a real prompt.

    Attributes:
        schedule: of the trajectory, ``L20 S20 L10``.
        where: ``cpu``, or the GPU's architecture.
        velocity: by step, the relative L2 norm of the velocity's difference for the latents that fp32 has there;
            the worse of both guidance branches.
        models: the model of each step.
        overall: by model, the same of all velocities of its calls, taken as one vector. This is what is judged: late
            on a trajectory a velocity is the little noise that is left in the latents, which no precision tells as
            well as the others, and the step that it is for is as short as the others.
        final: that of the final latents' difference, when each goes its own way.
        allowed: by model, the largest of ``overall`` that passes.
        reason: why nothing was measured; else empty.
    """

    schedule: str
    where: str
    velocity: tuple[float, ...]
    models: tuple[str, ...]
    overall: dict[str, float]
    final: float | None
    allowed: dict[str, float]
    reason: str

    @property
    def holds(self) -> bool:
        """Whether every model is within what is allowed, and the pair comes to an end."""
        # Written so that a figure that is not a number fails.
        within = all(value <= self.allowed[name] for name, value in self.overall.items())
        return within and self.final is not None and math.isfinite(self.final)

    def worst(self, model: str) -> tuple[float, int]:
        """The largest of a model's differences, and the number of its step, from 1; the schedule runs the model."""
        found = [(value, step) for step, (value, name) in enumerate(self._steps(), start=1) if name == model]
        # Unlike Python's own max, this does not lose a figure that is not a number.
        return found[int(np.argmax([value for value, _ in found]))]

    def _steps(self) -> Iterator[tuple[float, str]]:
        return zip(self.velocity, self.models, strict=True)


@dataclass(frozen=True, kw_only=True)
class ModelCall:
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


def follow(program: Mapping[str, Any], velocity: Velocity, latents: Floats) -> tuple[Floats, list[ModelCall]]:
    """Interpret a sampling program (file contract 3, `flowblending.contracts.program`), an instruction at a time.

    Not by the runtime's executor (`flowblending.runtime.sampler.executor`), on purpose. That one runs engines on
    memory that is bound beforehand, and ends at the first number that is not finite; here velocities come from
    whatever computes them (modules of torch, an engine, a branch at a time), each is kept, and a pair that overflows
    has to be followed to its end, to be judged. A test holds the two to the same bits.

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
            if "share" in each:
                slots[each["out"]] = _rescale(slots[each["out"]], slots[each["reference"]], each["share"])
                continue
            for branch, out in zip(each["branches"], each["out"], strict=True):
                slots[out] = velocity(each["model"], slots[LATENTS], step["timestep"], branch)
                calls.append(
                    ModelCall(
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


def _rescale(values: Floats, reference: Floats, share: float) -> Floats:
    spread = values.std(dtype=np.float64)
    factor = share * reference.std(dtype=np.float64) / spread + 1.0 - share if spread else 1.0
    return values * np.float32(factor)


def slots_of(program: Mapping[str, Any]) -> int:
    """How many latent-sized buffers a program uses."""
    names = {LATENTS}
    for each in (instruction for step in program["steps"] for instruction in step["instructions"]):
        if "terms" in each:
            names |= {each["out"], *(slot for _, slot in each["terms"])}
        else:
            names |= {each["out"]} if "share" in each else set(each["out"])
    return len(names)


def difference(found: Floats, expected: Floats) -> float:
    """The L2 norm of the difference by that of what was expected; 0 where both are zero."""
    distance = float(np.linalg.norm((found - expected).astype(np.float64)))
    return distance / float(np.linalg.norm(expected.astype(np.float64))) if distance else 0.0


def compare_pair(
    program: Mapping[str, Any],
    calls: list[ModelCall],
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
    squares: dict[str, list[tuple[float, float]]] = {}
    for call in calls:
        found = velocity(call.model, call.latents, call.timestep, call.branch)
        worst[call.step] = float(np.maximum(worst[call.step], difference(found, call.velocity)))
        squares.setdefault(call.model, []).append((_square(found - call.velocity), _square(call.velocity)))
    ours, _ = follow(program, velocity, noise)
    return PairFacts(
        schedule=program["schedule"],
        where=where,
        velocity=tuple(worst),
        models=tuple(step["model"] for step in program["steps"]),
        overall={name: _root_of_ratio(each) for name, each in squares.items()},
        final=difference(ours, final),
        allowed=dict(allowed),
        reason="",
    )


def _square(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _root_of_ratio(pairs: list[tuple[float, float]]) -> float:
    """Of what differs and what was expected; 0 where both are zero."""
    differs, expected = (math.fsum(each) for each in zip(*pairs, strict=True))
    if not differs:
        return 0.0
    return math.sqrt(differs / expected) if expected else math.inf


def allowed(manifest: Manifest) -> dict[str, float]:
    """`ALLOWED` of a bundle's models, by model."""
    return {name: ALLOWED[manifest.components[name].spec.precision] for name in manifest.transformers}


def unmeasured(program: Mapping[str, Any], reason: str) -> PairFacts:
    """What is said of a pair where nothing could be measured."""
    return PairFacts(
        schedule=program["schedule"],
        where="",
        velocity=(),
        models=(),
        overall={},
        final=None,
        allowed={},
        reason=reason,
    )


def pair_claims(pair: PairFacts | None, manifest: Manifest) -> list[Claim]:
    """What is claimed of a pair; nothing where all transformers are in fp32."""
    precisions = {manifest.components[name].spec.precision for name in manifest.transformers}
    if precisions == {Precision.FP32}:
        return []
    claim = "velocities along the schedule as in fp32"
    if pair is None or not pair.velocity:
        reason = "it was not measured" if pair is None else pair.reason
        return [Claim(component=PAIR, claim=claim, state=OPEN, detail=reason)]
    state: State = PROVED if pair.holds else FAILED
    figures = "; ".join(_figures(pair, name) for name in pair.overall)
    return [
        Claim(
            component=PAIR,
            claim=claim,
            state=state,
            detail=f"{pair.schedule} on {pair.where}: {figures}; final latents {pair.final:.1e}",
        )
    ]


def _figures(pair: PairFacts, model: str) -> str:
    worst, step = pair.worst(model)
    return f"{model} {pair.overall[model]:.1e} of {pair.allowed[model]:g}, at most {worst:.1e} at step {step}"
