from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.registry import backend_version, check_targets, compile_engine, open_engine
from flowblending.engine.backends.tensor import CPU, CUDA, Tensor
from tests.support.graphs import PROFILE, linear, linear_oracle

RTX: str = "tensorrt-rtx"


def test_onnxruntime_runs_the_exported_graph_itself(tmp_path: Path) -> None:
    work, folder = tmp_path / "work", tmp_path / "bundle"
    work.mkdir()
    folder.mkdir()
    graph = linear(work)
    compiled = compile_engine(
        backend="onnxruntime", graph=graph, profiles=(PROFILE,), targets=(), folder=folder, progress=lambda _: None
    )
    files = compiled.files
    assert compiled.plan is None
    assert files == (folder / "large.onnx", folder / "large.onnx.data")
    assert not list(work.iterdir())
    engine = open_engine(backend="onnxruntime", path=files[0], spec=graph.spec, device=CPU)
    x = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(1, 3, 64)
    y = np.empty_like(x)
    engine.run({"x": Tensor.of(x), "y": Tensor.of(y)}, 0)
    np.testing.assert_allclose(y, linear_oracle(folder, "large", x), rtol=1e-5, atol=1e-7)
    assert check_targets("onnxruntime", ()) == ()


def test_onnxruntime_takes_no_targets() -> None:
    with pytest.raises(UsageError, match="--target sm89,sm120 was given, but onnxruntime compiles for no GPU"):
        check_targets("onnxruntime", ("sm89", "sm120"))


def test_tensorrt_rtx_compiles_a_plan_ahead_of_time(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    graph, phases = linear(tmp_path), list[str]()
    targets = check_targets(RTX, ("sm89", "sm120"))
    compiled = compile_engine(
        backend=RTX, graph=graph, profiles=(PROFILE,), targets=targets, folder=tmp_path, progress=phases.append
    )
    (plan,) = compiled.files
    assert plan == tmp_path / "large.plan"
    assert compiled.plan is not None
    assert compiled.plan.bytes == plan.stat().st_size
    assert b"sm120" in plan.read_bytes()
    assert "compiling" in phases
    assert backend_version(RTX).startswith("1.7.")
    if gpu_architecture() is None:
        with pytest.raises(FlowBlendingError, match="needs an NVIDIA GPU"):
            open_engine(backend=RTX, path=plan, spec=graph.spec, device=CUDA)


@pytest.mark.parametrize("backend", [RTX, "tensorrt"])
def test_plans_do_not_run_on_the_cpu(tmp_path: Path, backend: str) -> None:
    with pytest.raises(FlowBlendingError, match=rf"large is a plan of {backend}, .* not on the device cpu"):
        open_engine(backend=backend, path=tmp_path / "large.plan", spec=linear(tmp_path).spec, device=CPU)
