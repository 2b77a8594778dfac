"""Running plans: on a GPU where there is one, else against a stand-in that remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensor import CUDA, Tensor
from flowblending.engine.backends.tensorrt import run as trt
from flowblending.engine.backends.tensorrt.build import build_plan
from flowblending.engine.backends.tensorrt.compile import compile_plan
from flowblending.engine.backends.tensorrt.library import Messages
from flowblending.engine.backends.tensorrt.run import TrtEngine, choose_profile
from tests.support.graphs import PROFILE, FloatArray, attention, attention_oracle, linear, linear_oracle
from tests.support.plans import RTX, ignore, installed, needs_gpu, needs_no_gpu, needs_rtx, request, stub


@needs_no_gpu
@needs_rtx
def test_running_needs_a_gpu(tmp_path: Path) -> None:
    graph, out = linear(tmp_path), tmp_path / "large.plan"
    compile_plan(request(graph, out), ignore)
    with pytest.raises(FlowBlendingError, match="needs an NVIDIA GPU, and no CUDA driver was found; install"):
        TrtEngine(RTX, out, graph.spec)


@needs_rtx
def test_plans_that_cannot_be_loaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "gpu_architecture", lambda _: "sm89")
    graph, out = linear(tmp_path), tmp_path / "large.plan"
    compile_plan(request(graph, out), ignore)
    plan = out.read_bytes()
    for damaged in (plan[:-1], b"garbage" * 999, plan[:40]):
        out.write_bytes(damaged)
        with pytest.raises(FlowBlendingError, match=r"cannot load .*large\.plan \(.*; if it is damaged, .* build"):
            TrtEngine(RTX, out, graph.spec)
    out.write_bytes(b"")
    with pytest.raises(FlowBlendingError, match=r"large\.plan is empty; build the bundle again\.$"):
        TrtEngine(RTX, out, graph.spec)
    out.unlink()
    with pytest.raises(FlowBlendingError, match=r"large\.plan cannot be read \(No such file .*; build the bundle"):
        TrtEngine(RTX, out, graph.spec)


class Recorder:
    """Stands for an execution context and an engine: remembers what it was told.

    It knows the sizes of `PROFILE` and, in a second optimization profile, of 32 to 64 tokens.

    Args:
        calls: that it adds to.
    """

    num_optimization_profiles = 2

    def __init__(self, calls: list[tuple[object, ...]]) -> None:
        self.calls = calls
        self.num_io_tensors = 2
        self.works = True
        self.made: list[Recorder] = []
        self.active_optimization_profile = 0

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_dtype(self, _: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, _name: str, profile: int) -> list[tuple[int, int, int]]:
        return [[(1, 4, 64), (1, 8, 64), (2, 16, 64)], [(1, 32, 64), (1, 32, 64), (2, 64, 64)]][profile]

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.calls.append(("profile", index, stream))
        self.active_optimization_profile = index
        return True

    def create_execution_context(self, how: object) -> Recorder:
        assert how == "user"
        self.made.append(Recorder(self.calls))
        return self.made[-1]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return (512, 1024)[index]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.calls.append(("scratch", memory, size))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return (4 <= shape[1] <= 16) if self.active_optimization_profile == 0 else (32 <= shape[1] <= 64)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(("address", name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("execute", stream))
        return self.works

    def taken(self) -> list[tuple[object, ...]]:
        calls = [*self.calls]
        self.calls.clear()
        return calls


class Arena:
    """Scratch memory at addresses that say how often it was replaced."""

    def __init__(self) -> None:
        self.tensor = Tensor(address=0x100, shape=(0,), dtype=np.dtype(np.uint8), device=CUDA, owner=None)
        self.short = 0

    def at_least(self, size: int) -> Tensor:
        if self.tensor.nbytes < size - self.short:
            self.tensor = replace(self.tensor, address=self.tensor.address + 0x100, shape=(size - self.short,))
        return self.tensor


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An engine, and what stands for TensorRT behind it."""

    engine: TrtEngine
    context: Recorder
    scratch: Arena
    messages: Messages


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    context = Recorder([])
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: context)
    forms = SimpleNamespace(JSON="json")
    module = SimpleNamespace(
        Runtime=lambda _: runtime,
        nptype=lambda name: np.dtype(name).type,
        LayerInformationFormat=forms,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )
    library = stub(module)
    monkeypatch.setattr(trt, "load", lambda _: library)
    monkeypatch.setattr(trt, "gpu_architecture", lambda _: "sm89")
    path = tmp_path / "large.plan"
    path.write_bytes(b"plan")
    engine, scratch = TrtEngine("tensorrt", path, linear(tmp_path).spec), Arena()
    engine.use_scratch(scratch)
    return Recorded(engine=engine, context=context, scratch=scratch, messages=library.messages)


def at(x: int, y: int, tokens: int = 8) -> dict[str, Tensor]:
    shape, dtype = (1, tokens, 64), np.dtype(np.float32)
    addresses = {"x": x, "y": y}
    return {
        name: Tensor(address=address, shape=shape, dtype=dtype, device=CUDA, owner=None)
        for name, address in addresses.items()
    }


def test_only_changes_are_told_and_nothing_else_is_called(recorded: Recorded) -> None:
    engine, context = recorded.engine, recorded.context
    engine.run(at(0x1000, 0x2000), 7)
    assert context.taken() == [
        ("shape", "x", (1, 8, 64)),
        ("address", "x", 0x1000),
        ("address", "y", 0x2000),
        ("scratch", 0x200, 512),
        ("execute", 7),
    ]
    engine.run(at(0x1000, 0x2000), 7)
    assert context.taken() == [("execute", 7)]
    engine.run(at(0x3000, 0x2000), 8)
    assert context.taken() == [("address", "x", 0x3000), ("execute", 8)]
    engine.run(at(0x3000, 0x2000, tokens=4), 8)
    assert context.taken() == [("shape", "x", (1, 4, 64)), ("execute", 8)]


def test_every_profile_has_a_context_of_its_own(recorded: Recorded) -> None:
    """No profile is changed from call to call, and each context is told what changed since its own last call."""
    engine, context = recorded.engine, recorded.context
    engine.run(at(0x1000, 0x2000), 7)
    assert context.taken()[-2:] == [("scratch", 0x200, 512), ("execute", 7)]
    engine.run(at(0x1000, 0x2000, tokens=40), 7)
    assert context.taken() == [
        ("profile", 1, 7),
        ("shape", "x", (1, 40, 64)),
        ("address", "x", 0x1000),
        ("address", "y", 0x2000),
        ("scratch", 0x300, 1024),
        ("execute", 7),
    ]
    # The memory is another since the other profile took more.
    engine.run(at(0x1000, 0x2000), 7)
    assert context.taken() == [("scratch", 0x300, 1024), ("execute", 7)]
    engine.run(at(0x1000, 0x2000, tokens=40), 7)
    assert context.taken() == [("execute", 7)]
    engine.run(at(0x1000, 0x2000, tokens=4), 7)
    assert context.taken() == [("shape", "x", (1, 4, 64)), ("execute", 7)]
    assert len(context.made) == 2


def test_scratch_memory_is_there_before_the_first_call(recorded: Recorded) -> None:
    engine, scratch = recorded.engine, recorded.scratch
    engine.reserve({"x": (1, 40, 64), "y": (1, 40, 64)})
    assert scratch.tensor.nbytes == 1024
    with pytest.raises(FlowBlendingError, match=r"x of engine large has shape \[1, 17, 64\]"):
        engine.reserve({"x": (1, 17, 64)})
    scratch.short, scratch.tensor = 1, replace(scratch.tensor, shape=(0,))
    calls: list[Callable[[], None]] = [
        lambda: engine.reserve({"x": (1, 8, 64)}),
        lambda: engine.run(at(0x1000, 0x2000), 0),
    ]
    for call in calls:
        with pytest.raises(FlowBlendingError, match="large was given 511 bytes of scratch memory, but it takes 512"):
            call()
    assert not any(call[0] in ("scratch", "execute") for call in recorded.context.taken())
    engine.close()
    with pytest.raises(FlowBlendingError, match="large has been closed"):
        engine.reserve({"x": (1, 8, 64)})


def test_the_tightest_profile_serves_a_call() -> None:
    wide, one, other = ({"x": ((low, 1), (high, 8))} for low, high in ((1, 100), (50, 50), (80, 90)))
    for tokens, index in ((50, 1), (51, 0), (85, 2), (100, 0)):
        assert choose_profile([wide, one, other], {"x": (tokens, 8)}, "large") == index
    with pytest.raises(
        FlowBlendingError, match=r"x of engine large has shape \[70, 8\], .* \[50, 1\] to \[50, 8\] or "
    ):
        choose_profile([one, other], {"x": (70, 8)}, "large")
    # Each input fits somewhere, but not in the same profile.
    small, large = ({"x": ((size,), (size,)), "y": ((size,), (size,))} for size in (1, 2))
    with pytest.raises(FlowBlendingError, match=r"Input x of engine vae has shape \[1\], but it was compiled for"):
        choose_profile([small, large], {"x": (1,), "y": (2,)}, "vae")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ('{"Layers": ["a", "b"]}', ("a", "b")),
        ('{"Layers": [{"Name": "a", "LayerType": "gemm"}]}', ("a",)),
        ("", ()),
        ("a", ()),
    ],
)
def test_what_an_engine_tells_of_itself(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, told: str, expected: tuple[str, ...]
) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda form: told if form == "json" else "")
    monkeypatch.setattr(Recorder, "create_engine_inspector", lambda _: inspector, raising=False)
    monkeypatch.setattr(Recorder, "device_memory_size_v2", 4096, raising=False)
    assert recorded.engine.device_bytes() == 4096
    assert recorded.engine.layers() == expected


def test_what_an_engine_refuses_while_running(recorded: Recorded) -> None:
    engine, context = recorded.engine, recorded.context
    with pytest.raises(
        FlowBlendingError, match=r"x of engine large has shape \[1, 17, 64\], but .* \[1, 4, 64\] to \[2"
    ):
        engine.run(at(0x1000, 0x2000, tokens=17), 0)
    context.taken()
    engine.run(at(0x1000, 0x2000), 0)
    assert ("shape", "x", (1, 8, 64)) in context.taken()
    with pytest.raises(FlowBlendingError, match=r"y of engine large lies at address 0x2040, .* multiples of 256"):
        engine.run(at(0x1000, 0x2040), 0)
    with pytest.raises(FlowBlendingError, match="on the device cpu, but cuda was expected"):
        engine.run(at(0x1000, 0x2000) | {"y": Tensor.of(np.zeros((1, 8, 64), np.float32))}, 0)
    with pytest.raises(FlowBlendingError, match=r"y of engine large is float16 .* but float32"):
        engine.run(at(0x1000, 0x2000) | {"y": replace(at(0, 0)["y"], dtype=np.dtype(np.float16))}, 0)
    context.made[0].works = False
    recorded.messages.add(1, "an old error")
    with pytest.raises(FlowBlendingError, match=r"TensorRT 11.4.0 failed to run large \(it gave no reason\); check"):
        engine.run(at(0x1000, 0x2000), 0)
    engine.close()
    engine.close()
    with pytest.raises(FlowBlendingError, match="large has been closed"):
        engine.run(at(0x1000, 0x2000), 0)


@pytest.mark.usefixtures("recorded")
def test_a_plan_of_another_graph_is_refused(tmp_path: Path) -> None:
    spec = attention(tmp_path, Precision.FP16).spec
    with pytest.raises(FlowBlendingError, match=r"has the tensors \{'x': 'float32', .* but \{'q': .* build the bundle"):
        TrtEngine("tensorrt", tmp_path / "large.plan", spec)


def upload(array: npt.NDArray[Any]) -> Tensor:
    from cuda.bindings import runtime

    status, address = runtime.cudaMalloc(array.nbytes)
    assert status == 0
    (status,) = runtime.cudaMemcpy(
        address, array.ctypes.data, array.nbytes, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    )
    assert status == 0
    return Tensor(address=int(address), shape=array.shape, dtype=array.dtype, device=CUDA, owner=None)


def download(tensor: Tensor) -> FloatArray:
    from cuda.bindings import runtime

    array = np.empty(tensor.shape, np.float32)
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    (status,) = runtime.cudaMemcpy(array.ctypes.data, tensor.address, array.nbytes, kind)
    assert status == 0
    return array


def run_on_the_gpu(engine: TrtEngine, **inputs: FloatArray) -> FloatArray:
    """Synchronises by the copy on the default stream. Memory is left to the end of the process."""
    y = upload(np.full_like(next(iter(inputs.values())), np.nan))
    scratch = upload(np.zeros(engine.device_bytes(), np.uint8))
    engine.use_scratch(SimpleNamespace(at_least=lambda _: scratch))
    engine.run({name: upload(array) for name, array in inputs.items()} | {"y": y}, 0)
    return download(y)


@pytest.fixture(params=["tensorrt", RTX])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    return name


@needs_gpu
@pytest.mark.slow
def test_two_plans_take_turns_on_a_gpu(tmp_path: Path, backend: str) -> None:
    engines = {}
    for seed, name in enumerate(("large", "small")):
        graph, out = linear(tmp_path, name, seed=seed), tmp_path / f"{name}.plan"
        build_plan(
            library=backend, onnx=graph.onnx, spec=graph.spec, profiles=(PROFILE,), targets=(), out=out, progress=ignore
        )
        engines[name] = TrtEngine(backend, out, graph.spec)
    generator = np.random.default_rng(0)
    for name, shape in (("large", (1, 8, 64)), ("small", (1, 8, 64)), ("large", (2, 16, 64)), ("small", (1, 4, 64))):
        x = generator.standard_normal(shape, np.float32)
        expected = linear_oracle(tmp_path, name, x)
        # TensorRT multiplies fp32 matrices in TF32.
        assert np.linalg.norm(run_on_the_gpu(engines[name], x=x) - expected) < 1e-2 * np.linalg.norm(expected)
    with pytest.raises(FlowBlendingError, match=r"\[1, 17, 64\], but it was compiled for \[1, 4, 64\] to \[2, 16"):
        run_on_the_gpu(engines["large"], x=np.zeros((1, 17, 64), np.float32))
    for engine in engines.values():
        engine.close()


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 5e-3), (Precision.FP16, 5e-3), (Precision.BF16, 2e-2)]
)
def test_attention_on_a_gpu(tmp_path: Path, backend: str, precision: Precision, tolerance: float) -> None:
    graph, out = attention(tmp_path, precision), tmp_path / "large.plan"
    build_plan(
        library=backend, onnx=graph.onnx, spec=graph.spec, profiles=(PROFILE,), targets=(), out=out, progress=ignore
    )
    generator = np.random.default_rng(0)
    q, k, v = (generator.standard_normal((2, 2, 11, 64), np.float32) for _ in range(3))
    expected = attention_oracle(q, k, v)
    difference = run_on_the_gpu(TrtEngine(backend, out, graph.spec), q=q, k=k, v=v) - expected
    assert np.linalg.norm(difference) < tolerance * np.linalg.norm(expected)


@needs_gpu
@pytest.mark.slow
def test_every_profile_of_a_plan_on_a_gpu(tmp_path: Path, backend: str) -> None:
    graph, out = linear(tmp_path), tmp_path / "large.plan"
    wide = ShapeProfile({"batch": Range(min=1, opt=1, max=2), "tokens": Range(min=32, opt=32, max=64)})
    build_plan(
        library=backend,
        onnx=graph.onnx,
        spec=graph.spec,
        profiles=(PROFILE, wide),
        targets=(),
        out=out,
        progress=ignore,
    )
    engine, generator = TrtEngine(backend, out, graph.spec), np.random.default_rng(0)
    for batch, tokens in ((1, 8), (2, 64), (2, 16), (1, 32), (1, 32)):
        x = generator.standard_normal((batch, tokens, 64), np.float32)
        expected = linear_oracle(tmp_path, "large", x)
        assert np.linalg.norm(run_on_the_gpu(engine, x=x) - expected) < 1e-2 * np.linalg.norm(expected)
    with pytest.raises(
        FlowBlendingError, match=r"\[1, 17, 64\], but it was compiled for \[1, 4, 64\] to \[2, 16, 64\] or"
    ):
        run_on_the_gpu(engine, x=np.zeros((1, 17, 64), np.float32))
    engine.close()
