"""fp8 (E4M3): the linear layers of a transformer's blocks, quantised in the exported graph.

Weights are stored in fp8 with a scale per output channel; the values that enter a layer get one scale, from a
calibration. What lies outside the blocks (embedders, modulation, the output's projection) and the first and the last
blocks stay as they are: they are a small share of the work, and errors there reach everything or are undone by nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import Precision
from flowblending.export.fp8.own_weights import own_weights
from flowblending.export.graph.audit import OWN
from flowblending.export.graph.trace import TracedGraph

LARGEST = 448.0
"""The largest number of E4M3 (OCP 8-bit floating point specification, table 1)."""

BLOCK = re.compile(r"(?P<kind>transformer_|vace_)?blocks\.(?P<number>\d+)\..+")
_CONTROL = "vace_"
"""Blocks of a control, each of which stands behind a block of the video and is as deep in the network as that."""
_KEPT_SHARE = 0.075
_ROWS = 512

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer of a transformer's block.

    Attributes:
        name: as diffusers names it: ``blocks.0.attn1.to_q``.
        block: number of the block; of a block of the control, that of the video's block before it.
        node: multiplies its input by its weights [in, out].
    """

    name: str
    block: int
    node: ir.Node

    @property
    def input(self) -> ir.Value:
        """What enters: [..., in]."""
        return _operand(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """Weights [in, out]."""
        return _operand(self.node, 1)


def block_layers(graph: ir.Graph) -> list[Layer]:
    """Every linear layer of a transformer's blocks, in the graph's order."""
    found = []
    depth = BlockDepth()
    for node in graph:
        match = BLOCK.search(node.name or "")
        if match and node.op_type == "MatMul" and _operand(node, 1).const_value is not None:
            found.append(Layer(name=match[0], block=depth.of(match), node=node))
    return found


class BlockDepth:
    """Tells how deep in the network blocks are, which are asked about in the graph's order."""

    def __init__(self) -> None:
        self._last = 0

    def of(self, found: re.Match[str]) -> int:
        """Of what `BLOCK` has found."""
        if found["kind"] != _CONTROL:
            self._last = int(found["number"])
        return self._last


def block_count(layers: Sequence[Layer]) -> int:
    """How many blocks these layers are of."""
    return 1 + max((layer.block for layer in layers), default=-1)


def kept_blocks(blocks: int) -> int:
    """How many blocks at either end are not quantised unless told otherwise.

    3 of Wan 14B's 40, as in NVIDIA's recipe for it, and as many in proportion in other models (2 of 30, 4 of 48): at
    least one, as long as one is left between.
    """
    return min(max(1, round(_KEPT_SHARE * blocks)), max(0, (blocks - 1) // 2))


def check_kept(model: str, blocks: int, keep: int) -> None:
    """Refuse to keep every block.

    Raises:
        UsageError: fewer than one block would be quantised.
    """
    if blocks - 2 * keep < 1:
        raise UsageError(
            f"{model} has {blocks} blocks, and keeping {keep} at either end leaves none to quantise; "
            f"give --fp8-keep {max(0, (blocks - 1) // 2)} or less."
        )


def check_ranges(model: str, names: Iterable[str], amax: Mapping[str, float]) -> None:
    """Refuse to quantise what has no range.

    Raises:
        FlowBlendingError: names the first that has none.
    """
    for name in names:
        if name not in amax:
            raise FlowBlendingError(f"The calibration has no range for {name} of {model}; calibrate again.")


def quantise(graph: TracedGraph, amax: Mapping[str, float], keep: int) -> TracedGraph:
    """Make a graph's layers fp8 ones. Their weights are quantised when they are read.

    Args:
        graph: in fp32 or bf16, which is what everything but these layers stays in; not to be used afterwards.
        amax: of every layer to quantise: the largest absolute value that may enter it; larger ones are clipped to it.
        keep: blocks at either end that are left as they are.

    Raises:
        UsageError: no block would be left to quantise.
        FlowBlendingError: a layer has no range, or the graph has no layers to quantise.
    """
    layers = block_layers(graph.model.graph)
    blocks = block_count(layers)
    check_kept(graph.spec.name, blocks, keep)
    chosen = [layer for layer in layers if keep <= layer.block < blocks - keep]
    check_ranges(graph.spec.name, [layer.name for layer in chosen], amax)
    quantiser = _Quantiser(graph.model.graph)
    for layer in chosen:
        quantiser.replace(layer, amax[layer.name])
    return TracedGraph(spec=dataclasses.replace(graph.spec, precision=Precision.FP8), model=graph.model)


class _Quantiser:
    """Replaces layers of one graph by fp8 ones. Layers with one input and one range share its quantised values."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._inputs: dict[tuple[str | None, float], ir.Value] = {}

    def replace(self, layer: Layer, amax: float) -> None:
        """Make the layer multiply values that have been through fp8."""
        key = layer.input.name, amax
        if key not in self._inputs:
            self._inputs[key] = through_fp8(self._graph, layer.input, amax, f"{layer.name}.input", layer.node)
        weight = self._quantised_weight(layer)
        layer.node.replace_input_with(0, self._inputs[key])
        layer.node.replace_input_with(1, weight)

    def _quantised_weight(self, layer: Layer) -> ir.Value:
        weight = layer.weight
        stored = weight.const_value
        assert stored is not None
        assert weight.dtype is not None
        own = own_weights(stored)
        scales = fp8_scale(_largest(stored)) if own is None else own.scales()
        scale = _constant(self._graph, f"{layer.name}.weight_scale", scales, weight.dtype)
        narrow = ir.LazyTensor(
            lambda: ir.Tensor(_quantised(stored, scales) if own is None else own.values()),
            dtype=ir.DataType.FLOAT8E4M3FN,
            shape=ir.Shape(stored.shape),
            name=f"{layer.name}.weight" if own is None else f"{layer.name}{OWN}",
            cache=False,
        )
        value = ir.Value(
            name=narrow.name, shape=ir.Shape(stored.shape), type=ir.TensorType(narrow.dtype), const_value=narrow
        )
        self._graph.register_initializer(value)
        self._graph.initializers.pop(weight.name, None)
        return _converted(
            self._graph,
            "DequantizeLinear",
            [value, scale],
            f"{layer.name}.weight",
            layer.node,
            shape=value.shape,
            dtype=weight.dtype,
            axis=1,
        )


def through_fp8(graph: ir.Graph, values: ir.Value, amax: float, name: str, before: ir.Node) -> ir.Value:
    """Values quantised and converted back, with one scale for all of them.

    Args:
        amax: what the largest fp8 number stands for; what lies beyond is clipped to it.
        name: that the new nodes and constants begin with.
        before: the node that gets them.
    """
    assert values.dtype is not None
    fp8 = ir.DataType.FLOAT8E4M3FN
    scale = _constant(graph, f"{name}_scale", fp8_scale(np.float32(amax)), values.dtype)
    zero = _constant(graph, f"{name}_zero", np.zeros((), np.float32), fp8)
    narrow = _converted(graph, "QuantizeLinear", [values, scale, zero], name, before, shape=values.shape, dtype=fp8)
    return _converted(
        graph, "DequantizeLinear", [narrow, scale, zero], name, before, shape=values.shape, dtype=values.dtype
    )


def _constant(graph: ir.Graph, name: str, array: Floats, dtype: ir.DataType) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array).astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _converted(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    of: str,
    before: ir.Node,
    *,
    shape: ir.Shape | ir.ShapeProtocol | None,
    dtype: ir.DataType,
    **attributes: int,
) -> ir.Value:
    """A node in front of another; its only output, of a shape and type that are written down for the audit."""
    name = f"{of}.{operator}"
    output = ir.Value(name=name, shape=None if shape is None else ir.Shape(shape), type=ir.TensorType(dtype))
    graph.insert_before(before, ir.node(operator, inputs, attributes=attributes, outputs=[output], name=name))
    return output


def fp8_scale(amax: npt.NDArray[np.floating] | np.floating) -> Floats:
    """The scale by which values up to ``amax`` fill E4M3: amax / 448, rounded up to a bf16 number, fp32.

    As bf16 numbers, scales are the same in a bf16 graph and in its fp32 twin; rounded up, nothing exceeds the range.
    Where nothing but zero is expected the scale is 1.
    """
    scale = np.asarray(amax, np.float32) / np.float32(LARGEST)
    bits = scale.view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.asarray(np.where(scale > 0, rounded, np.float32(1)), np.float32)


def to_fp8(values: Floats, scale: Floats) -> npt.NDArray[np.generic]:
    """Values divided by their scale, as E4M3: to the nearest, ties to even."""
    return (values / scale).astype(ml_dtypes.float8_e4m3fn)


def _rows(tensor: ir.TensorProtocol) -> Iterator[tuple[slice, Floats]]:
    """A matrix in fp32, some rows at a time: a whole one in fp32 is twice what it is stored in."""
    array = tensor.numpy()
    for start in range(0, len(array), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, np.asarray(array[rows], np.float32)


def _largest(tensor: ir.TensorProtocol) -> Floats:
    """The largest absolute value of each column."""
    found: Floats = np.maximum.reduce([np.abs(part).max(axis=0) for _, part in _rows(tensor)])
    return found


def _quantised(tensor: ir.TensorProtocol, scales: Floats) -> npt.NDArray[np.generic]:
    result = np.empty(tuple(tensor.shape.numpy()), ml_dtypes.float8_e4m3fn)
    for rows, part in _rows(tensor):
        result[rows] = to_fp8(part, scales)
    return result


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
