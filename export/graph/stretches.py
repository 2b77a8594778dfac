"""Runs a graph that may be larger than memory on ONNX Runtime: a stretch at a time, with its weights alone in memory.

Weights enter a stretch as inputs, so that ONNX Runtime makes no copies of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from flowblending.export.graph.stored import StoredTensor
from flowblending.system.processors import processors

BUDGET = 1 << 30
"""Bytes of weights in a stretch; a single larger weight is a stretch of its own.

A larger table that rows are looked up in is one too, and has no more than these rows in memory.
"""

_WEIGHT = 1024
"""Bytes from which on an initializer is fed. Smaller ones may be shapes and axes, which must be constants."""

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some nodes of a graph, one after the other.

    Attributes:
        nodes: in the graph's order.
        weights: the initializers that are fed.
        constants: the other initializers.
        inputs: what earlier stretches or the graph's inputs give.
        outputs: what later stretches or the graph's outputs take.
    """

    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def stretches(graph: ir.Graph, budget: int = BUDGET) -> list[Stretch]:
    """Divide a graph, whose nodes stand in an order that they can run in, and hold no graphs of their own."""
    parts: list[list[ir.Node]] = [[]]
    weights: set[ir.Value] = set()
    for node in graph:
        needed = {value for value in _given(node) if _is_weight(value)}
        if _looks_up(node) and _nbytes(needed) > budget:
            parts += [[node], []]
            weights = set()
            continue
        if parts[-1] and needed - weights and _nbytes(weights | needed) > budget:
            parts.append([])
            weights = set()
        parts[-1].append(node)
        weights |= needed
    return [_stretch(graph, part) for part in parts if part]


def run_stretches(model: ir.Model, inputs: Arrays, budget: int = BUDGET) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a graph on ONNX Runtime's CPU.

    Args:
        model: fp8 weights are allowed, bf16 is not.
        inputs: by name.
        budget: see `BUDGET`.

    Raises:
        Exception: ONNX Runtime's own.
    """
    graph = model.graph
    known: dict[str, Any] = {name: onnxruntime.OrtValue.ortvalue_from_numpy(each) for name, each in inputs.items()}
    parts = stretches(graph, budget)
    last = {value.name: index for index, part in enumerate(parts) for value in part.inputs}
    for index, part in enumerate(parts):
        known |= _run(model, part, known)
        for value in (*part.inputs, *part.outputs):
            if last.get(value.name, -1) <= index and value not in graph.outputs:
                known.pop(str(value.name), None)
    return {str(value.name): known[str(value.name)].numpy() for value in graph.outputs}


def session_options() -> Any:
    """Of ONNX Runtime on this machine's CPU, which tells of errors alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = processors()
    return options


def _run(model: ir.Model, part: Stretch, known: Mapping[str, Any]) -> dict[str, Any]:
    options = session_options()
    # Memory is given back to the system after each stretch.
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(
        _proto(model, part).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {str(value.name): known[str(value.name)] for value in part.inputs}
    if len(part.nodes) == 1 and _looks_up(part.nodes[0]):
        feeds |= _looked_up(part.nodes[0], known)
    else:
        feeds |= {str(value.name): _ort_value(value) for value in part.weights}
    names = [str(value.name) for value in part.outputs]
    return dict(zip(names, session.run_with_ort_values(names, feeds), strict=True))


def _looks_up(node: ir.Node) -> bool:
    """Whether rows of a weight are looked up, by numbers that are computed or given."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    table, numbers = _given(node)
    return _is_weight(table) and not numbers.is_initializer()


def _looked_up(node: ir.Node, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a node that looks up is fed: the rows that are asked for, and where they now are."""
    table, numbers = _given(node)
    asked = known[str(numbers.name)].numpy()
    rows, places = np.unique(asked, return_inverse=True)
    tensor = table.const_value
    found = tensor.rows(rows) if isinstance(tensor, StoredTensor) else tensor.numpy()[rows]
    return {
        str(table.name): _ort_tensor(found, tensor.dtype),
        str(numbers.name): onnxruntime.OrtValue.ortvalue_from_numpy(places.reshape(asked.shape).astype(asked.dtype)),
    }


def _ort_value(value: ir.Value) -> Any:
    tensor = value.const_value
    assert tensor is not None
    return _ort_tensor(tensor.numpy(), tensor.dtype)


def _ort_tensor(array: npt.NDArray[Any], kind: ir.DataType) -> Any:
    # numpy has no fp8 of its own, and ONNX Runtime does not know the one of ml_dtypes.
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), int(kind))


def _proto(model: ir.Model, part: Stretch) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in part.nodes],
        "stretch",
        [_described(value) for value in (*part.inputs, *part.weights)],
        [_described(value) for value in part.outputs],
        [_constant(value) for value in part.constants],
    )
    opsets = [onnx.helper.make_opsetid(domain, number) for domain, number in model.graph.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def _constant(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    tensor = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    serialised: onnx.TensorProto = ir.serde.serialize_tensor(tensor)
    return serialised


def _described(value: ir.Value) -> onnx.ValueInfoProto:
    """Name and type; sizes are found out while running."""
    assert value.dtype is not None
    return onnx.helper.make_tensor_value_info(str(value.name), int(value.dtype), None)


def _stretch(graph: ir.Graph, nodes: Sequence[ir.Node]) -> Stretch:
    inside = {output for node in nodes for output in node.outputs}
    given = [value for value in dict.fromkeys(value for node in nodes for value in _given(node)) if value not in inside]
    own = frozenset(nodes)
    return Stretch(
        nodes=tuple(nodes),
        weights=tuple(value for value in given if _is_weight(value)),
        constants=tuple(value for value in given if value.is_initializer() and not _is_weight(value)),
        inputs=tuple(value for value in given if not value.is_initializer()),
        outputs=tuple(
            value
            for node in nodes
            for value in node.outputs
            if value in graph.outputs or any(use.node not in own for use in value.uses())
        ),
    )


def _given(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.const_value.nbytes >= _WEIGHT


def _nbytes(values: set[ir.Value]) -> int:
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)
