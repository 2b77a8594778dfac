"""Whether an exported graph computes what the unmodified diffusers or transformers class computes."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.stored import weights_on_demand
from flowblending.export.graph.stretches import run_stretches, session_options, stretches
from flowblending.export.graph.trace import TracedGraph, export_graph, read_graph, trace_graph


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a graph is from its reference: the worst output at the worst sizes.

    Attributes:
        relative: L2 norm of the difference, by the reference's.
        maximum: largest absolute difference, by the reference's largest absolute value.
        shapes: at how many sets of sizes the two were compared.
        stretches: in how many parts the graph was run, one after the other.
    """

    relative: float
    maximum: float
    shapes: int
    stretches: int = 1

    def __str__(self) -> str:
        """``2.9e-07 at 2 shapes``, and how it was run if not as one."""
        parts = f", run in {self.stretches} stretches" if self.stretches > 1 else ""
        return f"{self.relative:.1e} at {self.shapes} shapes{parts}"


WHOLE = 1 << 30
"""Bytes of weights up to which a graph is loaded as a whole to verify it."""

Feed = dict[str, npt.NDArray[Any]]


TOLERANCE: Mapping[Precision, Parity] = {
    Precision.FP32: Parity(relative=5e-5, maximum=1e-3, shapes=2),
    Precision.FP16: Parity(relative=1e-2, maximum=1e-1, shapes=2),
    Precision.FP16_MIXED: Parity(relative=5e-3, maximum=5e-2, shapes=2),
    Precision.BF16: Parity(relative=5e-2, maximum=5e-1, shapes=2),
    Precision.FP8: Parity(relative=1e-1, maximum=1.0, shapes=2),
}
"""The largest parity that passes, and the least number of sizes.

Measured on small models with random weights: 7e-6 and 9e-5 in fp32, 3e-3 and 4e-2 in fp16. That is rounding: the
reference is as far from itself in the next higher precision. A lost bias or a wrong angle gives 2e-2 and more.
"""


def export_and_verify(
    part: Part, precision: Precision, folder: Path, weights_sha256: str, report: Callable[[str], None]
) -> tuple[ExportedGraph, Parity]:
    """Load a component, export it, and verify the graph; the module is released before returning.

    fp16-mixed is compared with the stock class in fp32: in fp16, that class overflows where this precision does not.
    ONNX Runtime's CPU kernels know no bf16. A bf16 graph is therefore verified in two halves: its fp32 twin on
    ONNX Runtime, from which it may differ in casts alone, and the bf16 module against the bf16 reference in torch.

    Args:
        part: the component.
        precision: of the graph.
        folder: for the graph's files.
        weights_sha256: of ``part.sources``.
        report: told what is being done, in a word or two.

    Raises:
        FlowBlendingError: the component cannot be loaded or exported, or is further from its reference than
            ``TOLERANCE`` allows.
    """
    report("loading")
    exportable = part.load(precision)
    report("tracing")
    graph = export_graph(exportable, folder, weights_sha256)
    report("verifying")
    if precision in (Precision.FP32, Precision.FP16):
        return graph, verify(exportable, graph)
    if precision is Precision.BF16:
        compare(exportable, exportable.module, graph.spec)
    del exportable
    gc.collect()
    if precision is Precision.FP16_MIXED:
        return graph, verify(part.load(Precision.FP32), graph)
    report("loading the fp32 twin")
    exportable = part.load(Precision.FP32)
    report("tracing the fp32 twin")
    twin = trace_graph(exportable)
    check_twin(read_graph(graph), twin)
    report("verifying the fp32 twin")
    return graph, verify(exportable, twin)


def verify(exportable: Exportable, graph: ExportedGraph | TracedGraph) -> Parity:
    """Compare a graph on ONNX Runtime's CPU with the reference, at every one of ``exportable.verify_sizes``.

    A file of up to `WHOLE` bytes of weights is run as a bundle's engine would be. What is larger, or was never
    written, is run in stretches, every node and weight of it, with the weights of one stretch in memory.

    Raises:
        FlowBlendingError: the graph does not run, or is further from the reference than ``TOLERANCE`` allows in the
            graph's precision, which need not be that of the reference.
    """
    spec = graph.spec
    if isinstance(graph, ExportedGraph) and not (graph.data.exists() and graph.data.stat().st_size > WHOLE):
        session = _session(graph)
        return compare(exportable, lambda *inputs: _on_ort(spec, inputs, session), spec)
    model = graph.model if isinstance(graph, TracedGraph) else read_graph(graph).model

    def stretch_by_stretch(feed: Feed) -> Sequence[npt.NDArray[Any]]:
        outputs = run_stretches(model, feed)
        return [outputs[tensor.name] for tensor in spec.outputs]

    parity = compare(exportable, lambda *inputs: _on_ort(spec, inputs, stretch_by_stretch), spec)
    return dataclasses.replace(parity, stretches=len(stretches(model.graph)))


def _session(graph: ExportedGraph) -> Callable[[Feed], Sequence[npt.NDArray[Any]]]:
    try:
        session = onnxruntime.InferenceSession(graph.onnx, session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class but this
        raise _failed(graph.spec, f"cannot be loaded by ONNX Runtime ({_first_line(error)})") from error
    return lambda feed: session.run([tensor.name for tensor in graph.spec.outputs], feed)


def _on_ort(spec: GraphSpec, inputs: Tensors, run: Callable[[Feed], Sequence[npt.NDArray[Any]]]) -> Tensors:
    feed = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, inputs, strict=True)}
    try:
        outputs = run(feed)
    except FlowBlendingError:
        raise
    except Exception as error:
        raise _failed(spec, f"does not run on ONNX Runtime ({_first_line(error)})") from error
    return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)


def compare(exportable: Exportable, run: Callable[..., Tensors], spec: GraphSpec) -> Parity:
    """Compare anything that computes what ``spec`` says with the reference; raises as `verify` does."""
    tolerance = TOLERANCE[spec.precision]
    if len(exportable.verify_sizes) < tolerance.shapes:
        raise ValueError(f"{spec.name} is to be verified at {tolerance.shapes} or more sizes")
    relative = maximum = 0.0
    for seed, sizes in enumerate(exportable.verify_sizes, start=1):
        inputs = exportable.inputs(sizes, torch.Generator().manual_seed(seed))
        with torch.no_grad(), weights_on_demand(*exportable.streamed):
            expected, found = exportable.reference(*inputs), run(*inputs)
        for tensor, ours, theirs in zip(spec.outputs, found, expected, strict=True):
            shape = tensor.resolve(sizes)
            where = f"{tensor.name} at {', '.join(f'{name} {size}' for name, size in sizes.items())}"
            if tuple(ours.shape) != shape or tuple(theirs.shape) != shape:
                found_shapes = f"{list(ours.shape)} and torch {list(theirs.shape)}"
                raise _failed(spec, f"gives {found_shapes} where {list(shape)} was expected ({where})")
            norm, largest = _difference(ours, theirs)
            # Written so that a figure that is not a number fails.
            if not (norm <= tolerance.relative and largest <= tolerance.maximum):
                raise _failed(
                    spec,
                    f"differs from torch by {norm:.1e} in norm and {largest:.1e} at most, where {tolerance.relative:g} "
                    f"and {tolerance.maximum:g} are allowed ({where})",
                )
            relative, maximum = max(relative, norm), max(maximum, largest)
    return Parity(relative=relative, maximum=maximum, shapes=len(exportable.verify_sizes))


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Relative L2 norm and maximum; where the reference is zero (an empty cache), any difference is infinite."""
    ours, theirs = ours.double(), theirs.double()
    difference = ours - theirs
    if not difference.any():
        return 0.0, 0.0
    norm, largest = difference.norm() / theirs.norm(), difference.abs().max() / theirs.abs().max()
    return norm.item(), largest.item()


def check_twin(graph: TracedGraph, twin: TracedGraph) -> None:
    """Refuse a graph that differs from its fp32 twin in more than casts.

    Raises:
        FlowBlendingError: they have different numbers of operators of some kind.
    """
    ours, theirs = _operators(graph), _operators(twin)
    different = sorted(kind for kind in ours | theirs if ours[kind] != theirs[kind])
    if different:
        kind = different[0]
        raise _failed(graph.spec, f"has {ours[kind]} operators {kind}, but its fp32 twin has {theirs[kind]}")


def _operators(graph: TracedGraph) -> Counter[str]:
    return Counter(node.op_type for node in graph.model.graph if node.op_type != "Cast")


def _failed(spec: GraphSpec, what: str) -> FlowBlendingError:
    return FlowBlendingError(
        f"The exported {spec.precision} graph of {spec.name} {what}; "
        "choose another precision, or report the checkpoint if fp32 fails too."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
