"""The back end ONNX Runtime, whose engine is the exported graph itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision
from flowblending.engine.backends.backend import Backend, Compiled

if TYPE_CHECKING:
    from flowblending.engine.backends.protocol import Engine, ShapeProfile

NAME = "onnxruntime"


def move_graph(graph: ExportedGraph, folder: Path) -> tuple[Path, ...]:
    """An exported graph as ONNX Runtime's engine: its files, moved into ``folder``."""
    return tuple(Path(shutil.move(path, folder / path.name)) for path in (graph.onnx, graph.data))


def _version() -> str:
    from flowblending.engine.backends.onnxruntime.run import installed_version

    return installed_version()


def _compile(
    graph: ExportedGraph,
    *,
    profiles: Sequence[ShapeProfile],  # noqa: ARG001 - it takes any size
    targets: tuple[str, ...],  # noqa: ARG001 - there are none
    weight_streaming: bool,  # noqa: ARG001 - likewise
    folder: Path,
    progress: Callable[[str], None],  # noqa: ARG001 - it takes no time
) -> Compiled:
    return Compiled(files=move_graph(graph, folder))


def _open(
    path: Path,
    spec: GraphSpec,
    *,
    device: str,
    index: int,
    stream: int,
    threads: int | None,
    streamed: int,  # noqa: ARG001 - it has all of them on the device
) -> Engine:
    from flowblending.engine.backends.onnxruntime.run import OrtEngine

    return OrtEngine(path, spec, device=device, index=index, stream=stream, threads=threads)


def _uses_gpu() -> bool:
    from flowblending.engine.backends.onnxruntime.run import cuda_available

    return cuda_available()


ONNXRUNTIME = Backend(
    name=NAME,
    title="ONNX Runtime",
    help="runs on CPUs and GPUs",
    precisions=(Precision.FP32, Precision.FP16_MIXED, Precision.FP16, Precision.FP8),
    base=Precision.FP32,
    on_gpu=Precision.FP16_MIXED,
    needs_gpu=False,
    any_size=True,
    compiles=False,
    suffix=".onnx",
    version=_version,
    compile=_compile,
    open=_open,
    uses_gpu=_uses_gpu,
)
