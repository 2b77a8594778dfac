"""Floating-point operations of a graph, counted from its ONNX file without its weights.

A multiply-add is two operations. Counted are matrix products, convolutions and attention; element-wise
operations, which move more bytes than they compute, are not.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from flowblending import FlowBlendingError

Shape = tuple[int, ...]

_LINEAR = ("MatMul", "Gemm", "Conv")
_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CALLS: Mapping[str, Callable[..., int]] = {"Min": min, "Max": max}


def count_flops(path: Path, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Operations of one call: of the layers with weights, and of the products between activations (attention).

    Args:
        path: of an ONNX file that ``export_graph`` wrote.
        sizes: the size of every symbol of its inputs.

    Raises:
        FlowBlendingError: the shape of an operand cannot be told.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    shapes = _Shapes(model, sizes, path)
    constant = {tensor.name for tensor in graph.initializer}
    linear = attention = 0
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if all(name in constant for name in inputs):
            constant.update(node.output)
            continue
        if node.op_type == "Attention":
            attention += _attention(node, [shapes.of(name) for name in node.input[:3]])
        elif node.op_type in _LINEAR:
            count = _linear(node, [shapes.of(name) for name in node.input[:2]], shapes.of(node.output[0]))
            if any(name in constant for name in node.input[:2]):
                linear += count
            else:
                attention += count
    return linear, attention


def _linear(node: onnx.NodeProto, operands: list[Shape], output: Shape) -> int:
    """Every element of the result is a sum of as many products as there are weights to it."""
    left, right = operands
    if node.op_type == "Conv":
        return 2 * math.prod(output) * math.prod(right[1:])
    if node.op_type == "Gemm":
        return 2 * math.prod(output) * left[0 if _attribute(node, "transA", 0) else 1]
    return 2 * math.prod(output) * left[-1]


def _attention(node: onnx.NodeProto, operands: list[Shape]) -> int:
    """The products QK^T and PV: per query head, tokens x keys x the width of a key and of a value."""
    query, key, value = operands
    if len(query) == 4:
        batch, heads, tokens, width = query
        keys, value_width = value[2], value[3]
    else:
        heads = _attribute(node, "q_num_heads", 0)
        batch, tokens, hidden = query
        width = hidden // heads
        keys, value_width = value[1], value[2] // (_attribute(node, "kv_num_heads", 0) or heads)
    assert key[-2] == keys
    return 2 * batch * heads * tokens * keys * (width + value_width)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


class _Shapes:
    """The shape of every value of a graph at given sizes.

    torch's exporter writes each shape in terms of the input sizes; where it did not, ONNX's shape inference is
    asked, once, with the numbers filled in.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int], path: Path) -> None:
        self._model = model
        self._sizes = sizes
        self._path = path
        self._known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._read(model.graph)
        self._inferred = False

    def of(self, name: str) -> Shape:
        if name not in self._known and not self._inferred:
            self._inferred = True
            self._infer()
        if name not in self._known:
            raise FlowBlendingError(
                f"The shape of {name} in {self._path} is unknown, so its operations cannot be counted; "
                "export the graph again."
            )
        return self._known[name]

    def _read(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            if not tensor.HasField("shape"):
                continue
            dims = [
                dim.dim_value if dim.HasField("dim_value") else self._evaluate(dim.dim_param)
                for dim in tensor.shape.dim
            ]
            known = tuple(dim for dim in dims if dim is not None)
            if len(known) == len(dims):
                self._known.setdefault(value.name, known)

    def _evaluate(self, expression: str) -> int | None:
        try:
            return _evaluate(ast.parse(expression, mode="eval").body, self._sizes)
        except (SyntaxError, KeyError, ZeroDivisionError):
            return None

    def _infer(self) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.value_info[:]
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, self._known.get(value.name, ()), strict=False):
                dim.dim_value = size
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        self._read(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> int:
    """An arithmetic expression of sizes.

    Raises:
        KeyError: it uses a symbol without a size, or anything but arithmetic.
    """
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, sizes)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _CALLS[name](*(_evaluate(argument, sizes) for argument in arguments))
    raise KeyError(ast.dump(node))
