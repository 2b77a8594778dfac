"""A graph whose large weights stay in the checkpoint's own files, to be run where they would not fit twice.

Those that are decoded from what a file has, or that a LoRA is fused into, are written to a file of their own first.
They become inputs, in the shape and type that the file has them in, and the graph casts them in front of the node
that needs them. As inputs they can be pages of their file: an initializer would be copied into memory, or cast before
the first call. To be run in the order of the file: a weight could be cast at any time, as it depends on nothing, and
then all of them are in memory at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from flowblending.contracts.graph import GraphSpec
from flowblending.export.graph.bind import TurnedTensor
from flowblending.export.graph.stored import Readable, Stored, StoredTensor, onnx_type
from flowblending.export.graph.trace import TracedGraph

_MICROSOFT = "com.microsoft"
_ALIGNMENT = 64
"""Of weights in a file of ours; numbers of different sizes are behind one another."""


@dataclass(frozen=True, kw_only=True)
class WeightInputGraph:
    """A graph that takes its large weights as inputs.

    Attributes:
        onnx: the file; small weights are in it or beside it.
        spec: of what it takes beside weights, and of what it gives.
        weights: by input, where they are and ONNX's number of their type.
    """

    onnx: Path
    spec: GraphSpec
    weights: Mapping[str, tuple[Stored, int]]


def write_weight_inputs(traced: TracedGraph, folder: Path) -> WeightInputGraph:
    """Write ``NAME.onnx``, its small weights to ``NAME.onnx.data``, and to ``NAME.weights`` what has no file as it is.

    Args:
        traced: not to be used afterwards.
        folder: made if need be.
    """
    graph = traced.model.graph
    order = {node: index for index, node in enumerate(graph)}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        base = tensor.base if isinstance(tensor, TurnedTensor) else tensor
        if isinstance(base, StoredTensor):
            stored = _in_file(base.stored, folder / f"{traced.spec.name}.weights")
            given = _input(graph, value, stored)
            _replace(graph, value, given, order)
            del graph.initializers[name]
            assert given.dtype is not None
            weights[str(given.name)] = stored, int(given.dtype)
    path = folder / f"{traced.spec.name}.onnx"
    ir.save(traced.model, path, external_data=f"{path.name}.data")
    return WeightInputGraph(onnx=path, spec=traced.spec, weights=weights)


def _in_file(weight: Readable, path: Path) -> Stored:
    """A weight in a file, in the type that it is held in: appended to ``path`` if it is in none."""
    if isinstance(weight, Stored):
        return weight
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        offset = file.tell()
        for piece in weight.as_type(weight.held).pieces():
            file.write(piece.view(torch.uint8).numpy().data)
    return Stored(path=path, offset=offset, shape=weight.shape, held=weight.held, dtype=weight.dtype)


def _input(graph: ir.Graph, value: ir.Value, stored: Stored) -> ir.Value:
    """A new input of the graph: a weight as its file has it."""
    given = ir.Value(
        name=f"{value.name}.held", shape=ir.Shape(stored.shape), type=ir.TensorType(onnx_type(stored.held))
    )
    graph.inputs.append(given)
    return given


def _replace(graph: ir.Graph, value: ir.Value, given: ir.Value, order: Mapping[ir.Node, int]) -> None:
    """Make what uses a weight use the input, in front of the first node that does."""
    users = [use.node for use in value.uses()]
    assert value.dtype is not None
    if all(node.op_type == "Gather" and node.inputs[0] is value for node in users):
        # A table of which rows are looked up: these are cast, and not all of it in every call.
        for node in users:
            node.replace_input_with(0, given)
            rows = node.outputs[0]
            cast = ir.node("Cast", [rows], attributes={"to": int(value.dtype)})
            cast.outputs[0].name, cast.outputs[0].type = f"{rows.name}.cast", rows.type
            rows.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, rows)
            rows.type = given.type
            graph.insert_after(node, cast)
        return
    first = min(users, key=order.__getitem__)
    current = given
    if given.dtype != value.dtype:
        current = _in_front(graph, first, "Cast", current, value, to=int(value.dtype))
    tensor = value.const_value
    if isinstance(tensor, TurnedTensor):
        if tensor.order == (1, 0) and all(node.op_type == "MatMul" and node.inputs[1] is value for node in users):
            for node in users:
                # ONNX Runtime's own operator multiplies by a matrix that is not turned.
                node.domain, node.op_type = _MICROSOFT, "FusedMatMul"
                node.attributes.add(ir.AttrInt64("transB", 1))
            graph.opset_imports[_MICROSOFT] = 1
        else:
            current = _in_front(graph, first, "Transpose", current, value, perm=tensor.order)
    value.replace_all_uses_with(current)


def _in_front(
    graph: ir.Graph, node: ir.Node, operator: str, given: ir.Value, value: ir.Value, **attributes: object
) -> ir.Value:
    made = ir.node(operator, [given], attributes=attributes)
    output = made.outputs[0]
    output.name, output.type = f"{value.name}.{operator}", value.type
    graph.insert_before(node, made)
    return output
