"""What is found out once for a GPU is kept for the next process, and losing it costs nothing but time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flowblending.engine.backends.tensorrt import compile as trt_compile
from flowblending.engine.backends.tensorrt import run as trt_run
from flowblending.engine.backends.tensorrt.compile import compile_plan
from flowblending.engine.backends.tensorrt.kept import Kept
from flowblending.engine.backends.tensorrt.library import load
from flowblending.engine.backends.tensorrt.run import TrtEngine
from tests.engine.backends.tensorrt.test_run import Recorder
from tests.support.graphs import linear
from tests.support.plans import RTX, ignore, needs_rtx, request, stub


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/flowblending/tensorrt"


class Cache:
    """A runtime cache that grows with every engine, and refuses what it has not written."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content or b"kernels of a GPU"


class Config:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: Cache | None = None
        self.strategy = "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Rtx(Recorder):
    """An engine whose contexts are told how to compile."""

    def __init__(self) -> None:
        super().__init__([])
        self.configs: list[Config] = []

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, how: object) -> Recorder:
        assert isinstance(how, Config)
        self.configs.append(how)
        return self


def opened(monkeypatch: pytest.MonkeyPatch, plan: Path, *, version: str = "1.7") -> tuple[TrtEngine, Rtx]:
    engine = Rtx()
    module = SimpleNamespace(
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: engine),
        nptype=lambda name: np.dtype(name).type,
        IRuntimeCache=Cache,
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(LAZY="lazy", EAGER="eager"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )
    monkeypatch.setattr(trt_run, "load", lambda _: replace(stub(module, RTX), version=version))
    monkeypatch.setattr(trt_run, "gpu_architecture", lambda _: "sm89")
    return TrtEngine(RTX, plan, linear(plan.parent).spec), engine


def cache_of(engine: Rtx) -> Cache:
    (config,) = engine.configs
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert config.strategy == "user"
    assert config.cache is not None
    return config.cache


def test_compiled_kernels_are_there_for_the_next_process(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "large.plan"
    plan.write_bytes(b"plan")
    first, recorded = opened(monkeypatch, plan)
    assert cache_of(recorded).content == b""
    first.close()
    first.close()
    (file,) = folder.iterdir()
    assert file.read_bytes() == b"kernels of a GPU"
    second, recorded = opened(monkeypatch, plan)
    assert cache_of(recorded).content == b"kernels of a GPU"
    before = file.stat().st_mtime_ns
    second.close()
    assert file.stat().st_mtime_ns == before
    # Neither another version nor another plan finds them.
    for content, version in ((b"plan", "1.8"), (b"another plan", "1.7")):
        plan.write_bytes(content)
        other, recorded = opened(monkeypatch, plan, version=version)
        assert cache_of(recorded).content == b""
        other.close()
    assert len(list(folder.iterdir())) == 3


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_only(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "large.plan"
    plan.write_bytes(b"plan")
    opened(monkeypatch, plan)[0].close()
    (file,) = folder.iterdir()
    file.write_bytes(b"garbage")
    engine, recorded = opened(monkeypatch, plan)
    assert cache_of(recorded).content == b""
    engine.close()
    assert file.read_bytes() == b"kernels of a GPU"
    file.unlink()
    folder.rmdir()
    folder.write_text("a file where the folder would be")
    opened(monkeypatch, plan)[0].close()
    assert folder.read_text() == "a file where the folder would be"


@needs_rtx
def test_the_names_that_are_used_are_the_librarys() -> None:
    trt = load(RTX).trt
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy
    for owner, names in (
        (trt.ICudaEngine, ("create_runtime_config", "create_execution_context")),
        (trt.ICudaEngine, ("device_memory_size_v2", "get_device_memory_size_for_profile_v2")),
        (trt.IExecutionContext, ("set_device_memory", "set_optimization_profile_async")),
        (trt.ExecutionContextAllocationStrategy, ("USER_MANAGED",)),
        (trt.BuilderFlag, ("REQUIRE_USER_ALLOCATION",)),
        (trt.IRuntimeConfig, ("create_runtime_cache", "set_runtime_cache")),
        (trt.IRuntimeConfig, ("set_execution_context_allocation_strategy",)),
        (trt.IRuntimeCache, ("serialize", "deserialize")),
    ):
        assert all(hasattr(owner, name) for name in names)


@needs_rtx
def test_timings_are_kept_and_the_workspace_is_what_is_free(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the calls of TensorRT on TensorRT-RTX's builder, which has them too, though its timings are empty."""
    limits = []
    monkeypatch.setattr(trt_compile, "_ahead_of_time", lambda _: False)
    monkeypatch.setattr(trt_compile, "free_memory", lambda: limits.append(1 << 30) or limits[-1])  # type: ignore[func-returns-value]
    graph, out = linear(tmp_path), tmp_path / "large.plan"
    compile_plan(request(graph, out), ignore)
    (file,) = folder.iterdir()
    assert file.name == f"timings-{load(RTX).version}-sm89"
    kept = file.read_bytes()
    assert len(kept) > 0
    for content in (kept, b"garbage"):
        file.write_bytes(content)
        compile_plan(request(graph, out), ignore)
        assert out.stat().st_size > 0
    assert len(limits) == 3


def test_nothing_is_kept_for_a_homeless_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowblending.engine.backends.tensorrt.kept.cache_folder", lambda: None)
    kept = Kept("timings", "11.4.0", "sm89")
    kept.write(b"x")
    assert kept.read() == b""
