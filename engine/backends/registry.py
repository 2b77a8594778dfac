"""Every back end, and one door to all of them; each library is imported only when its back end is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision
from flowblending.engine.backends.backend import Backend, Compiled
from flowblending.engine.backends.onnxruntime.backend import ONNXRUNTIME
from flowblending.engine.backends.tensorrt.backend import TENSORRT, TENSORRT_RTX
from flowblending.system.registry import Registry

if TYPE_CHECKING:
    from flowblending.contracts.manifest import Manifest
    from flowblending.engine.backends.protocol import Engine, ShapeProfile

CPU = "cpu"  # as in `flowblending.engine.backends.tensor`, which loads numpy

BACKENDS: Registry[Backend] = Registry("back end", "flowblending.backends", (TENSORRT, TENSORRT_RTX, ONNXRUNTIME))


def backend_version(backend: str) -> str:
    """The installed version of a back end's library.

    Raises:
        FlowBlendingError: it is not installed; the message names the extra to install.
    """
    return BACKENDS.get(backend).version()


def check_targets(backend: str, targets: Sequence[str]) -> tuple[str, ...]:
    """Refuse GPU targets that a back end cannot compile for, before any work is done.

    Returns:
        What it will compile for: the targets given, else the GPU present; nothing where any device will do.

    Raises:
        UsageError: the back end takes no targets, or does not know one, or needs one because there is no GPU.
        FlowBlendingError: its library is not installed.
    """
    check = BACKENDS.get(backend).targets
    if check is not None:
        return check(targets)
    if targets:
        raise UsageError(
            f"--target {','.join(targets)} was given, but {backend} compiles for no GPU in particular; leave it out."
        )
    return ()


def check_weight_streaming(backend: str) -> None:
    """Refuse a back end whose engines have all their weights on their device.

    Raises:
        UsageError: names those that can leave some in the host's memory.
    """
    if not BACKENDS.get(backend).weight_streaming:
        able = [name for name in BACKENDS.built_in if BACKENDS.get(name).weight_streaming]
        raise UsageError(
            f"--weight-streaming was given, but {backend} has all weights where it computes; leave it out, or use "
            f"--backend {' or '.join(able)}."
        )


def check_precisions(backend: str, targets: Sequence[str], precisions: Mapping[str, Precision]) -> None:
    """Refuse what some target cannot compute in.

    Args:
        targets: as `check_targets` gives them.
        precisions: of every component.

    Raises:
        UsageError: fp8 for a GPU without it; names those that have it.
    """
    check = BACKENDS.get(backend).check_precisions
    if check is not None:
        check(targets, precisions)


def gpu_components(manifest: Manifest) -> list[str]:
    """The components of a bundle whose engines run on NVIDIA GPUs only.

    Raises:
        UsageError: a back end is not known here.
    """
    return [name for name, each in manifest.components.items() if BACKENDS.get(each.backend).needs_gpu]


def can_use_gpu(backends: Iterable[str]) -> bool:
    """Whether what is installed can run the engines of all these back ends on a GPU."""
    return all(each.needs_gpu or each.uses_gpu() for each in map(BACKENDS.get, sorted(set(backends))))


def compile_engine(
    *,
    backend: str,
    graph: ExportedGraph,
    profiles: Sequence[ShapeProfile],
    targets: tuple[str, ...],
    weight_streaming: bool = False,
    folder: Path,
    progress: Callable[[str], None],
) -> Compiled:
    """Compile an exported graph into ``folder``; see `Compile`."""
    chosen = BACKENDS.get(backend)
    compiled = chosen.compile(
        graph,
        profiles=profiles,
        targets=targets,
        weight_streaming=weight_streaming,
        folder=folder,
        progress=progress,
    )
    if chosen.compiles == (compiled.plan is None):
        raise ValueError(f"{backend} says that it {'compiles' if chosen.compiles else 'does not compile'}")
    return compiled


def open_engine(
    *,
    backend: str,
    path: Path,
    spec: GraphSpec,
    device: str,
    index: int = 0,
    stream: int = 0,
    threads: int | None = None,
    streamed: int = 0,
) -> Engine:
    """Open a compiled engine.

    Args:
        path: the engine's own file in the bundle.
        device: ``cpu`` or ``cuda``; engines of TensorRT are always on ``cuda``.
        index: which of the GPUs that CUDA shows.
        stream: handle of the CUDA stream that the engine will be run on.
        threads: on the CPU.
        streamed: bytes of weights to leave in the host's memory, and stream from there in every call.

    Raises:
        FlowBlendingError: the back end, its library or the GPU is missing, the device is not one of the back end's,
            or the file cannot be loaded.
    """
    chosen = BACKENDS.get(backend)
    if chosen.needs_gpu and device == CPU:
        raise FlowBlendingError(
            f"Engine {spec.name} is a plan of {backend}, which runs on an NVIDIA GPU and not on the device {device}; "
            "use --device cuda, or build a bundle with --backend onnxruntime."
        )
    return chosen.open(path, spec, device=device, index=index, stream=stream, threads=threads, streamed=streamed)
