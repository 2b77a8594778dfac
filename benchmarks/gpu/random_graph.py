"""Graphs of full-size components with random weights, written in the time that it takes to trace them.

A graph's large weights are places in one file of random numbers, as large as the largest of them: a 14B model takes
0.1 GB of disk. Every weight has a place of its own, so that no two are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from benchmarks.scale_step import AMAX
from flowblending.contracts.graph import ExportedGraph, Precision

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part
    from flowblending.export.graph.trace import TracedGraph

_SPREAD = 0.02
_BLOCK = 1_048_573
"""Random numbers that a file repeats: a prime, so that no two rows of a weight are equal."""
_ALIGNMENT = 256


def export_random(part: Part, precision: Precision, folder: Path) -> tuple[ExportedGraph, int]:
    """Export a component whose large weights are random numbers.

    Args:
        part: of a pair that `write_pair` wrote, or any other.
        precision: of the graph; the ranges of fp8 are made up.
        folder: to write into.

    Returns:
        The graph, and the bytes of its weights.
    """
    from flowblending.export.checkpoint.model_files import read_json
    from flowblending.export.fp8.layers import block_layers, kept_blocks, quantise
    from flowblending.export.graph.trace import trace_graph

    fp8 = precision is Precision.FP8
    traced = trace_graph(part.load(Precision.BF16 if fp8 else precision))
    large = _large(traced)
    if fp8:
        import onnx_ir as ir

        for name, tensor in large.items():
            # Its scale is taken of a zero: nothing is read.
            traced.model.graph.initializers[name].const_value = _zeros(ir, tensor)
        amax = {layer.name: AMAX for layer in block_layers(traced.model.graph)}
        config = next(path for path in part.sources if path.name == "config.json")
        traced = quantise(traced, amax, kept_blocks(read_json(config)["num_layers"]))
        large = _large(traced)
    return _write(traced, large, folder)


def _zeros(ir: Any, tensor: Any) -> Any:
    shape, dtype = tuple(tensor.shape.numpy()), tensor.dtype
    return ir.LazyTensor(
        lambda: ir.Tensor(np.broadcast_to(np.zeros((), dtype.numpy()), shape), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=tensor.name,
        cache=False,
    )


def _large(traced: TracedGraph) -> dict[str, Any]:
    """The weights that are read only when they are asked for, by name."""
    import onnx_ir as ir

    from flowblending.export.graph.stored import StoredTensor

    return {
        name: value.const_value
        for name, value in traced.model.graph.initializers.items()
        if isinstance(value.const_value, StoredTensor | ir.LazyTensor)
    }


def _write(traced: TracedGraph, large: Mapping[str, Any], folder: Path) -> tuple[ExportedGraph, int]:
    import onnx_ir as ir

    from flowblending.export.graph.trace import OPSET, write_graph

    if not large:
        graph = write_graph(traced, folder, "")
        return graph, graph.data.stat().st_size
    folder.mkdir(parents=True, exist_ok=True)
    spec = traced.spec
    graph = ExportedGraph(spec=spec, onnx=folder / f"{spec.name}.onnx", opset=OPSET, weights_sha256="", versions={})
    starts = _write_numbers(graph.data, large)
    total = 0
    for name, value in traced.model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        total += tensor.nbytes
        if name in large:
            value.const_value = ir.ExternalTensor(
                graph.data.name,
                starts[name],
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=folder,
            )
    ir.save(traced.model, graph.onnx)
    graph.write()
    return graph, total


def _write_numbers(path: Path, large: Mapping[str, Any]) -> dict[str, int]:
    """Write a file of random numbers for each type, and choose a place in it for every weight.

    Returns:
        Where each begins.
    """
    most: dict[Any, int] = {}
    for tensor in large.values():
        most[tensor.dtype] = max(most.get(tensor.dtype, 0), tensor.nbytes)
    starts: dict[str, int] = {}
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for kind, nbytes in most.items():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            begin, numbers = file.tell(), _numbers(np.dtype(kind.numpy()))
            # Room for a weight to begin anywhere in the first round.
            for _ in range(math.ceil(nbytes / numbers.nbytes) + 1):
                file.write(numbers.data)
            names = [name for name, tensor in large.items() if tensor.dtype == kind]
            places = generator.permutation(numbers.nbytes // _ALIGNMENT)
            starts |= {name: begin + _ALIGNMENT * int(place) for name, place in zip(names, places, strict=False)}
            assert names[-1] in starts, "there are as many places as weights"
    return starts


def _numbers(kind: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    """Random numbers as bytes. fp8 ones fill their range as quantised weights do."""
    spread = 100.0 if kind == ml_dtypes.float8_e4m3fn else _SPREAD
    values = spread * np.random.default_rng(1).standard_normal(_BLOCK, np.float32)
    numbers: npt.NDArray[np.uint8] = np.clip(values, -448, 448).astype(kind).view(np.uint8)
    return numbers
