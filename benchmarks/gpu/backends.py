"""The stages that tell whether a back end works here: tiny graphs, compiled, run, and compared with the CPU.

Each has a stage and so a process of its own: TensorRT and TensorRT-RTX cannot be loaded side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.pairs import PAIRS, Pair, tiny
from benchmarks.gpu.stage import Item, Results, Unavailable, Work
from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, Precision
from flowblending.engine.backends.gpu import gpu_architecture

RTX, TENSORRT, ONNXRUNTIME = "tensorrt-rtx", "tensorrt", "onnxruntime"
BACKENDS = (RTX, TENSORRT, ONNXRUNTIME)
"""In the order in which they are tried: whether the first runs on GPUs that it does not list is the question."""

_MODULES: Mapping[str, tuple[str, ...]] = {
    RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    TENSORRT: ("tensorrt",),
    ONNXRUNTIME: ("onnxruntime",),
}
_LIMITS = {Precision.FP32: 5e-3, Precision.FP16: 0.01, Precision.BF16: 0.05}
"""Relative L2 norms: docs/proof.md's, and in fp32 what TF32 may cost."""
_PAIRS: Sequence[str] = ("wan-480p", "ltx-704p")


def check_backend(backend: str) -> None:
    """Refuse a back end that cannot run on the GPU here.

    Raises:
        Unavailable: it is not installed.
    """
    if gpu_architecture() is None:
        raise Unavailable("no CUDA driver or NVIDIA GPU was found here; run it on a machine with one.")
    if not any(find_spec(module) is not None for module in _MODULES[backend]):
        raise Unavailable(f"{backend} is not installed here; give its wheel with --wheels FOLDER.")
    if backend == ONNXRUNTIME:
        from flowblending.engine.backends.onnxruntime.run import cuda_available

        if not cuda_available():
            raise Unavailable("this ONNX Runtime has no CUDA provider; install onnxruntime-gpu in its place.")


def precisions(backend: str) -> tuple[Precision, ...]:
    """What is tried of a back end, 16 bits first."""
    if backend == ONNXRUNTIME:
        return Precision.FP16, Precision.FP32
    return Precision.FP16, Precision.BF16, Precision.FP32


def backends(backend: str, work: Work) -> Iterable[Item]:
    """The measurements of one of these stages; its first is one plan in 16 bits."""
    check_backend(backend)
    tried, names = precisions(backend), tuple(_PAIRS)
    if work.tiny:
        tried, names = tried[:1], names[:1]
    for precision in tried:
        for name in names:
            yield _item(backend, tiny(PAIRS[name]), precision, work.folder / "tiny")


def _item(backend: str, pair: Pair, precision: Precision, folder: Path) -> Item:
    def run(_: Results) -> dict[str, Any]:
        graphs = {each: _graph(pair, each, folder / pair.name) for each in (Precision.FP32, precision)}
        sizes = _sizes(graphs[precision])
        inputs = _inputs(graphs[precision], sizes)
        expected = _on_cpu(graphs[Precision.FP32], inputs, sizes)
        place = folder / f"{pair.name}-{backend}-{precision}"
        told, path = _engine_file(graphs[precision], sizes, backend, place)
        found, seconds = _on_gpu(graphs[precision], path, backend, inputs, sizes)
        difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if not difference <= _LIMITS[precision]:
            raise FlowBlendingError(
                f"it differs from the CPU by {difference:.1e}, and {_LIMITS[precision]} was expected; "
                "do not trust this back end here."
            )
        return {**told, "difference": difference, "seconds per call": seconds}

    return Item(key=f"{pair.family} {precision}", run=run)


def _graph(pair: Pair, precision: Precision, folder: Path) -> ExportedGraph:
    """The small model of a pair; exported once."""
    from flowblending.contracts.graph import SMALL
    from flowblending.export.families.ltx import transformer as ltx
    from flowblending.export.families.wan import transformer as wan
    from flowblending.export.graph.trace import export_graph

    out = folder / str(precision)
    if not (out / f"{SMALL}.json").exists():
        if not (folder / "small").exists():
            # Not hollow: of zeros nobody could tell a wrong kernel.
            _write_whole(pair, folder)
        if pair.family == "wan":
            loaded = wan.load_transformer(folder / "small", SMALL, 512, precision)
        else:
            loaded = ltx.load_transformer(
                folder / "small", SMALL, precision, text_length=256, factors=(8, 32), causal=True
            )
        export_graph(loaded, out, "")
    return ExportedGraph.read(out / f"{SMALL}.onnx")


def _write_whole(pair: Pair, folder: Path) -> None:
    from benchmarks.random_checkpoint import write_model

    write_model(pair.small, folder / "small", dtype=np.float32)


def _sizes(graph: ExportedGraph) -> dict[str, int]:
    known = {"batch": 1, "frames": 3, "height": 8, "width": 12}
    return {symbol: known[symbol] for symbol in graph.spec.symbols}


def _inputs(graph: ExportedGraph, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Noise; of a mask, ones; of what is one number, a half."""
    generator = np.random.default_rng(0)
    inputs = {}
    for spec in graph.spec.inputs:
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            inputs[spec.name] = np.ones(shape, np.int64)
        elif len(shape) == 1:
            inputs[spec.name] = np.full(shape, 500.0 if spec.name == "timestep" else 24.0, spec.dtype)
        else:
            inputs[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return inputs


def _on_cpu(graph: ExportedGraph, inputs: Mapping[str, npt.NDArray[Any]], sizes: Mapping[str, int]) -> npt.NDArray[Any]:
    from flowblending.engine.backends.onnxruntime.run import OrtEngine
    from flowblending.engine.backends.tensor import Tensor

    (output,) = graph.spec.outputs
    result = np.empty(output.resolve(sizes), output.dtype)
    engine = OrtEngine(graph.onnx, graph.spec)
    engine.run({name: Tensor.of(array) for name, array in {**inputs, output.name: result}.items()}, 0)
    engine.close()
    return result


def _engine_file(
    graph: ExportedGraph, sizes: Mapping[str, int], backend: str, folder: Path
) -> tuple[dict[str, Any], Path]:
    """What the back end runs, and what compiling it has told."""
    if backend == ONNXRUNTIME:
        return {}, graph.onnx
    from benchmarks.gpu.random_bundle import compile_here, told_of
    from flowblending.engine.backends.protocol import Range, ShapeProfile
    from flowblending.engine.backends.tensorrt.compile import PlanRequest

    request = PlanRequest(
        library=backend,
        onnx=graph.onnx.absolute(),
        spec=graph.spec,
        profiles=(ShapeProfile({name: Range.fixed(size) for name, size in sizes.items()}),),
        targets=(str(gpu_architecture()),),
        out=folder / f"{graph.spec.name}.plan",
    )
    return told_of(compile_here(request)), request.out


def _on_gpu(
    graph: ExportedGraph,
    path: Path,
    backend: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    sizes: Mapping[str, int],
) -> tuple[npt.NDArray[Any], float]:
    """What the GPU gives, and seconds of a call after the first."""
    from benchmarks.gpu.timing import seconds_per_call
    from flowblending.engine.backends.protocol import ScratchEngine
    from flowblending.engine.backends.registry import open_engine
    from flowblending.engine.backends.tensor import CUDA
    from flowblending.runtime.devices.arena import Arena
    from flowblending.runtime.devices.cuda import CudaDevice

    device, (output,) = CudaDevice(), graph.spec.outputs
    with device.current():
        engine = open_engine(backend=backend, path=path, spec=graph.spec, device=CUDA, stream=device.stream)
    arena = Arena(device)
    if isinstance(engine, ScratchEngine):
        engine.use_scratch(arena)
    tensors = {name: device.upload(array) for name, array in inputs.items()}
    tensors[output.name] = device.empty(output.resolve(sizes), np.dtype(output.dtype))
    try:
        seconds = seconds_per_call(device, engine, tensors, most=0.2)
        return device.download(tensors[output.name]), seconds["median"]
    finally:
        device.close()
        with device.current():
            engine.close()
        arena.release()
