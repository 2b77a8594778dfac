"""torch module -> ONNX file with external data and its description (file contract 1).

Knows torch's exporter and nothing of any model: what a graph takes and gives is told by its ``GraphSpec``.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, TensorSpec, evaluate
from flowblending.export.graph.bind import bind_weights
from flowblending.export.graph.exportable import Exportable, Tensors

REVISION = 1
"""Raised when this package or `flowblending.export.checkpoint` make other graphs of the same modules."""

OPSET = 23
"""The first opset with Attention, RotaryEmbedding and RMSNormalization, which compilers map to one kernel each."""

_PACKAGES = ("torch", "onnxscript", "onnx-ir", "diffusers", "transformers")
_SCOPES = "pkg.torch.onnx.name_scopes"
_LAYERS = ("MatMul", "Gemm", "Conv")
_TORCH_SYMBOL = re.compile(r"\b[su]\d+\b")


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """A graph in memory. Its large weights are read when they are asked for, and not kept."""

    spec: GraphSpec
    model: ir.Model


def export_graph(exportable: Exportable, folder: Path, weights_sha256: str) -> ExportedGraph:
    """Trace a module and write its graph: see `trace_graph` and `write_graph`."""
    return write_graph(trace_graph(exportable), folder, weights_sha256)


def trace_graph(exportable: Exportable) -> TracedGraph:
    """The graph of a module. Every size that the specification gives by a symbol is dynamic.

    Sizes are tied to one another by the specification, so the module need not check them. Equal modules give equal
    graphs.

    Args:
        exportable: traced at its ``export_sizes``, which should differ from one another and exceed 1.

    Raises:
        FlowBlendingError: the module cannot be exported, or its graph is not what the specification says.
    """
    spec = exportable.spec
    inputs = exportable.inputs(exportable.export_sizes, torch.Generator().manual_seed(0))
    bound = _Bound(exportable.module, spec)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                bound,
                inputs,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=(tuple(_dynamic(tensor) for tensor in spec.inputs),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                # Not before the weights are in it: it computes with what stands for them.
                optimize=False,
            )
            assert program is not None  # torch returns None from its legacy path only
            bind_weights(program.model.graph, bound)
            program.optimize()
    except torch.onnx.errors.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise FlowBlendingError(
            f"The {spec.precision} graph of {spec.name} cannot be exported ({cause}); "
            "check that the checkpoint is one that this version supports."
        ) from error
    model = program.model
    _name_sizes(model.graph, spec)
    _check(model.graph, spec)
    _name_layers(model.graph)
    _strip(model.graph)
    return TracedGraph(spec=spec, model=model)


def write_graph(traced: TracedGraph, folder: Path, weights_sha256: str) -> ExportedGraph:
    """Write ``NAME.onnx``, ``NAME.onnx.data`` and ``NAME.json`` into ``folder``. Equal weights give equal bytes.

    Args:
        traced: its large weights are read, cast and written one at a time.
        folder: made if need be; files of an earlier export of the same name are replaced.
        weights_sha256: of the checkpoint's files, recorded in the description.
    """
    graph = ExportedGraph(
        spec=traced.spec,
        onnx=folder / f"{traced.spec.name}.onnx",
        opset=OPSET,
        weights_sha256=weights_sha256,
        versions={package: version(package) for package in _PACKAGES},
    )
    folder.mkdir(parents=True, exist_ok=True)
    # onnx_ir appends to nothing: it writes a new data file, one tensor at a time. Tensors below 256 bytes stay in
    # the graph, because compilers read them as shapes and axes.
    ir.save(traced.model, graph.onnx, external_data=graph.data.name)
    graph.data.touch()
    graph.write()
    return graph


def read_graph(graph: ExportedGraph) -> TracedGraph:
    """A graph that was written; its weights are pages of its own file."""
    return TracedGraph(spec=graph.spec, model=ir.load(graph.onnx))


def exporter_versions() -> str:
    """The packages that decide what a graph looks like, as ``torch 2.13.0, ...``."""
    return ", ".join(f"{package} {version(package)}" for package in _PACKAGES)


class _Bound(torch.nn.Module):
    """A module whose input sizes obey a specification: torch's exporter cannot know which sizes are the same."""

    def __init__(self, module: torch.nn.Module, spec: GraphSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        sizes: dict[str, int] = {}
        for tensor, value in zip(self.spec.inputs, inputs, strict=True):
            for dim, size in zip(tensor.shape, value.shape, strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    sizes.setdefault(dim, size)
        for tensor, value in zip(self.spec.inputs, inputs, strict=True):
            for dim, size in zip(tensor.shape, value.shape, strict=True):
                # Under torch's tracing this comparison holds for all sizes from here on.
                if size != evaluate(dim, sizes):
                    raise ValueError(f"{tensor.name} has shape {tuple(value.shape)}, not {list(tensor.shape)}")
        outputs: Tensors = self.module(*inputs)
        return outputs


def _dynamic(tensor: TensorSpec) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}


def _name_sizes(graph: ir.Graph, spec: GraphSpec) -> None:
    """Give the sizes of inputs, outputs and everything between the names of the specification."""
    for value, tensor in zip([*graph.inputs, *graph.outputs], [*spec.inputs, *spec.outputs], strict=True):
        if value.shape is None or len(value.shape) != len(tensor.shape):
            raise _differs(spec, tensor, f"shape {value.shape}")
        for axis, dim in enumerate(tensor.shape):
            found = value.shape[axis]
            if isinstance(found, int) and found != dim:
                raise _differs(spec, tensor, f"the fixed size {found} at dimension {axis}")
        value.shape = ir.Shape(tensor.shape)


def _check(graph: ir.Graph, spec: GraphSpec) -> None:
    for value, tensor in zip([*graph.inputs, *graph.outputs], [*spec.inputs, *spec.outputs], strict=True):
        if value.dtype is None or value.dtype.numpy().name != tensor.dtype:
            raise _differs(spec, tensor, f"type {value.dtype}")
    if any(node.op_type == "ScatterND" for node in ir.traversal.RecursiveGraphIterator(graph)):
        raise FlowBlendingError(
            f"The graph of {spec.name} writes into slices of a tensor (ScatterND), which compilers run slowly; "
            "write that part of the module without assignments to slices."
        )
    for value in _values(graph):
        unknown = [dim for dim in value.shape or () if _TORCH_SYMBOL.search(str(dim))]
        if unknown:
            raise FlowBlendingError(
                f"The graph of {spec.name} has a size {unknown[0]} that depends on no input; "
                "give every dynamic size of the inputs a symbol."
            )


def _differs(spec: GraphSpec, tensor: TensorSpec, found: str) -> FlowBlendingError:
    return FlowBlendingError(
        f"{tensor.name} of the exported graph {spec.name} has {found}, but {tensor.dtype} {list(tensor.shape)} "
        "was expected; correct the module or its specification."
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs


def _name_layers(graph: ir.Graph) -> None:
    """Name every node that multiplies by weights after the module that holds them: ``model.blocks.0.attn1.to_q``."""
    named: dict[str, list[ir.Node]] = {}
    for node in graph:
        # From the outermost module to the innermost one, and then torch's name for the call.
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.op_type in _LAYERS and len(scopes) > 1:
            named.setdefault(str(scopes[-2]).removeprefix("module."), []).append(node)
    for name, nodes in named.items():
        if len(nodes) == 1 and name:
            nodes[0].name = name


def _strip(graph: ir.Graph) -> None:
    """Remove what only describes this run: stack traces with paths of this machine, and the like."""
    values: Iterable[ir.Value] = (*graph.inputs, *graph.initializers.values(), *_values(graph))
    for value in values:
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
    graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes to its own developers from the user; errors still pass as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
