"""Steps as CUDA graphs, on the stand-in for a GPU: the same bits as without, and what the driver was asked for."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import SigmaGrid
from flowblending.contracts.models import by_letter
from flowblending.contracts.program import Program, Run
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.cuda import CudaDevice
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.golden.closed_form import FORMS, LATENT, MODELS, ClosedFormCase, engines
from flowblending.runtime.program.caches import teacache
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.graph_plan import plan_graphs
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.sampler.binding import Conditions
from flowblending.runtime.sampler.loop import Sampler, SampleResult, Trajectory
from tests.support.cuda.driver import HOST_FUNCTION, Driver, Entry

bindings = pytest.importorskip("cuda.bindings.driver")
pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("driver")]

Latents = npt.NDArray[np.float32]


class GpuEngine:
    """A formula that runs in the stream's order, on memory of which it knows the addresses alone."""

    def __init__(self, formula: FunctionEngine, driver: Driver) -> None:
        self.spec = formula.spec
        self.state = object()
        self.capturable = True
        self.fail_at: int | None = None
        self.enqueued = 0
        self.waits_in_capture = False
        self.formula = formula
        self._driver = driver
        self._calls: dict[object, Any] = {}

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        self.enqueued += 1
        if self.enqueued == self.fail_at:
            raise FlowBlendingError("The engine failed.")
        if self.waits_in_capture and bindings.cuStreamIsCapturing(stream)[1]:
            bindings.cuStreamSynchronize(stream)
        key = tuple((name, each.address, each.shape) for name, each in tensors.items())
        if key not in self._calls:
            told = {name: replace(each, owner=None) for name, each in tensors.items()}
            self._calls[key] = HOST_FUNCTION(lambda _: self._work(told))
        self._driver.call(self._calls[key], stream)

    def graph_state(self) -> object:
        if self.state is None:
            raise FlowBlendingError("The engine has been closed.")
        return self.state

    def is_capturable(self, stream: int) -> bool:  # noqa: ARG002 - whatever the stream
        return self.capturable

    def close(self) -> None:
        self.state = None

    def _work(self, told: Mapping[str, Tensor]) -> None:
        try:
            found = {}
            for name, each in told.items():
                address = self._driver.alias(each.address, each.nbytes, 0, f"{name} of {self.spec.name}")
                if address is None:
                    return
                raw = (ctypes.c_char * each.nbytes).from_address(address)
                found[name] = Tensor.of(np.frombuffer(memoryview(raw), each.dtype).reshape(each.shape))
            self.formula.run(found, 0)
        except Exception as error:  # there is nobody that it could be raised to
            self._driver.say_fault(repr(error))


class PlainEngine:
    """One whose calls are not for graphs."""

    def __init__(self, engine: GpuEngine) -> None:
        self.spec, self.run, self.close = engine.spec, engine.run, engine.close


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    made = CudaDevice()
    yield made
    made.close()


@pytest.fixture
def models(driver: Driver) -> dict[str, GpuEngine]:
    return {
        name: GpuEngine(FunctionEngine(formula.spec, form), driver)
        for (name, formula), form in zip(engines().items(), FORMS.values(), strict=True)
    }


def compiled(case: ClosedFormCase) -> Program:
    """The case's program; caches know the published constants of Wan 2.1, and TeaCache a distance for every step."""
    schedule = StageSchedule.runs(case.schedule)
    grid = sigma_grid(SigmaGrid(kind="shifted", shift=3.0), case.solver, schedule.steps, 30)
    distances = {"small": (0.05,) * schedule.steps}
    return compile_program(
        schedule=schedule,
        models=by_letter(MODELS),
        solver=case.solver,
        grid=grid,
        latent_shape=case.latent,
        guidance=case.guidance,
        batched=case.batched,
        cache=parse_cache(case.cache),
        guidance_rescale=case.rescale,
        architectures={"large": "wan2.1-t2v-14b", "small": "wan2.1-t2v-1.3b"},
        constants={teacache.NAME: distances, teacache.TIMESTEPS: {"small": grid.timesteps}},
    )


def case(schedule: str = "L6 S8 L4", solver: str = "unipc", guidance: float = 5.0, **given: Any) -> ClosedFormCase:
    return ClosedFormCase(schedule=schedule, solver=solver, guidance=guidance, **{"batched": False, **given})


def noise(seed: int = 0) -> Latents:
    return np.random.default_rng(seed).standard_normal((1, *LATENT)).astype(np.float32)


def conditions(given: ClosedFormCase, device: Device, seed: int = 1) -> Conditions:
    arrays = given.conditions(np.random.default_rng(seed))
    return {branch: {name: device.upload(array) for name, array in each.items()} for branch, each in arrays.items()}


def on_the_cpu(given: ClosedFormCase, program: Program, start: Latents) -> SampleResult:
    device = HostDevice()
    return Sampler(engines(), device).sample(program, start, conditions(given, device))


def prepared(
    models: Mapping[str, Engine], device: CudaDevice, given: ClosedFormCase, program: Program | None = None
) -> Trajectory:
    return Sampler(models, device).prepare(program or compiled(given), conditions(given, device))


def loop_of(journal: Sequence[Entry]) -> list[Entry]:
    """What a run enqueued, from its first mark to its first wait."""
    first = next(index for index, each in enumerate(journal) if each.what == "record")
    last = next(index for index, each in enumerate(journal) if each.what in ("sync", "query"))
    return [*journal[first + 1 : last]]


CASES = {
    "unipc, two calls": case(),
    "one call for both branches": case(batched=True),
    "dpm++, no guidance": case(solver="dpm++", guidance=1.0),
    "rescaled": case("L4", "euler", rescale=0.7),
    "a stage of its own timesteps and without guidance": case("L8 S4:g1:t780.5,700,640,560 L4", batched=True),
    "a mask, extrapolated": case("L8 S8", cache="mask:1110010010010010+taylor:2"),
    "unconditional calls left out": case("L8 S8", batched=True, cache="mask:1110111011101110+guidance:2,1001"),
    "magcache": case("L25 S25", "euler", cache="magcache"),
    "teacache": case("S50", "euler", cache="teacache:0.08"),
    "scm": case("L10 S20", "euler", cache="scm:slow"),
    "two experts": case("D12 W6", guidance=3.0),
    "whole model": case("L12", "unipc"),
    "few steps": case("L2 S2", "euler", guidance=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_the_same_and_steps_are_launches(
    name: str, device: CudaDevice, driver: Driver, models: dict[str, GpuEngine]
) -> None:
    given = CASES[name]
    program, start = compiled(given), noise()
    plan, wanted = plan_graphs(program), on_the_cpu(given, program, start)
    off = Sampler(models, device, cuda_graph=False).sample(program, start, conditions(given, device))
    np.testing.assert_array_equal(device.download(off.latents), wanted.latents.numpy())
    assert (off.graphs.launches, off.graphs.off, off.graphs.failed) == (0, "", "")

    trajectory = prepared(models, device, given, program)
    uploaded, enqueued = device.upload(start), sum(model.enqueued for model in models.values())
    device.close()
    for again in (False, True):
        driver.journal()
        result = trajectory.run(uploaded)
        loop = loop_of(driver.journal())
        captured = sum(kind in plan.captured for kind in plan.kinds)
        assert result.graphs.launches == (captured if again else plan.launches)
        assert result.graphs.captures == (0 if again else len(plan.captured))
        assert bool(result.graphs.off) == (not plan.captured)
        assert not result.graphs.failed
        whats = Counter(each.what for each in loop)
        assert whats["graph"] == result.graphs.launches
        # Nothing is allocated, freed or waited for, and nothing goes to the host or comes from it.
        assert whats.keys() <= {"graph", "capture", "launch", "host", "copy", "record"}
        assert {each.name for each in loop if each.what == "copy"} <= {"DtoD"}
        assert {each.name for each in loop if each.what == "record" and each.captured} <= {"external"}
        np.testing.assert_array_equal(device.download(result.latents), wanted.latents.numpy())
        # Times and calls are those of every step, and not of the one that was captured.
        assert result.calls == wanted.calls
        assert len(set(result.step_seconds)) > 1
        assert 0 < result.engine_seconds < result.loop_seconds
        assert result.loop_seconds == pytest.approx(sum(result.step_seconds), rel=1e-3, abs=1e-5)
    calls = sum(isinstance(each, Run) for each in program.instructions())
    made = sum(model.enqueued for model in models.values()) - enqueued
    assert (made < 2 * calls) == bool(plan.captured)


def test_a_step_is_one_copy_one_launch_and_its_end(
    device: CudaDevice, driver: Driver, models: dict[str, GpuEngine]
) -> None:
    given = case("L12", "euler")
    trajectory, start = prepared(models, device, given), device.upload(noise())
    trajectory.run(start)
    driver.journal()
    trajectory.run(start)
    assert [each.what for each in loop_of(driver.journal())] == ["copy", "graph", "record"] * 12


def test_whoever_follows_is_told_and_may_stop(device: CudaDevice, driver: Driver, models: dict[str, GpuEngine]) -> None:
    given = case("L8 S4", "euler")
    program, start = compiled(given), noise()
    trajectory = prepared(models, device, given, program)
    wanted = on_the_cpu(given, program, start)
    for ahead in (0, 2, None):
        told = []
        events = trajectory.follow(start, ahead=ahead)
        for event in events:
            told.append(event.index)
            assert 0 <= event.seconds < 10
            assert trajectory.calls <= 2 * (event.index + 1 + (12 if ahead is None else ahead))
        assert told == list(range(12))
        np.testing.assert_array_equal(device.download(trajectory.latents), wanted.latents.numpy())
    events = trajectory.follow(start, ahead=2)
    for event in events:
        if event.index == 5:
            events.close()
    assert trajectory.calls == 2 * 8  # the step told and two ahead
    np.testing.assert_array_equal(device.download(trajectory.run(start).latents), wanted.latents.numpy())
    driver.journal()


def test_a_velocity_that_is_not_finite_is_named_with_its_step(
    device: CudaDevice, models: dict[str, GpuEngine], driver: Driver
) -> None:
    given = case("L8 S8", "euler", guidance=1.0)
    trajectory, start = prepared(models, device, given), noise()
    trajectory.run(start)
    events = trajectory.follow(start, ahead=0)
    small = models["small"].formula
    with pytest.raises(FlowBlendingError, match=r"The small model .* step 12 of 16;"):
        for event in events:
            if event.index == 10:
                small._function = lambda arrays: {"velocity": np.full_like(arrays["latents"], np.nan)}
    assert driver.faults() == []


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_engine_that_fails_does_so_whether_captured_or_not(
    device: CudaDevice, models: dict[str, GpuEngine], call: int
) -> None:
    given = case("L8", "euler", guidance=1.0)
    trajectory, start = prepared(models, device, given), noise()
    models["large"].fail_at = call
    if call == 2:  # as it was captured; it works when it is not
        result = trajectory.run(start)
        assert result.graphs.failed == "The engine failed"
        assert (result.graphs.launches, result.graphs.captures) == (0, 0)
    elif call == 3:  # nobody calls it again
        assert trajectory.run(start).graphs.launches == 7
    else:
        with pytest.raises(FlowBlendingError, match="The engine failed"):
            trajectory.run(start)
    # The stream is as it was, and captures nothing.
    with device.current():
        assert int(bindings.cuStreamIsCapturing(device.stream)[1]) == 0


def test_a_capture_that_fails_is_told_and_the_bits_are_right(
    device: CudaDevice, driver: Driver, models: dict[str, GpuEngine]
) -> None:
    given = case("L8", "euler", guidance=1.0)
    program, start = compiled(given), noise()
    wanted = on_the_cpu(given, program, start).latents.numpy()
    models["large"].waits_in_capture = True
    result = prepared(models, device, given, program).run(start)
    assert result.graphs.launches == 0
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in result.graphs.failed
    np.testing.assert_array_equal(device.download(result.latents), wanted)
    assert driver.revive() == ["cuStreamSynchronize of a stream that is captured"]
    models["large"].waits_in_capture, models["large"].capturable = False, False
    result = prepared(models, device, given, program).run(start)
    assert result.graphs.failed == "the engine large cannot be captured as it is now"
    np.testing.assert_array_equal(device.download(result.latents), wanted)


def test_an_engine_that_was_prepared_anew_is_captured_anew(device: CudaDevice, models: dict[str, GpuEngine]) -> None:
    given = case("L8", "euler")
    trajectory, start = prepared(models, device, given), noise()
    first = trajectory.run(start)
    latents = device.download(first.latents)
    models["large"].state = object()
    again = trajectory.run(start)
    assert (first.graphs.launches, again.graphs.launches, again.graphs.captures) == (7, 7, 1)
    np.testing.assert_array_equal(device.download(again.latents), latents)
    models["large"].close()
    with pytest.raises(FlowBlendingError, match="has been closed"):
        trajectory.run(start)


def test_other_conditions_are_other_addresses_and_other_graphs(
    device: CudaDevice, models: dict[str, GpuEngine]
) -> None:
    given = case("L8", "euler")
    program, start = compiled(given), noise()
    sampler = Sampler(models, device)
    first, second = (sampler.prepare(program, conditions(given, device, seed)) for seed in (1, 2))
    found = [device.download(each.run(start).latents) for each in (first, second, first, second)]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    assert not np.array_equal(found[0], found[1])


def test_timesteps_of_latent_frames(device: CudaDevice, driver: Driver) -> None:
    """Frames that are held have one of their own, in some steps."""

    def velocity(arrays: Arrays) -> Arrays:
        times = arrays["timestep"].reshape(len(arrays["timestep"]), 1, -1, 1, 1) / np.float32(1000)
        return {"velocity": np.float32(-0.9) * arrays["latents"] + np.float32(0.2) * times}

    given = case("L10", "euler", batched=True)
    program, start = compiled(given), noise()
    held = [replace(step, frame_timesteps=(0.0, step.timestep, step.timestep / 2)) for step in program.steps[:6]]
    program = replace(program, steps=(*held, *program.steps[6:]))
    spec = engines()["large"].spec
    inputs = [replace(each, shape=("batch", "frames")) if each.name == "timestep" else each for each in spec.inputs]
    formula = FunctionEngine(replace(spec, inputs=tuple(inputs)), velocity)
    host = HostDevice()
    wanted = Sampler({"large": formula}, host).sample(program, start, conditions(given, host))
    result = prepared({"large": GpuEngine(formula, driver)}, device, given, program).run(start)
    assert result.graphs.launches == 9
    np.testing.assert_array_equal(device.download(result.latents), wanted.latents.numpy())


def test_why_there_are_none_is_told(device: CudaDevice, models: dict[str, GpuEngine]) -> None:
    plain = {name: PlainEngine(engine) for name, engine in models.items()}
    for given, engines_given, why in (
        (case("L6 S6", "euler", guidance=1.0, cache="easycache:0.1,2"), models, "the cache decides at every step"),
        (case("L3 S3", "euler"), models, "no step comes 4 times"),
        (case("L8 S8", "euler"), plain, "calls of large and small cannot be captured"),
    ):
        result = prepared(engines_given, device, given).run(noise())
        assert result.graphs.off.startswith(why)
        assert result.graphs.launches == 0
    given = case("L8 S8", "euler", guidance=1.0)
    staged = Sampler(models, device, before=lambda _: None).prepare(compiled(given), conditions(given, device))
    assert staged.run(noise()).graphs.off.startswith("engines are opened and closed")
    result = Sampler(engines(), HostDevice()).sample(compiled(case()), noise(), conditions(case(), HostDevice()))
    assert result.graphs.off == ""


def test_other_threads_go_on_while_one_captures(device: CudaDevice, models: dict[str, GpuEngine]) -> None:
    """They allocate and wait as they like: the capture watches its own thread."""
    given, other = case("L8", "euler"), CudaDevice()
    run, done = models["large"].run, []

    def meanwhile() -> None:
        tensor, mark = other.upload(np.ones(64, np.float32)), other.mark()
        mark.record()
        mark.wait()
        done.append(tensor)

    def interrupted(tensors: Mapping[str, Tensor], stream: int) -> None:
        if int(bindings.cuStreamIsCapturing(stream)[1]):
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        run(tensors, stream)

    models["large"].run = interrupted  # type: ignore[method-assign] # for this object
    result = prepared(models, device, given).run(noise())
    assert result.graphs.launches == 7
    assert done


def test_memory_that_nobody_refers_to_is_not_freed_into_a_graph(
    device: CudaDevice, driver: Driver, models: dict[str, GpuEngine]
) -> None:
    """Python may find out at any moment that some tensor is garbage."""
    given, run = case("L8", "euler", guidance=1.0), models["large"].run
    kept = [device.empty((64,), np.dtype(np.float32))]

    def littered(tensors: Mapping[str, Tensor], stream: int) -> None:
        if int(bindings.cuStreamIsCapturing(stream)[1]):
            for _ in range(1000):  # more than it takes for a collection to begin
                cycle = SimpleNamespace(tensor=kept.pop() if kept else None)
                cycle.itself = cycle
        run(tensors, stream)

    trajectory, start = prepared(models, device, given), device.upload(noise())
    models["large"].run = littered  # type: ignore[method-assign] # for this object
    result = trajectory.run(start)
    assert (result.graphs.launches, result.graphs.failed) == (7, "")
    assert driver.faults() == []
    assert not kept
