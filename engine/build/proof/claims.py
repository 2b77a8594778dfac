"""What a build claims of its components, and whether that is proved, disproved, or to be proved on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from flowblending.contracts.graph import Precision, is_transformer
from flowblending.contracts.manifest import Component
from flowblending.contracts.proof import Facts, Proof, Sizes

PROVED: Final = "proved"
FAILED: Final = "failed"
OPEN: Final = "open"

State = Literal["proved", "failed", "open"]

TYPES = {precision: str(precision) for precision in Precision} | {Precision.FP16_MIXED: "fp16"}
"""The type of most products of a transformer, by precision. fp8 may have fewer: its first and last blocks are kept."""

_MOST = 0.9
_TF32 = 1e-2
"""GPUs multiply fp32 matrices in TF32, whose mantissa is as short as fp16's, unless they are told not to."""


class Claim(Facts):
    """One thing that a build claims.

    Attributes:
        component: that it is about; ``pair`` for all transformers together.
        claim: a few words.
        state: ``open`` is what this machine could not tell.
        detail: figures, or what is missing.
    """

    component: str
    claim: str
    state: State
    detail: str


def component_claims(proof: Proof, component: Component, sizes: Sequence[Sizes]) -> list[Claim]:
    """Everything that is claimed of one component, as far as it can be told without running its engine.

    Args:
        proof: of the component.
        component: as the manifest has it.
        sizes: the smallest and the largest of its profile.
    """
    claims = [_parity(proof, sizes), _scatters(proof)]
    if is_transformer(proof.component):
        claims.append(_layers(proof, component.spec.precision))
        if proof.plan is not None and set(proof.graph.attention) - {"fp32"}:
            claims.append(_attention(proof))
            if "fp8" in proof.graph.attention:
                claims.append(_fp8_attention(proof))
    return claims


def allowed_on(device: str, allowed: float) -> float:
    """The largest difference from torch that passes on a device.

    Args:
        device: ``cpu``, or a GPU's architecture.
        allowed: on a CPU.
    """
    return allowed if device == "cpu" else max(allowed, _TF32)


def runs_as_torch(component: str, worst: float | None, allowed: float, detail: str) -> Claim:
    """The claim that an engine, run on the machine that it is for, gives what torch gives.

    Args:
        component: its name.
        worst: relative L2 norm of the difference; None where it was not run.
        allowed: the largest that passes.
        detail: what is missing where it was not run, else at which sizes it was.
    """
    if worst is None:
        return _claim(component, "the engine gives what torch gives", OPEN, detail)
    state: State = PROVED if worst <= allowed else FAILED
    return _claim(component, "the engine gives what torch gives", state, f"{worst:.1e} of {allowed:g}, {detail}")


def _parity(proof: Proof, sizes: Sequence[Sizes]) -> Claim:
    found = proof.compared
    figure = f"{found.relative:.1e} of {found.allowed:g} at {len(found.sizes)} sizes"
    missing = [each for each in sizes if each not in found.sizes]
    claim = "equals torch at the profile's sizes"
    if not found.relative <= found.allowed:
        return _claim(proof.component, claim, FAILED, figure)
    if missing:
        left = " and ".join(", ".join(f"{name} {size}" for name, size in each.items()) for each in missing)
        return _claim(
            proof.component,
            claim,
            OPEN,
            f"{figure}, but not at {left}, which is too much work for a CPU, or another size than it was built at",
        )
    return _claim(proof.component, claim, PROVED, figure)


def _scatters(proof: Proof) -> Claim:
    count = proof.graph.scatters
    return _claim(proof.component, "no ScatterND", FAILED if count else PROVED, f"{count} of them")


def _layers(proof: Proof, precision: Precision) -> Claim:
    """A plan has to compute every layer in the type of the graph, and those in fp8 have to be there by name."""
    kind, graph, plan = TYPES[precision], proof.graph, proof.plan
    claim, share = f"layers in {kind}", f"{graph.share(kind):.1%} of their operations"
    if graph.own_fp8:
        share += f", the file's own fp8 weights in {graph.own_fp8}"
    asked = graph.layers.get(kind, 0)
    if not asked or (precision is not Precision.FP8 and graph.share(kind) < _MOST):
        return _claim(proof.component, claim, FAILED, f"the graph has {asked}, {share}")
    if plan is None:
        return _claim(proof.component, claim, PROVED, f"{asked} of {sum(graph.layers.values())}, {share}")
    if plan.products is None:
        return _claim(proof.component, claim, OPEN, "the plan does not tell in which types it computes")
    if plan.differing:
        name, found = next(iter(plan.differing.items()))
        return _claim(
            proof.component, claim, FAILED, f"{len(plan.differing)} are in another type, such as {name} in {found}"
        )
    told = plan.products.get(kind, 0)
    # Of convolutions the listing does not tell, and they are never in fp8.
    if told == 0 or (precision is Precision.FP8 and told < asked):
        return _claim(proof.component, claim, FAILED, f"the plan has {told}, but its graph asks for {asked}")
    return _claim(proof.component, claim, PROVED, f"{told} in the plan, {share}")


def _attention(proof: Proof) -> Claim:
    plan = proof.plan
    assert plan is not None
    asked = sum(count for kind, count in proof.graph.attention.items() if kind != "fp32")
    claim = "attention fused"
    if plan.fused is None:
        # TensorRT refuses to compile attention that it may not take apart and has no kernel for.
        return _claim(proof.component, claim, PROVED, f"{asked} that the compiler was not allowed to take apart")
    state: State = PROVED if plan.fused == asked else FAILED
    missing = f", but not {plan.unfused[0]}" if plan.unfused else ""
    return _claim(proof.component, claim, state, f"{plan.fused} of {asked}{missing}")


def _fp8_attention(proof: Proof) -> Claim:
    plan, asked = proof.plan, proof.graph.attention["fp8"]
    assert plan is not None
    claim = "attention in fp8"
    if plan.fused_fp8 is None:
        return _claim(proof.component, claim, OPEN, "the plan does not tell in which types it computes")
    detail = (
        f"{plan.fused_fp8} of {asked} in the plan, of {sum(proof.graph.attention.values())} altogether; what "
        "they make of the softmax is in no graph that was compared with torch"
    )
    return _claim(proof.component, claim, PROVED if plan.fused_fp8 == asked else FAILED, detail)


def _claim(component: str, claim: str, state: State, detail: str) -> Claim:
    return Claim(component=component, claim=claim, state=state, detail=detail)
