"""Gathering what is known of a component while it is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import ExportedGraph, is_transformer
from flowblending.contracts.proof import Compared, GraphFacts, PlanFacts, Proof, proof_file
from flowblending.engine.backends.backend import Compiled, Fp8AttentionError, Listing
from flowblending.engine.backends.protocol import ShapeProfile, largest
from flowblending.system.share import link_or_copy

if TYPE_CHECKING:
    from flowblending.export.graph.audit import Audit
    from flowblending.export.verify.reference_outputs import ReferenceRecorder
    from flowblending.export.verify.verify import Parity


REVISION = 1
"""Raised when a component is verified otherwise, or something else is noted of it in the files beside its engine."""


def note_verified(graph: ExportedGraph, recorder: ReferenceRecorder, parity: Parity) -> None:
    """Write beside a graph how it was verified, for `gather`, which may be called by a later build."""
    from flowblending.export.verify.verify import TOLERANCE

    compared = Compared(
        relative=parity.relative,
        maximum=parity.maximum,
        allowed=TOLERANCE[graph.spec.precision].relative,
        sizes=tuple(dict(sizes) for sizes in recorder.sizes),
    )
    recorder.save(_reference_outputs(graph))
    _compared(graph).write_text(compared.model_dump_json())


def note_no_fp8_attention(graph: ExportedGraph, why: str) -> None:
    """Write beside a graph why its attention is not in fp8, for `gather`."""
    _no_fp8_attention(graph).write_text(why)


def gather(
    graph: ExportedGraph, compiled: Compiled, profiles: Sequence[ShapeProfile], folder: Path
) -> tuple[Path, ...]:
    """Write a component's proof, and what torch gave, into ``folder``; returns these files.

    Args:
        graph: as `note_verified` was given it.
        compiled: what became of it.
        profiles: that it was compiled for.
        folder: of the component's files.

    Raises:
        Fp8AttentionError: the plan tells that attention which the graph asks for in fp8 is not one kernel in fp8.
    """
    from flowblending.export.graph.audit import audit

    name = graph.spec.name
    found = audit(compiled.files[0] if compiled.plan is None else graph.onnx, largest(profiles, graph.spec))
    reference, no_fp8_attention = _reference_outputs(graph), _no_fp8_attention(graph)
    proof = Proof(
        component=name,
        precision=graph.spec.precision,
        compared=Compared.model_validate_json(_compared(graph).read_bytes()),
        golden=reference.name if reference.exists() else None,
        graph=_graph(found),
        plan=None if compiled.plan is None else _plan(found, compiled, name),
        no_fp8_attention=no_fp8_attention.read_text() if no_fp8_attention.exists() else None,
    )
    _check_fp8_attention(proof)
    path = folder / proof_file(name)
    # It may be a link to an old bundle's, which was not whole.
    path.unlink(missing_ok=True)
    path.write_text(proof.model_dump_json(indent=1) + "\n")
    if proof.golden is None:
        return (path,)
    # Not moved: what lies beside a verified graph is what an interrupted build finds again.
    (folder / reference.name).unlink(missing_ok=True)
    link_or_copy(reference, folder / reference.name)
    return (path, folder / reference.name)


def _graph(found: Audit) -> GraphFacts:
    islands: dict[str, list[str]] = {}
    for node in found.islands:
        islands.setdefault(node.operator, []).append(node.name)
    return GraphFacts(
        layers=dict(found.layers),
        flops=dict(found.flops),
        attention=dict(found.attention),
        scatters=found.scatters,
        islands={operator: tuple(names) for operator, names in islands.items()},
        own_fp8=found.own_fp8,
    )


def _plan(found: Audit, compiled: Compiled, component: str) -> PlanFacts:
    info, path = compiled.plan, compiled.files[0]
    assert info is not None
    listing = compiled.listing
    types = {} if listing is None else listing.product_types(path)
    told = {name: "+".join(sorted(types[name])) for name in found.layer_types if name in types}
    # In fp32, and in the VAE's wide heads, there is no fused kernel to be had.
    wanted = {name for name, kind in found.attention_types.items() if kind != "fp32" and is_transformer(component)}
    unfused = tuple(sorted(wanted - listing.fused_attention(path))) if listing is not None and types else ()
    return PlanFacts(
        bytes=info.bytes,
        weights_bytes=info.weights_bytes,
        scratch_bytes=info.scratch_bytes,
        network_layers=info.layers,
        seconds=round(info.seconds, 3),
        products=dict(Counter(told.values())) if types else None,
        differing=_differing(told, found.layer_types),
        fused=len(wanted) - len(unfused) if types else None,
        unfused=unfused,
        fused_fp8=_fused_fp8(found, path, listing) if listing is not None and types else None,
    )


def _fused_fp8(found: Audit, plan: Path, listing: Listing) -> int:
    asked = {name for name, kind in found.attention_types.items() if kind == "fp8"}
    # Plans are large, and read as a whole.
    return len(asked & listing.fp8_attention(plan)) if asked else 0


def _check_fp8_attention(proof: Proof) -> None:
    asked, plan = proof.graph.attention.get("fp8", 0), proof.plan
    if plan is not None and plan.fused_fp8 is not None and plan.fused_fp8 < asked:
        raise Fp8AttentionError(
            f"of {asked} attention operators of {proof.component} that were to be one kernel each in fp8, the plan has "
            f"{plan.fused_fp8}"
        )


def _differing(told: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    return {name: kind for name, kind in told.items() if kind != asked[name]}


def _reference_outputs(graph: ExportedGraph) -> Path:
    return graph.onnx.with_suffix(".golden.npz")


def _no_fp8_attention(graph: ExportedGraph) -> Path:
    return graph.onnx.with_suffix(".no_fp8_attention.txt")


def _compared(graph: ExportedGraph) -> Path:
    return graph.onnx.with_suffix(".compared.json")
