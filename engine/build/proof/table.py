"""The proof report as a person reads it."""

from __future__ import annotations

from flowblending.contracts.proof import Proof
from flowblending.engine.build.proof.claims import OPEN, PROVED
from flowblending.engine.build.proof.pair import PAIR
from flowblending.engine.build.proof.report import BuildReport
from flowblending.engine.build.proof.short_run import BUNDLE
from flowblending.system.console import Console


def show_report(report: BuildReport, console: Console) -> None:
    """Print the table of components, the memory, the pair, the short run, and every claim that is not proved."""
    console.table(
        f"proof of {report.bundle}: layers with weights and the share of their operations, differences from torch",
        (
            "component",
            "layers",
            "attention",
            "fp32 islands",
            "from torch",
            "weights",
            "scratch",
        ),
        [_row(proof) for proof in report.components.values()],
    )
    memory = report.memory
    bound = "" if memory.complete else " and what ONNX Runtime takes while it runs"
    console.result(
        f"memory with every engine open: {_mega(memory.total)}{bound} (weights {_mega(memory.weights)}, scratch "
        f"{_mega(memory.scratch)}, inputs and outputs {_mega(memory.tensors)}, latents {_mega(memory.latents)})"
    )
    proved = sum(claim.state == PROVED for claim in report.claims)
    console.result(f"{proved} of {len(report.claims)} claims proved")
    for claim in report.claims:
        if claim.state != PROVED:
            console.result(
                f"  {'not yet' if claim.state == OPEN else 'FAILED'}: {claim.component}, {claim.claim}: {claim.detail}"
            )
        elif claim.component in (PAIR, BUNDLE):
            console.result(f"  {claim.component}, {claim.claim}: {claim.detail}")
    for name, proof in report.components.items():
        if proof.graph.own_fp8:
            console.result(f"  {name}, not quantised again: the file's own fp8 weights in {proof.graph.own_fp8} layers")
        if proof.no_fp8_attention is not None:
            console.result(f"  {name}, attention not in fp8: {proof.no_fp8_attention}")


def proof_document(report: BuildReport) -> dict[str, object]:
    """The proof's outcome as plain data; everything else is in the bundle's ``report.json``."""
    states = [claim.state for claim in report.claims]
    memory = report.memory
    return {
        "claims": len(states),
        "proved": states.count(PROVED),
        "not_proved": [claim.model_dump(mode="json") for claim in report.claims if claim.state != PROVED],
        "memory_bytes": {
            "total": memory.total,
            "weights": memory.weights,
            "scratch": memory.scratch,
            "tensors": memory.tensors,
            "latents": memory.latents,
            "complete": memory.complete,
        },
    }


def _row(proof: Proof) -> tuple[str, ...]:
    graph, plan = proof.graph, proof.plan
    layers = ", ".join(f"{count} {kind} {graph.share(kind):.1%}" for kind, count in graph.layers.items())
    attention = ", ".join(f"{count} {kind}" for kind, count in graph.attention.items()) or "none"
    if plan is not None and plan.fused is not None and set(graph.attention) - {"fp32"}:
        attention += f", {plan.fused} fused"
    return (
        proof.component,
        layers,
        attention,
        str(sum(map(len, graph.islands.values()))),
        f"{proof.compared.relative:.1e}",
        "file" if plan is None else _stated(plan.weights_bytes),
        "" if plan is None else _stated(plan.scratch_bytes),
    )


def _stated(size: int | None) -> str:
    return "not told" if size is None else _mega(size)


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
