"""A transformer's graph that also tells how large the values are that enter its layers and its attention.

The figures are made in the graph: two numbers for each of these values leave it, whatever its size, and no
activation is kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from flowblending.contracts.graph import TensorSpec
from flowblending.export.fp8.attention import block_attention
from flowblending.export.fp8.layers import block_layers
from flowblending.export.graph.trace import TracedGraph

RANGES = "ranges"
"""The output that is added: fp32 [rows, 2], of each value its percentile and its largest, both absolute."""

_MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ObservedGraph:
    """A graph with the output ``RANGES``.

    Attributes:
        graph: its specification has the new output behind the others.
        rows: of each row of the output, the layers that the value enters (``blocks.0.attn1.to_q``, ``to_k``,
            ``to_v``), or what it is to an attention (``blocks.0.attn1.query``).
    """

    graph: TracedGraph
    rows: tuple[tuple[str, ...], ...]


def observe(traced: TracedGraph, percentile: float) -> ObservedGraph:
    """Add the output to a graph.

    Args:
        traced: a transformer's, in fp32; not to be used afterwards.
        percentile: in (0, 100], by nearest rank: the smallest absolute value that this many percent of the values in
            one call do not exceed.
    """
    model = traced.model
    entering: dict[ir.Value, list[str]] = {}
    for layer in block_layers(model.graph):
        entering.setdefault(layer.input, []).append(layer.name)
    for attention in block_attention(model.graph):
        for name, value in attention.operands.items():
            entering.setdefault(value, []).append(name)
    writer = _Writer(model.graph, outside=round((100 - percentile) * _MILLION / 100))
    parts = [part for value in entering for part in writer.ranges(value)]
    joined = writer.node("Concat", parts, ir.DataType.FLOAT, axis=0)
    ranges = writer.node("Reshape", [joined, writer.constant([-1, 2])], ir.DataType.FLOAT)
    ranges.name, ranges.shape = RANGES, ir.Shape([len(entering), 2])
    model.graph.outputs.append(ranges)
    output = TensorSpec(name=RANGES, dtype="float32", shape=(len(entering), 2))
    spec = dataclasses.replace(traced.spec, outputs=(*traced.spec.outputs, output))
    return ObservedGraph(
        graph=TracedGraph(spec=spec, model=model), rows=tuple(tuple(names) for names in entering.values())
    )


class _Writer:
    """Adds nodes to a graph.

    Args:
        graph: to add to.
        outside: how many of a million values may exceed the percentile.
    """

    def __init__(self, graph: ir.Graph, *, outside: int) -> None:
        self._graph = graph
        self._outside = outside
        self._count = 0
        self._last: ir.Node | None = None

    def ranges(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Percentile and largest of the absolute values, each [1].

        They are made right behind the value: at the end of the graph they would keep it in memory until then.
        """
        self._last = value.producer()
        found = self._ranges(value)
        self._last = None
        return found

    def _ranges(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        kind = ir.DataType.FLOAT
        magnitudes = self.node("Reshape", [self.node("Abs", [value], kind), self.constant([-1])], kind)
        largest = self.node("ReduceMax", [magnitudes, self.constant([0])], kind, keepdims=1)
        if not self._outside:
            return largest, largest
        # In whole numbers: fp32 cannot count the values of a long video. The k-th largest of n is the nearest rank.
        size = self.node("Size", [value], ir.DataType.INT64)
        product = self.node("Mul", [size, self.constant(self._outside)], ir.DataType.INT64)
        outside = self.node("Div", [product, self.constant(_MILLION)], ir.DataType.INT64)
        rank = self.node("Add", [outside, self.constant([1])], ir.DataType.INT64)
        top = self.node("TopK", [magnitudes, rank], kind, outputs=2, axis=0, largest=1, sorted=1)
        return self.node("Slice", [top, self.constant([-1]), self.constant([2**62])], kind), largest

    def constant(self, content: int | list[int]) -> ir.Value:
        """Whole numbers, int64."""
        tensor = ir.Tensor(np.array(content, np.int64), name=self._name())
        value = ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def node(
        self, operator: str, inputs: list[ir.Value], kind: ir.DataType, *, outputs: int = 1, **attributes: int
    ) -> ir.Value:
        """The first output of a node, which comes behind the one before it."""
        node = ir.node(operator, inputs, attributes=attributes, num_outputs=outputs, name=self._name())
        for output in node.outputs:
            output.name = self._name()
        node.outputs[0].type = ir.TensorType(kind)
        if self._last is None:
            self._graph.append(node)
        else:
            self._graph.insert_after(self._last, node)
            self._last = node
        return node.outputs[0]

    def _name(self) -> str:
        self._count += 1
        return f"observed.{self._count}"
