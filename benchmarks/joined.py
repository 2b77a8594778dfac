"""What joining the projections of attention in the graph would bring: q, k, v as one product, text k, v as one.

Compiles a stack of blocks of full width, random weights, for one architecture with TensorRT-RTX: the graph as builds
export it, and the same graph with the joined products. Each line tells the products with weights and the kernels of the
plan, its size and scratch, and the compiler's seconds and largest anonymous memory.

    python -m benchmarks.joined --work /tmp/joined --cases wan-14b-bf16,wan-14b-fp8,ltx-13b-bf16
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.random_checkpoint import MODELS, write_model
from benchmarks.scale import GIGA, Usage, measure
from flowblending import UsageError
from flowblending.contracts.graph import LARGE, ExportedGraph, Precision
from flowblending.system.console import Console, run_program

if TYPE_CHECKING:
    import onnx_ir as ir

PROJECTIONS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of `benchmarks.random_checkpoint.MODELS`, cut to so many blocks, in a precision."""

    model: str
    layers: int
    precision: Precision


CASES: Mapping[str, Case] = {
    "wan-14b-bf16": Case(model="wan-14b", layers=2, precision=Precision.BF16),
    "wan-14b-fp8": Case(model="wan-14b", layers=4, precision=Precision.FP8),
    "ltx-13b-bf16": Case(model="ltx-13b", layers=2, precision=Precision.BF16),
    "wan-1.3b-bf16": Case(model="wan-1.3b", layers=30, precision=Precision.BF16),
}


def join_projections(graph: ir.Graph) -> int:
    """Replace the projections of one attention that have one input by one product; how many products went.

    Weights [in, out] and biases are laid side by side; fp8 weights are with their scales, a number for each column, so
    that the joined layer computes what the single ones do.
    """
    groups: dict[tuple[str, str], list[ir.Node]] = {}
    for node in graph:
        attention, _, projection = (node.name or "").rpartition(".")
        if node.op_type == "MatMul" and projection in PROJECTIONS:
            groups.setdefault((attention, node.inputs[0].name), []).append(node)
    joined = [(attention, nodes) for (attention, _), nodes in groups.items() if len(nodes) > 1]
    for attention, nodes in joined:
        _join(graph, attention, nodes)
    return sum(len(nodes) - 1 for _, nodes in joined)


def _join(graph: ir.Graph, attention: str, products: Sequence[ir.Node]) -> None:
    import onnx_ir as ir

    sums = [product.outputs[0].uses()[0].node for product in products]
    biases = [next(each for each in total.inputs if each.producer() is None) for total in sums]
    name, first = f"{attention}.joined", products[0]
    weights = [product.inputs[1] for product in products]
    decoders = [weight.producer() for weight in weights if weight.producer() is not None]
    nodes: list[ir.Node] = []
    if decoders:
        operands = [_beside(graph, f"{name}.{index}", [each.inputs[index] for each in decoders]) for index in (0, 1)]
        nodes.append(ir.node("DequantizeLinear", operands, attributes={"axis": 1}, name=f"{name}.DequantizeLinear"))
        weight = nodes[-1].outputs[0]
    else:
        weight = _beside(graph, f"{name}.weight", weights)
    nodes.append(ir.node("MatMul", [first.inputs[0], weight], name=name))
    nodes.append(ir.node("Add", [nodes[-1].outputs[0], _beside(graph, f"{name}.bias", biases)], name=f"{name}.Add"))
    widths = np.array([each.shape[1] for each in weights], np.int64)
    cuts = _constant(graph, ir.tensor(widths, name=f"{name}.widths"))
    parts = [
        ir.Value(name=each.outputs[0].name, shape=each.outputs[0].shape, type=each.outputs[0].type) for each in sums
    ]
    nodes.append(
        ir.node("Split", [nodes[-1].outputs[0], cuts], attributes={"axis": -1}, outputs=parts, name=f"{name}.Split")
    )
    graph.insert_before(first, nodes)
    for total, part in zip(sums, parts, strict=True):
        total.outputs[0].replace_all_uses_with(part)
    constants = [*weights, *biases, *(each for decoder in decoders for each in decoder.inputs[:2])]
    graph.remove([*sums, *products, *decoders], safe=True)
    for value in constants:
        graph.initializers.pop(value.name, None)


def _beside(graph: ir.Graph, name: str, values: Sequence[ir.Value]) -> ir.Value:
    """Constants side by side, read when they are written."""
    import onnx_ir as ir

    tensors = [value.const_value for value in values]
    shape = [*tensors[0].shape[:-1], sum(tensor.shape[-1] for tensor in tensors)]

    def read() -> ir.Tensor:
        return ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1), name=name)

    return _constant(graph, ir.LazyTensor(read, tensors[0].dtype, ir.Shape(shape), name=name))


def _constant(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def join_graph(source: Path, out: Path) -> int:
    """Write a graph with its projections joined, beside the exported one; how many products went."""
    from flowblending.export.graph.trace import read_graph, write_graph

    traced = read_graph(ExportedGraph.read(source))
    gone = join_projections(traced.model.graph)
    write_graph(traced, out, "")
    return gone


def run_case(case: Case, work: Path, target: str) -> tuple[int, dict[str, Usage]]:
    """How many products joining takes out of the graph, and what compiling each of the two takes."""
    shutil.rmtree(work, ignore_errors=True)
    try:
        write_model(MODELS[case.model].cut(case.layers), work / "checkpoint")
        measure("export", str(work / "checkpoint"), str(work / "graph"), case.precision)
        source = work / "graph" / f"{LARGE}.onnx"
        gone = join_graph(source, work / "joined")
        graphs = {"as exported": source, "joined": work / "joined" / source.name}
        usages = {name: measure("plan", str(graph), str(work / "plan"), target) for name, graph in graphs.items()}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return gone, usages


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Measure what joined projections would bring.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for checkpoints, graphs and plans")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--target", default="sm89", metavar="SM", help="GPU to compile for (default: sm89)")
    arguments = parser.parse_args()
    console = Console()

    def work() -> None:
        names = arguments.cases.split(",")
        for name in names:
            if name not in CASES:
                raise UsageError(f"There is no case {name}; choose among {', '.join(CASES)}.")
        rows = []
        for name in names:
            gone, usages = run_case(CASES[name], arguments.work / name, arguments.target)
            rows += [
                (f"{name}, {CASES[name].layers} blocks", graph, *_figures(usage)) for graph, usage in usages.items()
            ]
            console.log(f"{name}: joining takes {gone} products out of the graph")
        columns = ("case", "graph", "products", "kernels", "plan", "scratch", "CPU seconds", "compiler's memory")
        console.table(f"plans for {arguments.target}", columns, rows)

    run_program(work)


def _figures(usage: Usage) -> tuple[str, ...]:
    told = usage.told
    return (
        str(told["products"]),
        str(told["kernels"]),
        f"{told['bytes'] / GIGA:.3f} GB",
        f"{told['scratch'] / GIGA:.2f} GB",
        f"{usage.cpu_seconds:.1f}",
        f"{usage.peak_anonymous / GIGA:.2f} GB",
    )


if __name__ == "__main__":
    main()
