"""From a transformer's checkpoint and its calibration to a verified fp8 graph."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flowblending.contracts.conditions import own_input
from flowblending.contracts.graph import ExportedGraph, Precision
from flowblending.export.fp8.attention import quantise_attention
from flowblending.export.fp8.layers import quantise
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.trace import TracedGraph, trace_graph, write_graph
from flowblending.export.verify.verify import Parity, check_twin, compare, verify

REVISION = 1
"""Raised when this package makes other graphs of the same ones and the same ranges."""

Samples = Mapping[str, npt.NDArray[Any]]
"""Real inputs of transformers by name (``text``, ``text_mask``, ``control``), [samples, ...], of encoded prompts; and
what one transformer alone is given (``large.control_scale``), as it is."""


def export_fp8(
    part: Part,
    amax: Mapping[str, float],
    keep: int,
    *,
    attention: bool,
    base: Precision,
    folder: Path,
    weights_sha256: str,
    samples: Samples,
    timesteps: Sequence[float],
    report: Callable[[str], None],
) -> tuple[ExportedGraph, Parity]:
    """Export a transformer, quantise its layers, and verify the graph; the module is released before returning.

    What is verified is the fp32 graph with the same fp8 layers, on ONNX Runtime, against the stock class in fp32. Its
    inputs are noise, real prompts and the timesteps that the model is calibrated for: of other values more would be
    clipped. A bf16 graph is then verified as one without fp8 is: it may differ from this twin in casts alone, and
    the bf16 module is compared with the bf16 reference in torch.

    Args:
        part: the transformer.
        amax: of every layer to quantise, and of what enters every attention.
        keep: blocks at either end that are not quantised.
        attention: whether what enters the attention of these blocks is quantised, too.
        base: fp32 or bf16, of everything that is not quantised.
        folder: for the graph's files.
        weights_sha256: of ``part.sources``.
        samples: encoded prompts, and what was given with them.
        timesteps: those of the model's steps.
        report: told what is being done.

    Raises:
        UsageError: no block is left to quantise.
        FlowBlendingError: a layer has no range, or the graph is further from its reference than
            `flowblending.export.verify.verify.TOLERANCE` allows.
    """

    def quantised(graph: TracedGraph) -> TracedGraph:
        graph = quantise(graph, amax, keep)
        return quantise_attention(graph, amax, keep) if attention else graph

    report("loading in fp32")
    exportable = part.load(Precision.FP32)
    report("tracing in fp32")
    twin = quantised(trace_graph(exportable))
    exportable = _with_inputs(exportable, samples, timesteps)
    if base is Precision.FP32:
        graph = write_graph(twin, folder, weights_sha256)
        report("verifying")
        return graph, verify(exportable, graph)
    report("verifying")
    parity = verify(exportable, twin)
    del exportable
    gc.collect()
    report(f"loading in {base}")
    exportable = part.load(base)
    report(f"tracing in {base}")
    narrow = quantised(trace_graph(exportable))
    check_twin(narrow, twin)
    graph = write_graph(narrow, folder, weights_sha256)
    report(f"verifying in {base}")
    compare(exportable, exportable.module, exportable.spec)
    return graph, parity


def _with_inputs(exportable: Exportable, samples: Samples, timesteps: Sequence[float]) -> Exportable:
    """The same with real prompts, controls and timesteps among its inputs."""
    spec = exportable.spec
    names = [tensor.name for tensor in spec.inputs]
    # The rest is one for all samples of a call, such as the frame rate.
    batched = {tensor.name: tensor for tensor in spec.inputs if tensor.shape[0] == "batch" and tensor.name in samples}
    own = {name: samples[own_input(spec.name, name)] for name in names if own_input(spec.name, name) in samples}

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        drawn = dict(zip(names, exportable.inputs(sizes, generator), strict=True))

        def choose(count: int) -> torch.Tensor:
            return torch.randint(count, (sizes["batch"],), generator=generator)

        chosen = torch.tensor(timesteps, dtype=torch.float32)[choose(len(timesteps))]
        told = spec.timestep_shape((0, sizes.get("frames", 1)), sizes["batch"])
        drawn["timestep"] = chosen.reshape(-1, *[1] * (len(told) - 1)).expand(told)
        rows = choose(len(samples[next(iter(batched))])).numpy() if batched else None
        for name, tensor in batched.items():
            drawn[name] = torch.from_numpy(_at_size(samples[name][rows], tensor.resolve(sizes)))
        drawn |= {name: torch.from_numpy(values) for name, values in own.items()}
        return tuple(drawn[name] for name in names)

    return dataclasses.replace(exportable, inputs=inputs)


def _at_size(values: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """A part of what was made for a video of another size, repeated where that is smaller."""
    for axis, count in enumerate(shape):
        if values.shape[axis] != count:
            values = np.take(values, np.arange(count), axis=axis, mode="wrap")
    return np.ascontiguousarray(values)
