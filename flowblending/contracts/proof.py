"""What is known of a component: how near its graph is to torch, what it computes in, what its compiler made of that.

It lies beside the engine as ``NAME.proof.json``, one of the component's files, so that it comes along wherever the
engine is used again. `report_claims` judges it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade

FORMAT = upgrade.PROOF.number

Sizes = dict[str, int]


class Facts(BaseModel):
    """Plain data that does not change."""

    # A figure that is not a number has no other place in JSON than a string.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Compared(Facts):
    """A graph on ONNX Runtime compared with the unmodified class in torch.

    Attributes:
        relative: L2 norm of the difference by the reference's; of the worst output at the worst sizes.
        maximum: largest absolute difference by the reference's largest value, likewise.
        allowed: the largest ``relative`` that passes.
        sizes: at which they were compared.
    """

    relative: float
    maximum: float
    allowed: float
    sizes: tuple[Sizes, ...]


class GraphFacts(Facts):
    """What a graph asks for; see `flowblending.export.graph.audit.Audit`.

    Attributes:
        layers: matrix products with weights, by type.
        flops: operations of these products in one call at the largest sizes, by type.
        attention: attention operators, by type.
        scatters: ScatterND nodes.
        islands: where other types prevail, the nodes that compute in fp32: their names by operator.
        own_fp8: layers whose weights in fp8 are those of the checkpoint's file, and were not quantised again.
    """

    layers: dict[str, int]
    flops: dict[str, int]
    attention: dict[str, int]
    scatters: int
    islands: dict[str, tuple[str, ...]]
    own_fp8: int = 0

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not there, so that the proofs of all other components are as they were."""
        content: dict[str, Any] = write(self)
        return content if self.own_fp8 else {name: each for name, each in content.items() if name != "own_fp8"}

    def share(self, kind: str) -> float:
        """The share of the layers' operations that are computed in a type, 0 to 1."""
        return self.flops.get(kind, 0) / (sum(self.flops.values()) or 1)


class PlanFacts(Facts):
    """What a compiler says of its plan.

    Attributes:
        bytes: size of the plan.
        weights_bytes: memory of the weights, as the compiler states it.
        scratch_bytes: memory of one execution context at the largest sizes, likewise.
        network_layers: of the network, before the compiler fused them.
        seconds: that compiling took.
        products: layers by the type that the plan computes them in; None if it has no readable listing.
        differing: layers that it computes in another type than the graph, with that type.
        fused: attention operators that became one kernel each; None without a listing.
        unfused: the names of those that did not.
        fused_fp8: those of ``fused`` whose kernel takes fp8; None without a listing.
    """

    bytes: int
    weights_bytes: int | None
    scratch_bytes: int | None
    network_layers: int
    seconds: float
    products: dict[str, int] | None
    differing: dict[str, str]
    fused: int | None
    unfused: tuple[str, ...]
    fused_fp8: int | None = None


class Proof(Facts):
    """Everything about a component.

    Attributes:
        golden: name of the file with torch's outputs at the profile's sizes; None where they were too much work.
        plan: None for ONNX Runtime, which runs the graph itself.
        no_fp8_attention: why attention is not in fp8, where that was asked for.
    """

    format: int = FORMAT
    component: str
    precision: str
    compared: Compared
    golden: str | None
    graph: GraphFacts
    plan: PlanFacts | None
    no_fp8_attention: str | None = None


def proof_file(component: str) -> str:
    """The name of a component's proof in the bundle."""
    return f"{component}.proof.json"


def read_proof(folder: Path, component: str) -> Proof:
    """A component's proof in a bundle.

    Raises:
        FlowBlendingError: it is missing, damaged or of a later format.
    """
    path = folder / proof_file(component)
    try:
        content = upgrade.PROOF.upgrade(json.loads(path.read_bytes()), path, "build the bundle again")
        return Proof.model_validate_json(json.dumps(content))
    except (OSError, ValidationError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise FlowBlendingError(f"{path} is no proof of {component} ({reason}); build the bundle again.") from None
