"""Floating-point operations of a graph, counted from its ONNX file without its weights.

A multiply-add is two operations. Counted are matrix products, convolutions and attention; element-wise
operations, which move more bytes than they compute, are not.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from flowblending import FlowBlendingError

Shape = tuple[int, ...]

LINEAR = ("MatMul", "Gemm", "Conv")
ATTENTION = "Attention"
_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CALLS: Mapping[str, Callable[..., int]] = {"Min": min, "Max": max}


@dataclass(frozen=True, kw_only=True)
class Product:
    """A node that multiplies matrices.

    Attributes:
        name: of the node.
        operator: one of ``LINEAR``, or ``ATTENTION``.
        operands: the names of the values that it multiplies.
        weighted: whether one of them is a constant, as in a layer.
        flops: of one call.
    """

    name: str
    operator: str
    operands: tuple[str, ...]
    weighted: bool
    flops: int


def count_flops(path: Path, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Operations of one call: of the layers with weights, and of the products between activations (attention).

    Args:
        path: of an ONNX file that ``export_graph`` wrote.
        sizes: the size of every symbol of its inputs.

    Raises:
        FlowBlendingError: the shape of an operand cannot be told.
    """
    linear = attention = 0
    for product in products(onnx.load(path, load_external_data=False), sizes, path):
        linear += product.flops if product.weighted else 0
        attention += 0 if product.weighted else product.flops
    return linear, attention


def token_flops(path: Path, patch: tuple[int, int, int]) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Operations of a transformer's call with batch 1 as polynomials in the number of tokens, exact for all numbers.

    What a layer does is proportional to the tokens, or does not depend on them where it works on the text or the
    timestep; of attention, that among the tokens is proportional to their square. So three counts tell all.

    Args:
        path: of an ONNX file that ``export_graph`` wrote.
        patch: latent frames, rows and columns of one token.

    Returns:
        Coefficients from the constant one on: of the layers with weights, and of the products between activations.

    Raises:
        FlowBlendingError: the shape of an operand cannot be told.
    """
    frames, height, width = patch
    counts = [
        count_flops(path, {"batch": 1, "frames": frames, "height": height, "width": width * tokens})
        for tokens in (1, 2, 3)
    ]
    (linear_1, attention_1), (linear_2, attention_2), (_, attention_3) = counts
    slope = linear_2 - linear_1
    # Newton's forward differences at 1, 2 and 3.
    first, second = attention_2 - attention_1, attention_3 - 2 * attention_2 + attention_1
    linear, square = first - 3 * second // 2, second // 2
    return (linear_1 - slope, slope), (attention_1 - linear - square, linear, square)


def products(model: onnx.ModelProto, sizes: Mapping[str, int], path: Path) -> Iterator[Product]:
    """Every node that multiplies matrices, in the graph's order, those of constants with one another aside.

    Args:
        model: the content of ``path``, without weights.
        sizes: the size of every symbol of its inputs.
        path: for messages.

    Raises:
        FlowBlendingError: the shape of an operand cannot be told.
    """
    shapes = _Shapes(model, sizes, path)
    constant = constants(model.graph)
    for node in model.graph.node:
        if node.output[0] in constant or node.op_type not in (ATTENTION, *LINEAR):
            continue
        operands = tuple(node.input[: 3 if node.op_type == ATTENTION else 2])
        known = [shapes.of(name) for name in operands]
        yield Product(
            name=node.name,
            operator=node.op_type,
            operands=operands,
            weighted=any(name in constant for name in operands),
            flops=_attention(node, known)
            if node.op_type == ATTENTION
            else _linear(node, known, shapes.of(node.output[0])),
        )


def constants(graph: onnx.GraphProto) -> set[str]:
    """The values that no input has a part in: weights, and what is made of weights alone."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(name in known for name in node.input if name):
            known.update(node.output)
    return known


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
