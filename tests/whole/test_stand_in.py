"""The stand-in for a GPU finds what it is there to find: faults that are planted here, one of each kind."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.program import COND, UNCOND
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.backends.tensorrt.run import TrtEngine
from flowblending.runtime.devices.arena import Arena
from flowblending.runtime.devices.cuda import CudaDevice, CudaMark
from flowblending.runtime.sampler.loop import Sampler
from tests.runtime.devices.test_cuda import SHAPE, Decay, decay_program, random
from tests.support.cuda.build import SOURCES
from tests.support.cuda.driver import HOST_FUNCTION, Driver
from tests.support.graphs import linear, linear_oracle

bindings = pytest.importorskip("cuda.bindings.driver")

FLOAT32 = np.dtype(np.float32)


def test_its_values_are_cudas() -> None:
    """The types are written by hand; a wrong number would be a wrong driver."""
    values: Mapping[str, int] = {
        name: int(value)
        for kind in vars(bindings).values()
        if hasattr(kind, "__members__")
        for name, value in kind.__members__.items()
    }
    text = (SOURCES / "cuda.hpp").read_text()
    found = re.findall(r"\b(CU\w+) = (\d+)[,} ]", text)
    assert len(found) > 50
    assert {name: int(value) for name, value in found} == {name: values[name] for name, _ in found}


@pytest.fixture
def device() -> CudaDevice:
    return CudaDevice()


@pytest.fixture
def current() -> Iterator[contextlib.ExitStack]:
    """For calls of a test's own, which need a current device."""
    with contextlib.ExitStack() as stack:
        yield stack


def sample(device: CudaDevice) -> npt.NDArray[np.float32]:
    sampler = Sampler({"large": Decay(device)}, device)
    return device.download(sampler.sample(decay_program((UNCOND, COND)), random(0), {}).latents)


@pytest.mark.cuda
def test_a_view_that_does_not_keep_its_memory(
    device: CudaDevice, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(device)
    assert driver.faults() == []
    rows = CudaDevice.rows
    monkeypatch.setattr(CudaDevice, "rows", lambda *given: replace(rows(*given), owner=None))
    with pytest.raises(Exception, match="ILLEGAL_ADDRESS"):
        sample(device)
    assert re.search(r"is not in a living block", driver.revive()[0])


@pytest.mark.cuda
@pytest.mark.usefixtures("driver")
def test_a_mark_that_does_not_record(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaMark, "record", lambda _: None)
    with pytest.raises(Exception, match="must be recorded"):
        sample(device)


@pytest.mark.cuda
def test_memory_that_is_too_small(device: CudaDevice, driver: Driver) -> None:
    """Beyond the block by any kernel, also where the block's size is no multiple of a page."""
    small, large = device.empty((1000,), FLOAT32), device.upload(np.ones(2000, np.float32))
    for out, other in ((small, large), (large, small)):
        lying = replace(out, shape=(2000,)), replace(other, shape=(2000,))
        with pytest.raises(Exception, match=r"ILLEGAL_ADDRESS"):
            device.mix(lying[0], [(1.0, lying[1])])
            device.close()
        assert re.search("kernel mix1 touches memory outside of every living block", driver.revive()[0])


@pytest.mark.cuda
def test_the_host_cannot_touch_memory_of_the_device_nor_the_other_way_round(device: CudaDevice, driver: Driver) -> None:
    array = np.zeros(64, np.float32)
    foreign = Tensor(address=array.ctypes.data, shape=(64,), dtype=FLOAT32, device="cuda", owner=array)
    with pytest.raises(Exception, match="ILLEGAL_ADDRESS"):
        device.mix(foreign, [(1.0, foreign)])
        device.close()
    assert re.search("is not memory of a device", driver.revive()[0])


@pytest.mark.cuda
@pytest.mark.usefixtures("driver")
def test_a_missing_wait_between_two_streams() -> None:
    """Whoever does not wait reads what was there before: memory that nobody has written, which is no number."""
    for waits in (True, False):
        one, other = CudaDevice(), CudaDevice()
        made = one.empty(SHAPE, FLOAT32)
        one.mix(made, [(1.0, one.upload(random(0)))])
        if waits:
            other.wait_for(one.stream)
        found = other.download(made)
        assert np.array_equal(found, random(0)) if waits else np.isnan(found).all()


@pytest.mark.cuda
def test_memory_is_freed_in_the_order_of_its_stream(device: CudaDevice, driver: Driver) -> None:
    device.close()
    before = driver.used()
    tensor = device.upload(np.ones(1000, np.float32))
    out = device.empty((1000,), FLOAT32)
    device.mix(out, [(2.0, tensor)])
    del tensor
    assert driver.used() - before == 2 * 4096
    np.testing.assert_array_equal(device.download(out), np.full(1000, 2, np.float32))
    assert driver.used() - before == 4096


@pytest.mark.cuda
def test_a_captured_stream_may_not_be_waited_for(
    device: CudaDevice, driver: Driver, current: contextlib.ExitStack
) -> None:
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    x = device.upload(random(0))
    expected = random(0)
    device.close()
    current.enter_context(device.current())
    assert bindings.cuStreamBeginCapture(device.stream, mode)[0] == 0
    device.mix(x, [(0.5, x)])
    status, graph = bindings.cuStreamEndCapture(device.stream)
    assert status == 0
    status, executable = bindings.cuGraphInstantiate(graph, 0)
    assert status == 0
    np.testing.assert_array_equal(device.download(x), expected)  # captured, and not run
    for _ in range(2):
        bindings.cuGraphLaunch(executable, device.stream)
    np.testing.assert_array_equal(device.download(x), np.float32(0.25) * expected)
    assert bindings.cuStreamBeginCapture(device.stream, mode)[0] == 0
    with pytest.raises(Exception, match="STREAM_CAPTURE_UNSUPPORTED"):
        device.close()
    assert bindings.cuStreamEndCapture(device.stream)[0].name == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    assert driver.revive() == ["cuStreamSynchronize of a stream that is captured"]


@pytest.mark.cuda
def test_an_engine_that_outlives_its_input(device: CudaDevice, driver: Driver, current: contextlib.ExitStack) -> None:
    """What a function of the host is told are addresses, which keep nothing alive."""
    current.enter_context(device.current())
    tensor = device.upload(np.ones(64, np.float32))
    address, seen = tensor.address, []
    function = HOST_FUNCTION(lambda _: seen.append(driver.alias(address, 256, 0, "the engine")))
    driver.call(function, device.stream)
    device.close()
    assert seen.pop() is not None
    del tensor
    driver.call(function, device.stream)
    device.close()
    assert seen == [None]
    assert re.search("the engine: .* is not in a living block", driver.revive()[0])


@pytest.mark.cuda
def test_plans_are_as_strict_as_tensorrts(device: CudaDevice, driver: Driver, tmp_path: Path) -> None:
    from tests.support.cuda import tensorrt_stand_in as trt

    graph, plan = linear(tmp_path), tmp_path / "large.plan"
    shapes = {"x": [[1, 4, 64], [1, 8, 64], [2, 16, 64]]}
    trt.write_plan(plan, onnx=graph.onnx, spec=graph.spec, profiles=[shapes], scratch=1000)
    x = np.random.default_rng(0).standard_normal((1, 8, 64), np.float32)
    with device.current():
        engine, arena = TrtEngine("tensorrt", plan, graph.spec), Arena(device)
        engine.use_scratch(arena)
        tensors = {"x": device.upload(x), "y": device.empty(x.shape, FLOAT32)}
        engine.run(tensors, device.stream)
        np.testing.assert_allclose(
            device.download(tensors["y"]), linear_oracle(tmp_path, "large", x), rtol=1e-4, atol=1e-5
        )
        with pytest.raises(FlowBlendingError, match="multiples of 256"):
            engine.run({**tensors, "y": replace(tensors["y"], address=tensors["y"].address + 4)}, device.stream)
        assert engine._context is not None
        context = engine._context.context
        assert context.set_optimization_profile_async(0, device.stream)
        assert not context.execute_async_v3(device.stream)  # nothing has been told to this profile
        assert not context.set_input_shape("x", (1, 17, 64))
        assert not context.set_tensor_address("x", 0x1004)
        context._arena = replace(context._arena, shape=(4096,))  # an arena too small for what the engine does in it
        context._calls.clear()
        assert context.set_input_shape("x", x.shape)
        assert all(context.set_tensor_address(name, each.address) for name, each in tensors.items())
        assert context.execute_async_v3(device.stream)
        device.close()
        assert re.search("scratch of the engine large: .* goes beyond its block of ", driver.revive()[0])
        context.set_device_memory(arena.at_least(1000).address, 999)
        assert not context.execute_async_v3(device.stream)
        plan.write_bytes(b"a plan of another library")
        with pytest.raises(FlowBlendingError, match=r"cannot load .*magicTag"):
            TrtEngine("tensorrt", plan, graph.spec)
        engine.close()


@pytest.mark.cuda
def test_as_much_memory_as_a_test_says(device: CudaDevice, driver: Driver) -> None:
    device.close()
    with driver.limited(1 << 20), driver.measured() as peak:
        assert free_memory() == 1 << 20
        kept = device.empty((1 << 18,), FLOAT32)
        with pytest.raises(FlowBlendingError, match="has no"):
            device.empty((1,), FLOAT32)
        del kept
        device.empty((1 << 18,), FLOAT32)
    assert peak[0] >= 1 << 20
