"""fp8 attention: what enters the attention of a transformer's blocks, quantised in the exported graph.

Queries, keys and values get one scale each, from a calibration, as what enters a layer does. The softmax's output is
not in the graph: compilers quantise it inside of their kernel (`flowblending.engine.backends.tensorrt.attention`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from flowblending.export.fp8.layers import BLOCK, BlockDepth, check_ranges, through_fp8
from flowblending.export.graph.flops import ATTENTION
from flowblending.export.graph.trace import TracedGraph

OPERANDS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class BlockAttention:
    """Attention of a transformer's block.

    Attributes:
        name: as diffusers names the module: ``blocks.0.attn1``.
        block: number of the block, as `Layer` has it.
        node: takes queries, keys and values, in this order.
    """

    name: str
    block: int
    node: ir.Node

    @property
    def operands(self) -> Mapping[str, ir.Value]:
        """Queries, keys and values by the names of their ranges: ``blocks.0.attn1.query``."""
        inputs = zip(operand_names(self.name), self.node.inputs[:3], strict=True)
        return {name: value for name, value in inputs if value is not None}


def operand_names(attention: str) -> tuple[str, ...]:
    """The names of the ranges of a module's queries, keys and values."""
    return tuple(f"{attention}.{each}" for each in OPERANDS)


def block_attention(graph: ir.Graph) -> list[BlockAttention]:
    """Every attention of a transformer's blocks, in the graph's order."""
    found = []
    depth = BlockDepth()
    for node in graph:
        match = BLOCK.search(_projection(node)) if node.op_type == ATTENTION else None
        if match:
            found.append(BlockAttention(name=match[0].rpartition(".")[0], block=depth.of(match), node=node))
    return found


def quantise_attention(graph: TracedGraph, amax: Mapping[str, float], keep: int) -> TracedGraph:
    """Quantise what enters a graph's attention.

    Args:
        graph: in fp32 or bf16, or one of these with fp8 layers; not to be used afterwards.
        amax: of every queries, keys and values to quantise: as `fp8.quantise` has it of layers.
        keep: blocks at either end that are left as they are.

    Raises:
        FlowBlendingError: queries, keys or values have no range.
    """
    found = block_attention(graph.model.graph)
    blocks = 1 + max((each.block for each in found), default=-1)
    chosen = [each for each in found if keep <= each.block < blocks - keep]
    check_ranges(graph.spec.name, [name for each in chosen for name in each.operands], amax)
    for each in chosen:
        for index, (name, value) in enumerate(each.operands.items()):
            each.node.replace_input_with(index, through_fp8(graph.model.graph, value, amax[name], name, each.node))
    return graph


def _projection(attention: ir.Node) -> str:
    """The name of the layer that values come from, through a bias and casts: attention itself has torch's name."""
    value = attention.inputs[2]
    node = None if value is None else value.producer()
    while node is not None and node.op_type != "MatMul":
        before = (each.producer() for each in node.inputs if each is not None)
        node = next((each for each in before if each is not None), None)
    return "" if node is None else node.name or ""
