"""One door to all back ends; each library is imported only when its back end is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision
from flowblending.contracts.manifest import Backend
from flowblending.engine.backends.protocol import Engine, ShapeProfile
from flowblending.engine.backends.tensor import CUDA

if TYPE_CHECKING:
    from flowblending.engine.backends.tensorrt.compile import PlanInfo

ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What became of a graph.

    Attributes:
        files: the engine's own file first.
        plan: what the compiler stated; None for ONNX Runtime, where the graph is the engine.
    """

    files: tuple[Path, ...]
    plan: PlanInfo | None


def backend_version(backend: Backend) -> str:
    """The installed version of a back end's library.

    Raises:
        FlowBlendingError: it is not installed; the message names the extra to install.
    """
    if backend == ONNXRUNTIME:
        from flowblending.engine.backends.onnxruntime import installed_version

        return installed_version()
    from flowblending.engine.backends.tensorrt.library import load

    return load(backend).version


def check_targets(backend: Backend, targets: Sequence[str]) -> tuple[str, ...]:
    """Refuse GPU targets that a back end cannot compile for, before any work is done.

    Returns:
        What it will compile for: the targets given, else the GPU present; nothing where any device will do.

    Raises:
        UsageError: the back end takes no targets, or does not know one, or needs one because there is no GPU.
        FlowBlendingError: its library is not installed.
    """
    if backend == ONNXRUNTIME:
        if targets:
            raise UsageError(
                f"--target {','.join(targets)} was given, but onnxruntime compiles for no GPU in particular; "
                "leave it out."
            )
        return ()
    from flowblending.engine.backends.tensorrt.targets import check_targets as check

    return check(backend, targets)


def check_precisions(backend: Backend, targets: Sequence[str], precisions: Mapping[str, Precision]) -> None:
    """Refuse what some target cannot compute in.

    Args:
        targets: as `check_targets` gives them.
        precisions: of every component.

    Raises:
        UsageError: fp8 for a GPU without it; names those that have it.
    """
    if backend != ONNXRUNTIME and Precision.FP8 in precisions.values():
        from flowblending.engine.backends.tensorrt.targets import check_fp8

        check_fp8(backend, targets)


def compile_engine(
    *,
    backend: Backend,
    graph: ExportedGraph,
    profiles: Sequence[ShapeProfile],
    targets: tuple[str, ...],
    folder: Path,
    progress: Callable[[str], None],
) -> Compiled:
    """Compile an exported graph into ``folder``.

    For ONNX Runtime the graph is the engine: its files are moved.
    """
    if backend == ONNXRUNTIME:
        return Compiled(files=move_graph(graph, folder), plan=None)
    from flowblending.engine.backends.tensorrt.build import build_plan

    plan = folder / f"{graph.spec.name}.plan"
    info = build_plan(
        library=backend,
        onnx=graph.onnx,
        spec=graph.spec,
        profiles=profiles,
        targets=targets,
        out=plan,
        progress=progress,
    )
    return Compiled(files=(plan,), plan=info)


def move_graph(graph: ExportedGraph, folder: Path) -> tuple[Path, ...]:
    """An exported graph as ONNX Runtime's engine: its files, moved into ``folder``."""
    return tuple(Path(shutil.move(path, folder / path.name)) for path in (graph.onnx, graph.data))


def open_engine(
    *, backend: Backend, path: Path, spec: GraphSpec, device: str, stream: int = 0, threads: int | None = None
) -> Engine:
    """Open a compiled engine.

    Args:
        path: the engine's own file in the bundle.
        device: ``cpu`` or ``cuda``; TensorRT engines are always on ``cuda``.
        stream: handle of the CUDA stream that the engine will be run on.
        threads: of ONNX Runtime on the CPU.

    Raises:
        FlowBlendingError: the library or the GPU is missing, the device is not one of the back end's, or the
            file cannot be loaded.
    """
    if backend == ONNXRUNTIME:
        from flowblending.engine.backends.onnxruntime import OrtEngine

        return OrtEngine(path, spec, device=device, stream=stream, threads=threads)
    if device != CUDA:
        raise FlowBlendingError(
            f"Engine {spec.name} is a plan of {backend}, which runs on an NVIDIA GPU and not on the device {device}; "
            "use --device cuda, or build a bundle with --backend onnxruntime."
        )
    from flowblending.engine.backends.tensorrt.run import TrtEngine

    return TrtEngine(backend, path, spec)
