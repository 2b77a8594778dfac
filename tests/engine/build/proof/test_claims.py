"""What a build claims of a component, and what becomes of a claim that its facts contradict."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from flowblending.contracts.graph import GraphSpec, Precision
from flowblending.contracts.manifest import BundleFile, Component
from flowblending.contracts.proof import Compared, GraphFacts, PlanFacts, Proof
from flowblending.engine.build.proof.claims import Claim, allowed_on, component_claims, runs_as_torch

SIZES = ({"batch": 1, "frames": 3}, {"batch": 2, "frames": 3})
COMPARED = Compared(relative=1e-3, maximum=1e-2, allowed=5e-2, sizes=({"batch": 1, "frames": 1}, *SIZES))
GRAPH = GraphFacts(
    layers={"bf16": 45, "fp32": 2},
    flops={"bf16": 990, "fp32": 10},
    attention={"bf16": 8},
    scatters=0,
    islands={"Mul": ("node_mul", "node_mul_1")},
)
PLAN = PlanFacts(
    bytes=100,
    weights_bytes=80,
    scratch_bytes=20,
    network_layers=900,
    seconds=1.0,
    products={"bf16": 44, "fp32": 2},
    differing={},
    fused=8,
    unfused=(),
)


Parts = Mapping[str, Mapping[str, object]]


def changed(parts: Parts, *, name: str = "large", precision: Precision = Precision.BF16) -> list[Claim]:
    """The claims of a component that is all right, but for the fields given, by part."""
    plan = parts.get("plan", {})
    proof = Proof(
        component=name,
        precision=precision,
        golden=None,
        compared=COMPARED.model_copy(update=parts.get("compared", {})),
        graph=GRAPH.model_copy(update=parts.get("graph", {})),
        plan=None if plan == {"none": True} else PLAN.model_copy(update=plan),
    )
    component = Component(
        spec=GraphSpec(name=name, precision=precision, inputs=(), outputs=()),
        backend="tensorrt-rtx",
        backend_version="1",
        files=(BundleFile(path="large.plan", bytes=1, sha256=""),),
        key={},
    )
    return component_claims(proof, component, SIZES)


def states(claims: list[Claim]) -> dict[str, str]:
    return {claim.claim: claim.state for claim in claims}


def test_what_is_as_it_should_be_is_proved() -> None:
    assert states(changed({})) == {
        "equals torch at the profile's sizes": "proved",
        "no ScatterND": "proved",
        "layers in bf16": "proved",
        "attention fused": "proved",
    }
    # Other components may compute in what they like, and their attention has no kernel to itself.
    assert states(changed({"graph": {"layers": {"fp32": 1}}}, name="text_encoder")).keys() == {
        "equals torch at the profile's sizes",
        "no ScatterND",
    }
    (*_, layers) = changed({"plan": {"none": True}})
    assert (layers.claim, layers.state, layers.detail) == (
        "layers in bf16",
        "proved",
        "45 of 47, 99.0% of their operations",
    )


ATTENTION = {"attention": {"bf16": 2, "fp8": 6}}
FP8 = {"layers": {"bf16": 27, "fp8": 20}, "flops": {"bf16": 70, "fp8": 30}}


@pytest.mark.parametrize(
    ("precision", "parts", "claim", "state", "detail"),
    [
        (Precision.BF16, {"compared": {"relative": 6e-2}}, "equals torch", "failed", "6.0e-02 of 0.05"),
        (Precision.BF16, {"compared": {"relative": float("nan")}}, "equals torch", "failed", "nan of 0.05"),
        (Precision.BF16, {"compared": {"sizes": SIZES[:1]}}, "equals torch", "open", "not at batch 2, frames 3, which"),
        (Precision.BF16, {"graph": {"scatters": 2}}, "no ScatterND", "failed", "2 of them"),
        (Precision.BF16, {"graph": {"flops": {"bf16": 1, "fp32": 1}}}, "layers", "failed", "50.0% of their"),
        (Precision.FP16, {}, "layers in fp16", "failed", "the graph has 0"),
        (Precision.BF16, {"plan": {"products": None}}, "layers", "open", "does not tell"),
        (Precision.BF16, {"plan": {"differing": {"to_q": "fp32"}}}, "layers", "failed", "such as to_q in fp32"),
        (Precision.BF16, {"plan": {"products": {"fp32": 2}}}, "layers", "failed", "the plan has 0, but"),
        (
            Precision.BF16,
            {"plan": {"fused": 7, "unfused": ("node_a",)}},
            "attention",
            "failed",
            "7 of 8, but not node_a",
        ),
        (Precision.BF16, {"plan": {"fused": None}}, "attention", "proved", "8 that the compiler was not allowed to"),
        # Blocks are kept, so a small share is none the worse; a layer that is silently in 16 bits is.
        (Precision.FP8, {"graph": FP8, "plan": {"products": {"fp8": 20}}}, "layers", "proved", "20 in the plan, 30.0%"),
        (
            Precision.FP8,
            {"graph": FP8, "plan": {"products": {"fp8": 19}}},
            "layers",
            "failed",
            "19, but its graph asks",
        ),
        (Precision.FP8, {}, "layers in fp8", "failed", "the graph has 0"),
        (
            Precision.FP8,
            {"graph": ATTENTION, "plan": {"fused_fp8": 6}},
            "attention in fp8",
            "proved",
            "6 of 6 in the plan, of 8 altogether",
        ),
        (Precision.FP8, {"graph": ATTENTION, "plan": {"fused_fp8": 5}}, "attention in fp8", "failed", "5 of 6"),
        (Precision.FP8, {"graph": ATTENTION}, "attention in fp8", "open", "does not tell"),
    ],
)
def test_what_is_not(precision: Precision, parts: Parts, claim: str, state: str, detail: str) -> None:
    (found,) = [each for each in changed(parts, precision=precision) if each.claim.startswith(claim)]
    assert found.state == state
    assert detail in found.detail


@pytest.mark.parametrize(
    ("worst", "state"), [(None, "open"), (0.0, "proved"), (0.05, "proved"), (0.06, "failed"), (float("nan"), "failed")]
)
def test_a_plan_that_was_run(worst: float | None, state: str) -> None:
    assert runs_as_torch("large", worst, 0.05, "on sm89").state == state


def test_fp32_on_a_gpu_may_be_as_coarse_as_tf32() -> None:
    assert (allowed_on("cpu", 5e-5), allowed_on("sm89", 5e-5), allowed_on("sm89", 5e-2)) == (5e-5, 1e-2, 5e-2)
