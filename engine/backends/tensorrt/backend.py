"""The back ends TensorRT and TensorRT-RTX, whose engines are plans."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision
from flowblending.engine.backends.backend import Backend, Compiled

if TYPE_CHECKING:
    from flowblending.engine.backends.protocol import Engine, ShapeProfile

SUFFIX = ".plan"

REVISION = 2
"""Raised when this package asks the compiler for another plan of the same graph and sizes."""


def _version(library: str) -> str:
    from flowblending.engine.backends.tensorrt.library import load

    return load(library).version


def _targets(library: str, targets: Sequence[str]) -> tuple[str, ...]:
    from flowblending.engine.backends.tensorrt.targets import check_targets

    return check_targets(library, targets)


def _check_precisions(library: str, targets: Sequence[str], precisions: Mapping[str, Precision]) -> None:
    if Precision.FP8 in precisions.values():
        from flowblending.engine.backends.tensorrt.targets import check_fp8

        check_fp8(library, targets)


def _compile(
    library: str,
    graph: ExportedGraph,
    *,
    profiles: Sequence[ShapeProfile],
    targets: tuple[str, ...],
    weight_streaming: bool,
    folder: Path,
    progress: Callable[[str], None],
) -> Compiled:
    from flowblending.engine.backends.tensorrt.build import build_plan
    from flowblending.engine.backends.tensorrt.listing import LISTING

    plan = folder / f"{graph.spec.name}{SUFFIX}"
    info = build_plan(
        library=library,
        onnx=graph.onnx,
        spec=graph.spec,
        profiles=profiles,
        targets=targets,
        weight_streaming=weight_streaming,
        out=plan,
        progress=progress,
    )
    return Compiled(files=(plan,), plan=info, listing=LISTING)


def _open(
    library: str,
    path: Path,
    spec: GraphSpec,
    *,
    device: str,  # noqa: ARG001 - a plan is always on the GPU
    index: int,
    stream: int,  # noqa: ARG001 - it is told the stream in every call
    threads: int | None,  # noqa: ARG001 - likewise
    streamed: int,
) -> Engine:
    from flowblending.engine.backends.tensorrt.run import TrtEngine

    return TrtEngine(library, path, spec, index=index, streamed=streamed)


def _backend(name: str, title: str, help: str, triton: str | None) -> Backend:
    return Backend(
        name=name,
        title=title,
        help=help,
        precisions=tuple(Precision),
        base=Precision.BF16,
        needs_gpu=True,
        any_size=False,
        compiles=True,
        cuda_graphs=True,
        fp8_attention=True,
        weight_streaming=True,
        suffix=SUFFIX,
        revision=str(REVISION),
        triton=triton,
        version=functools.partial(_version, name),
        compile=functools.partial(_compile, name),
        open=functools.partial(_open, name),
        targets=functools.partial(_targets, name),
        check_precisions=functools.partial(_check_precisions, name),
        uses_gpu=lambda: True,
    )


TENSORRT = _backend("tensorrt", "TensorRT", "compiles on the GPU that will run it", "tensorrt")
TENSORRT_RTX = _backend("tensorrt-rtx", "TensorRT-RTX", "also ahead of time, without a GPU", None)
