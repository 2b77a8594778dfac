"""The fp32 graphs that a calibration runs: traced, with their weights left in the checkpoint's files.

With `build` and others, one of the files of this package that call the exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import Precision
from flowblending.engine.build.fp8.loader import Graph, HeldWeight

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part
    from flowblending.export.graph.trace import TracedGraph

Rows = tuple[tuple[str, ...], ...]
"""The layers of each row of an observed graph's ranges."""


def plain_graph(part: Part, scratch: Path, report: Callable[[str], None]) -> Graph:
    """A component's graph in ``scratch``."""
    return _weights_as_inputs(_traced(part, report), scratch)


def observed_graph(part: Part, percentile: float, scratch: Path, report: Callable[[str], None]) -> tuple[Graph, Rows]:
    """A transformer's graph in ``scratch`` that tells what enters its layers; see `flowblending.export.fp8.observe`."""
    from flowblending.export.fp8.observe import observe

    observed = observe(_traced(part, report), percentile)
    return _weights_as_inputs(observed.graph, scratch), observed.rows


def _traced(part: Part, report: Callable[[str], None]) -> TracedGraph:
    from flowblending.export.graph.trace import trace_graph

    report(f"tracing {part.name}")
    return trace_graph(part.load(Precision.FP32))


def _weights_as_inputs(traced: TracedGraph, scratch: Path) -> Graph:
    from flowblending.export.graph.weight_inputs import write_weight_inputs

    graph = write_weight_inputs(traced, scratch)
    weights = tuple(
        HeldWeight(
            name=name,
            path=stored.path.absolute(),
            offset=stored.offset,
            shape=stored.shape,
            itemsize=stored.held.itemsize,
            kind=kind,
        )
        for name, (stored, kind) in graph.weights.items()
    )
    return Graph(onnx=graph.onnx.absolute(), spec=graph.spec, weights=weights)
