"""What the tests of plans share: requests, stand-ins and what must be there for a test to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph
from flowblending.engine.backends.backend import PlanInfo
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.tensorrt.build import build_plan
from flowblending.engine.backends.tensorrt.compile import PlanRequest
from flowblending.engine.backends.tensorrt.library import Library, Messages, load
from tests.support.graphs import PROFILE

RTX: str = "tensorrt-rtx"


def installed(backend: str) -> bool:
    try:
        load(backend)
    except FlowBlendingError:
        return False
    return True


needs_rtx = pytest.mark.skipif(not installed(RTX), reason="TensorRT-RTX is not installed")
needs_gpu = pytest.mark.skipif(gpu_architecture() is None, reason="there is no GPU")
needs_no_gpu = pytest.mark.skipif(gpu_architecture() is not None, reason="there is a GPU")


def ignore(_: str) -> None:
    """Progress that nobody follows."""


def request(graph: ExportedGraph, out: Path, targets: tuple[str, ...] = ("sm89",)) -> PlanRequest:
    return PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(PROFILE,), targets=targets, out=out)


def build(graph: ExportedGraph, out: Path, *targets: str, progress: Callable[[str], None] = ignore) -> PlanInfo:
    return build_plan(
        library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(PROFILE,), targets=targets, out=out, progress=progress
    )


def stub(module: object, name: str = "tensorrt") -> Library:
    return Library(name=name, title="TensorRT", version="11.4.0", trt=module, logger=None, messages=Messages())
