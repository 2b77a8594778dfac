"""What a graph computes in which type, read from its ONNX file without its weights.

Says what the graph asks for. Whether a compiler has done so is for its own report to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from flowblending import FlowBlendingError
from flowblending.export.graph.flops import ATTENTION, constants, products

_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
"""Types of operands, the widest first: the widest operand decides what a product is computed in."""

OWN = ".weight.own"
"""Ends the name of weights in fp8 that are those of the checkpoint's file, and were not quantised again."""

_MOVES = frozenset(
    {
        *("Cast", "Concat", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity"),
        *("Pad", "QuantizeLinear", "Reshape", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators that choose, move or convert values, and compute none."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a graph: its name, and what it does."""

    name: str
    operator: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a graph computes in which type; types are ``fp32``, ``fp16``, ``bf16``, ``int8`` and ``fp8``.

    Attributes:
        layers: matrix products with weights, by type. A product is quantised if both operands are.
        flops: operations of these products in one call, by type.
        attention: attention operators by type of their operands; quantised as products are, if all three are.
        scatters: nodes that write into slices of a tensor.
        islands: in a graph whose products are not all fp32, every node that computes in fp32.
        layer_types: the type of every matrix product with weights, by the name of its node.
        attention_types: that of every attention operator's operands, likewise.
        own_fp8: layers whose weights in fp8 are those of the checkpoint's file.
    """

    layers: Mapping[str, int]
    flops: Mapping[str, int]
    attention: Mapping[str, int]
    scatters: int
    islands: tuple[Node, ...]
    layer_types: Mapping[str, str]
    attention_types: Mapping[str, str]
    own_fp8: int

    def share(self, kind: str) -> float:
        """The share of the layers' operations that are computed in a type, 0 to 1."""
        return self.flops.get(kind, 0) / (sum(self.flops.values()) or 1)


def audit(path: Path, sizes: Mapping[str, int]) -> Audit:
    """Go through a graph that ``export_graph`` wrote.

    Args:
        path: of the ONNX file.
        sizes: the size of every symbol of its inputs.

    Raises:
        FlowBlendingError: the shape or the type of an operand cannot be told.
    """
    model = onnx.load(path, load_external_data=False)
    types = _Types(model.graph, path)
    layers, flops, attention = Counter[str](), Counter[str](), Counter[str]()
    layer_types: dict[str, str] = {}
    attention_types: dict[str, str] = {}
    for product in products(model, sizes, path):
        if product.operator == ATTENTION:
            kind = attention_types[product.name] = types.widest(product.operands)
            attention[kind] += 1
        elif product.weighted:
            kind = layer_types[product.name] = types.widest(product.operands)
            layers[kind] += 1
            flops[kind] += product.flops
    low = {*layers, *attention} != {"fp32"}
    return Audit(
        layers=dict(layers),
        flops=dict(flops),
        attention=dict(attention),
        scatters=sum(node.op_type == "ScatterND" for node in model.graph.node),
        islands=tuple(_computing(model.graph, types, "fp32")) if low else (),
        layer_types=layer_types,
        attention_types=attention_types,
        own_fp8=sum(tensor.name.endswith(OWN) for tensor in model.graph.initializer),
    )


def _computing(graph: onnx.GraphProto, types: _Types, kind: str) -> list[Node]:
    """The nodes that compute values of a type, in the graph's order; what is made of weights alone aside."""
    constant = constants(graph)
    return [
        Node(name=node.name, operator=node.op_type)
        for node in graph.node
        if node.op_type not in _MOVES and node.output[0] not in constant and types.of(node.output[0]) == kind
    ]


class _Types:
    """The type of every value of a graph, by name."""

    def __init__(self, graph: onnx.GraphProto, path: Path) -> None:
        self._path = path
        self._known = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
        } | {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._quantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}

    def of(self, name: str) -> str:
        """The type as an ``Audit`` names it, or numpy's name for one that no product has."""
        if name not in self._known:
            raise FlowBlendingError(f"The type of {name} in {self._path} is unknown; export the graph again.")
        kind = self._known[name]
        return _NAMES.get(kind) or helper.tensor_dtype_to_np_dtype(kind).name

    def widest(self, operands: tuple[str, ...]) -> str:
        """The widest type of these operands, as they are before they are converted back from quantised ones."""
        found = {self.of(self._quantised.get(name, name)) for name in operands}
        return next((kind for kind in _NAMES.values() if kind in found), sorted(found)[0])
