"""Plans: compiled by the real TensorRT-RTX, which needs no GPU; run only where there is one."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine import trt, trt_library, trt_targets
from flowblending.engine.gpu import gpu_architecture
from flowblending.engine.manifest import Backend
from flowblending.engine.protocol import Range, ShapeProfile
from flowblending.engine.tensor import CUDA, Tensor
from flowblending.engine.trt import TrtEngine
from flowblending.engine.trt_build import build_plan
from flowblending.engine.trt_compile import PlanInfo, PlanRequest, compile_plan
from flowblending.engine.trt_library import Library, Messages, load
from flowblending.engine.trt_targets import check_targets
from flowblending.export.spec import ExportedGraph, Precision, TensorSpec
from tests.graphs import PROFILE, FloatArray, attention, attention_oracle, linear, linear_oracle

RTX: Backend = "tensorrt-rtx"


def installed(backend: Backend) -> bool:
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
    return PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profile=PROFILE, targets=targets, out=out)


def build(graph: ExportedGraph, out: Path, *targets: str, progress: Callable[[str], None] = ignore) -> PlanInfo:
    return build_plan(
        library=RTX, onnx=graph.onnx, spec=graph.spec, profile=PROFILE, targets=targets, out=out, progress=progress
    )


# Compiling


@needs_rtx
def test_one_plan_for_several_gpus(tmp_path: Path) -> None:
    graph, out, phases = linear(tmp_path), tmp_path / "large.plan", list[str]()
    out.write_bytes(b"an older plan")
    info = build(graph, out, "sm89", "sm120", progress=phases.append)
    plan = out.read_bytes()
    assert info.bytes == len(plan) > 10_000
    assert info.weights_bytes is not None
    assert info.weights_bytes >= graph.data.stat().st_size
    assert info.scratch_bytes is not None
    assert info.layers >= 3
    assert info.version == load(RTX).version
    assert phases.index("reading the graph") < phases.index("compiling") < phases.index("Building engine")
    # The compiler itself recognises its format and names what it compiled for.
    library = load(RTX)
    _, malformed = library.trt.Runtime(library.logger).get_engine_validity(plan)
    assert malformed == 0
    assert (b"sm89" in plan, b"sm120" in plan, b"sm86" in plan) == (True, True, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data", "large.plan"]


@needs_rtx
@pytest.mark.parametrize("precision", list(Precision))
def test_16_bit_attention_is_fused_and_fp32_attention_compiles(tmp_path: Path, precision: Precision) -> None:
    out = tmp_path / "large.plan"
    compile_plan(request(attention(tmp_path, precision), out, ("sm89", "sm120")), ignore)
    # Kernels lie in the plan as readable source: this is the name of the fused one.
    assert (b"_gemm_mha_v2" in out.read_bytes()) == (precision != Precision.FP32)


@needs_rtx
def test_attention_that_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    graph = attention(tmp_path, Precision.FP16, heads=1, size=384)
    with pytest.raises(FlowBlendingError, match=r"no fused kernel for the fp16 attention of large on sm89; .*=fp32"):
        compile_plan(request(graph, tmp_path / "large.plan"), ignore)


@needs_rtx
def test_the_compilers_own_words_are_in_the_message(tmp_path: Path) -> None:
    out = tmp_path / "large.plan"
    with pytest.raises(FlowBlendingError, match=r"cannot compile large for sm75 \(.*FP32 GEMM is not supp.*\); try"):
        build(linear(tmp_path), out, "sm75")
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ({"batch": Range.fixed(1)}, "gives no size for tokens of input x of large"),
        ({"batch": Range.fixed(1), "tokens": Range(min=8, opt=4, max=16)}, r"\[1, 8, 64\], \[1, 4, 64\] and"),
        ({"batch": Range.fixed(1), "tokens": Range(min=4, opt=8, max=7)}, r"\[1, 8, 64\] and \[1, 7, 64\]"),
        ({"batch": Range.fixed(0), "tokens": Range.fixed(4)}, r"but 0 < smallest"),
    ],
)
def test_an_impossible_profile_is_refused(tmp_path: Path, symbols: dict[str, Range], message: str) -> None:
    impossible = replace(request(linear(tmp_path), tmp_path / "p"), profile=ShapeProfile(symbols))
    with pytest.raises(FlowBlendingError, match=message):
        compile_plan(impossible, ignore)


@needs_rtx
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorSpec(name="x", dtype="float32", shape=("batch", "tokens", 32)), r"\[-1, -1, 64\], but .*\[-1, -1, 32\]"),
        (TensorSpec(name="x", dtype="int64", shape=("batch", "tokens", 64)), r"x float32 .*, but .* x int64"),
        (TensorSpec(name="latents", dtype="float32", shape=("batch", "tokens", 64)), r"has x .*, but .* has latents"),
    ],
)
def test_a_graph_that_is_not_as_specified_is_refused(tmp_path: Path, tensor: TensorSpec, message: str) -> None:
    graph = linear(tmp_path)
    other = replace(request(graph, tmp_path / "p"), spec=replace(graph.spec, inputs=(tensor,)))
    with pytest.raises(FlowBlendingError, match=message):
        compile_plan(other, ignore)


@needs_rtx
def test_damaged_graphs_and_weights_are_named(tmp_path: Path) -> None:
    graph = linear(tmp_path)
    bare = request(graph, tmp_path / "p")
    os.truncate(graph.data, 100)
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data is 100 bytes long"):
        compile_plan(bare, ignore)
    graph.data.unlink()
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data of large\.onnx cannot be read"):
        compile_plan(bare, ignore)
    graph.onnx.write_bytes(graph.onnx.read_bytes().replace(b"Softmax", b"Sofdmax"))
    graph.data.write_bytes(bytes(64 * 65 * 4))
    with pytest.raises(FlowBlendingError, match=r"TensorRT-RTX .* cannot read .*large\.onnx \(.*Sofdmax.*\); export"):
        compile_plan(bare, ignore)
    graph.onnx.write_bytes(b"x" * 999)
    with pytest.raises(FlowBlendingError, match=r"large\.onnx is not an ONNX model"):
        compile_plan(bare, ignore)
    graph.onnx.unlink()
    with pytest.raises(FlowBlendingError, match=r"graph .*large\.onnx cannot be read \(No such file"):
        compile_plan(bare, ignore)


@needs_rtx
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        compile_plan(request(linear(tmp_path), Path("/dev/full")), ignore)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match="nowhere"):  # as it arrives from the compiler's process
        build(linear(tmp_path, "small"), tmp_path / "nowhere" / "small.plan", "sm89")


# The compiler's process


def children(process: int | None = None) -> list[int]:
    tasks = Path(f"/proc/{process or os.getpid()}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@needs_rtx
def test_what_progress_raises_ends_the_compilation(tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(phase: str) -> None:
        if phase == "compiling":
            seen.extend(children())
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        build(linear(tmp_path), tmp_path / "large.plan", "sm89", progress=cancel)
    assert len(seen) == 1
    assert not children()
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed while compiling large, most likely because memory ran out"),
        (signal.SIGSEGV, "SEGV"),
    ],
)
def test_a_compiler_that_dies_is_told(tmp_path: Path, number: signal.Signals, message: str) -> None:
    def kill(phase: str) -> None:
        if phase == "compiling":
            os.kill(children()[0], number)

    # The child needs no core file.
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    try:
        with pytest.raises(FlowBlendingError, match=message):
            build(linear(tmp_path), tmp_path / "large.plan", "sm89", progress=kill)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert not list(tmp_path.glob("*plan*"))


_PROGRAM = """
import sys
from pathlib import Path
from flowblending.engine.console import run_program
from flowblending.export.spec import ExportedGraph
from tests.test_trt import build
folder = Path(sys.argv[1])
graph = ExportedGraph.read(folder / "large.json")
run_program(lambda: build(graph, folder / "large.plan", "sm89", progress=lambda phase: print(phase, flush=True)))
"""


@contextmanager
def building(folder: Path, *, group: int | None = None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program in the midst of a build, and the process of its compiler, which is stopped and so never finishes."""
    linear(folder).write()
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, folder],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=group,
    ) as program:
        assert program.stdout is not None
        for phase in program.stdout:
            if phase == "compiling\n":
                break
        (compiler,) = children(program.pid)
        os.kill(compiler, signal.SIGSTOP)
        try:
            yield program, compiler
        finally:
            program.kill()
            with suppress(ProcessLookupError):
                os.kill(compiler, signal.SIGKILL)


def gone(process: int) -> bool:
    """Whether a process has ended; its parent need not have asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ")[-1].startswith("Z")
    except FileNotFoundError:
        return True


@needs_rtx
def test_ctrl_c_ends_a_build_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with building(tmp_path, group=0) as (program, compiler):
        # As a terminal does: to the program and to the compiler's process.
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=30)
        assert errors == "interrupted; nothing was left half-written\n"
        assert program.returncode == 130
        assert gone(compiler)
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
def test_a_compiler_does_not_outlive_its_program(tmp_path: Path) -> None:
    # Not in a process group of its own, in which the kernel would end a stopped orphan by itself.
    with building(tmp_path) as (program, compiler):
        program.kill()
        program.wait(timeout=30)
        deadline = time.monotonic() + 10
        while not gone(compiler) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(compiler)


# Targets and libraries


@needs_rtx
def test_targets_of_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: None)
    assert check_targets(RTX, ("sm120", "sm89", "sm120")) == ("sm120", "sm89")
    for unknown in ("sm90", "sm100", "foo", "SM89", ""):
        with pytest.raises(UsageError, match=rf"'{unknown}' was given, .* sm75, sm80, .*sm120"):
            check_targets(RTX, ("sm89", unknown))
    with pytest.raises(UsageError, match=r"No CUDA driver .* give --target with one or more of sm75, .*sm120"):
        check_targets(RTX, ())
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: "sm90")
    assert check_targets(RTX, ()) == ("sm90",)
    assert check_targets(RTX, ("sm89",)) == ("sm89",)


def stub(module: object, name: Backend = "tensorrt") -> Library:
    return Library(name=name, title="TensorRT", version="11.4.0", trt=module, logger=None, messages=Messages())


def test_targets_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_targets, "load", lambda _: stub(SimpleNamespace()))
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: "sm90")
    assert check_targets("tensorrt", ()) == check_targets("tensorrt", ("sm90",)) == ("sm90",)
    with pytest.raises(UsageError, match=r"'sm89' was given, but TensorRT .* compiles for the GPU present, sm90, or"):
        check_targets("tensorrt", ("sm89",))
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: None)
    with pytest.raises(UsageError, match=r"compiles on the GPU that will run the plan, but no CUDA .* tensorrt-rtx"):
        check_targets("tensorrt", ())


@needs_no_gpu
@needs_rtx
def test_building_for_the_gpu_present_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --target"):
        build(linear(tmp_path), tmp_path / "large.plan")


@pytest.mark.parametrize(
    ("backend", "modules"),
    [("tensorrt", ["tensorrt"]), (RTX, ["tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"])],
)
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, backend: Backend, modules: list[str]) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FlowBlendingError, match=rf"RT.* is not installed \(.+\); install flowblending\[{backend}\]"):
        trt_library.load.__wrapped__(backend)


# Running


@needs_no_gpu
@needs_rtx
def test_running_needs_a_gpu(tmp_path: Path) -> None:
    graph, out = linear(tmp_path), tmp_path / "large.plan"
    compile_plan(request(graph, out), ignore)
    with pytest.raises(FlowBlendingError, match="needs an NVIDIA GPU, and no CUDA driver was found; install"):
        TrtEngine(RTX, out, graph.spec)


@needs_rtx
def test_plans_that_cannot_be_loaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "gpu_architecture", lambda: "sm89")
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
    """Stands for an execution context and an engine: remembers what it was told, and knows the sizes of `PROFILE`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.num_io_tensors = 2
        self.works = True

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_dtype(self, _: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[tuple[int, ...]]:
        return [(1, 4, 64), (1, 8, 64), (2, 16, 64)]

    def create_execution_context(self) -> Recorder:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return 4 <= shape[1] <= 16

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(("address", name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("execute", stream))
        return self.works

    def taken(self) -> list[tuple[object, ...]]:
        calls, self.calls = self.calls, []
        return calls


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An engine, and what stands for TensorRT behind it."""

    engine: TrtEngine
    context: Recorder
    messages: Messages


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    context = Recorder()
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: context)
    module = SimpleNamespace(Runtime=lambda _: runtime, nptype=lambda name: np.dtype(name).type)
    library = stub(module)
    monkeypatch.setattr(trt, "load", lambda _: library)
    monkeypatch.setattr(trt, "gpu_architecture", lambda: "sm89")
    path = tmp_path / "large.plan"
    path.write_bytes(b"plan")
    engine = TrtEngine("tensorrt", path, linear(tmp_path).spec)
    return Recorded(engine=engine, context=context, messages=library.messages)


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
        ("execute", 7),
    ]
    engine.run(at(0x1000, 0x2000), 7)
    assert context.taken() == [("execute", 7)]
    engine.run(at(0x3000, 0x2000), 8)
    assert context.taken() == [("address", "x", 0x3000), ("execute", 8)]
    engine.run(at(0x3000, 0x2000, tokens=4), 8)
    assert context.taken() == [("shape", "x", (1, 4, 64)), ("execute", 8)]


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
    context.works = False
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


def upload(array: FloatArray) -> Tensor:
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
    engine.run({name: upload(array) for name, array in inputs.items()} | {"y": y}, 0)
    return download(y)


@pytest.fixture(params=["tensorrt", RTX])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    return name


@needs_gpu
@pytest.mark.slow
def test_two_plans_take_turns_on_a_gpu(tmp_path: Path, backend: Backend) -> None:
    engines = {}
    for seed, name in enumerate(("large", "small")):
        graph, out = linear(tmp_path, name, seed=seed), tmp_path / f"{name}.plan"
        build_plan(
            library=backend, onnx=graph.onnx, spec=graph.spec, profile=PROFILE, targets=(), out=out, progress=ignore
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
def test_attention_on_a_gpu(tmp_path: Path, backend: Backend, precision: Precision, tolerance: float) -> None:
    graph, out = attention(tmp_path, precision), tmp_path / "large.plan"
    build_plan(library=backend, onnx=graph.onnx, spec=graph.spec, profile=PROFILE, targets=(), out=out, progress=ignore)
    generator = np.random.default_rng(0)
    q, k, v = (generator.standard_normal((2, 2, 11, 64), np.float32) for _ in range(3))
    expected = attention_oracle(q, k, v)
    difference = run_on_the_gpu(TrtEngine(backend, out, graph.spec), q=q, k=k, v=v) - expected
    assert np.linalg.norm(difference) < tolerance * np.linalg.norm(expected)


def test_the_gpus_architecture_has_the_form_of_a_target() -> None:
    architecture = gpu_architecture()
    assert architecture is None or re.fullmatch(r"sm\d{2,3}", architecture)
