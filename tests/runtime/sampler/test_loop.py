"""The sampler with closed-form engines: exact results, counted calls, told steps, named faults."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.contracts.program import COND, LATENTS, UNCOND, VELOCITY, Mix, Program, Run, Step
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.host import HostDevice, HostMark
from flowblending.runtime.sampler.loop import Sampler, StepEvent

Latents = npt.NDArray[np.float32]

LATENT = (4, 3, 2, 5)
SHAPE = (1, *LATENT)
SYMBOLS = ("batch", 4, "frames", "height", "width")
LATENTS_SPEC = TensorSpec(name="latents", dtype="float32", shape=SYMBOLS)
TIMESTEP_SPEC = TensorSpec(name="timestep", dtype="float32", shape=("batch",))
TEXT_SPEC = TensorSpec(name="text", dtype="float32", shape=("batch", "length", 4))
MASK_SPEC = TensorSpec(name="text_mask", dtype="int64", shape=("batch", "length"))
RATE_SPEC = TensorSpec(name="frame_rate", dtype="float32", shape=(1,))


def engine(
    name: str,
    function: Callable[[Arrays], npt.NDArray[Any]],
    *conditions: TensorSpec,
    precision: Precision = Precision.FP32,
) -> FunctionEngine:
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(LATENTS_SPEC, TIMESTEP_SPEC, *conditions),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=SYMBOLS),),
    )
    return FunctionEngine(spec, lambda arrays: {"velocity": function(arrays)})


def decay(arrays: Arrays) -> npt.NDArray[Any]:
    return np.negative(arrays["latents"])


def conditioned(scale: float) -> Callable[[Arrays], npt.NDArray[Any]]:
    """A velocity in which every input has a share; rows of a batch do not touch each other."""

    def function(arrays: Arrays) -> npt.NDArray[Any]:
        text = np.where(arrays["text_mask"][..., None] > 0, arrays["text"], 0).sum(axis=1, dtype=np.float32)
        time = arrays["timestep"][:, None, None, None, None] / np.float32(1000)
        shift = text[:, :, None, None, None] * arrays["frame_rate"][0]
        velocity: npt.NDArray[Any] = np.float32(scale) * np.sin(arrays["latents"] * time + shift)
        return velocity

    return function


def random(seed: int, shape: tuple[int, ...] = SHAPE) -> Latents:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conditions(length: int = 6) -> dict[str, dict[str, Tensor]]:
    rate = Tensor.of(np.array([0.16], np.float32))
    return {
        branch: {
            "text": Tensor.of(random(seed, (1, length, 4))),
            "text_mask": Tensor.of((np.arange(length)[None] < 2 + seed).astype(np.int64)),
            "frame_rate": rate,
            "unused": rate,
        }
        for seed, branch in enumerate((COND, UNCOND), start=1)
    }


def euler(models: Sequence[str], guidance: float | None = None, batched: bool = False) -> Program:
    """Euler steps over even noise levels, written out by hand."""
    sigmas = np.linspace(1.0, 0.0, len(models) + 1).tolist()
    steps = []
    for model, (now, after) in zip(models, pairwise(sigmas), strict=True):
        runs: tuple[Run, ...] = (Run(model=model, branches=(COND,), out=(VELOCITY,)),)
        terms: tuple[tuple[float, str], ...] = ((1.0, LATENTS), (after - now, VELOCITY))
        if guidance is not None:
            runs = tuple(Run(model=model, branches=(each,), out=(each,)) for each in (UNCOND, COND))
            if batched:
                runs = (Run(model=model, branches=(UNCOND, COND), out=(UNCOND, COND)),)
            guided = ((after - now) * guidance, COND), ((after - now) * (1.0 - guidance), UNCOND)
            terms = ((1.0, LATENTS), *guided)
        mix = Mix(out=LATENTS, terms=terms)
        steps.append(Step(model=model, timestep=1000.0 * now, sigma=now, instructions=(*runs, mix)))
    return Program(
        schedule="by hand", solver="euler", guidance=guidance or 1.0, latent_shape=LATENT, steps=tuple(steps)
    )


def test_a_closed_form_flow_is_solved() -> None:
    # dx/dsigma = -x from 1 to 0 in n Euler steps multiplies by (1 + 1/n)**n.
    sampler = Sampler({"large": engine("large", decay)}, HostDevice())
    for steps in (1, 2, 7, 100):
        result = sampler.sample(euler(["large"] * steps), random(0), {})
        np.testing.assert_allclose(result.latents.numpy(), random(0) * (1 + 1 / steps) ** steps, rtol=1e-5)


def test_all_large_equals_a_plain_loop_bit_for_bit() -> None:
    large = engine("large", conditioned(1.0), TEXT_SPEC, MASK_SPEC, RATE_SPEC)
    given = conditions()
    result = Sampler({"large": large}, HostDevice()).sample(euler(["large"] * 9, guidance=3.0), random(0), given)

    arrays = {branch: {name: each.numpy() for name, each in inputs.items()} for branch, inputs in given.items()}
    x: npt.NDArray[Any] = random(0)
    sigmas = np.linspace(1.0, 0.0, 10).tolist()
    for now, after in pairwise(sigmas):
        time = np.array([1000.0 * now], np.float32)
        v = {each: conditioned(1.0)({"latents": x, "timestep": time, **arrays[each]}) for each in (COND, UNCOND)}
        x = x + np.float32((after - now) * 3.0) * v[COND] + np.float32((after - now) * (1.0 - 3.0)) * v[UNCOND]
    np.testing.assert_array_equal(result.latents.numpy(), x)


def test_batched_guidance_equals_two_calls() -> None:
    engines = {
        name: engine(name, conditioned(scale), TEXT_SPEC, MASK_SPEC, RATE_SPEC)
        for name, scale in (("large", 1.0), ("small", 0.9))
    }
    sampler = Sampler(engines, HostDevice())
    models = ["large", "small", "small", "large"]
    two = sampler.sample(euler(models, guidance=4.0), random(0), conditions())
    assert (engines["large"].calls, engines["small"].calls) == (4, 4)
    one = sampler.sample(euler(models, guidance=4.0, batched=True), random(0), conditions())
    assert (engines["large"].calls, engines["small"].calls) == (6, 6)
    np.testing.assert_array_equal(one.latents.numpy(), two.latents.numpy())
    assert not np.array_equal(
        one.latents.numpy(), sampler.sample(euler(models), random(0), conditions()).latents.numpy()
    )


def test_calls_and_seconds_per_model() -> None:
    engines = {name: engine(name, decay) for name in ("large", "small")}
    program = euler(["large", "large", "small", "small", "small", "large"])
    result = Sampler(engines, HostDevice()).sample(program, random(0), {})
    assert engines["large"].calls == program.calls("large") == 3
    assert engines["small"].calls == program.calls("small") == 3
    assert set(result.model_seconds) == {"large", "small"}
    assert len(result.step_seconds) == 6
    assert sum(result.step_seconds) == pytest.approx(result.loop_seconds)
    assert 0 < result.engine_seconds < result.loop_seconds


def test_a_program_may_keep_and_reuse_slots() -> None:
    # A cached velocity in place of the second call, and a program without any call.
    keep = Mix(out="kept", terms=((1.0, VELOCITY),))
    first = euler(["large"]).steps[0]
    again = Step(
        model="large",
        timestep=500.0,
        sigma=0.5,
        instructions=(Mix(out=LATENTS, terms=((1.0, LATENTS), (2.0, "kept"))),),
    )
    steps = (Step(model="large", timestep=1000.0, sigma=1.0, instructions=(*first.instructions, keep)), again)
    program = Program(schedule="by hand", solver="euler", guidance=1.0, latent_shape=LATENT, steps=steps)
    large = engine("large", decay)
    result = Sampler({"large": large}, HostDevice()).sample(program, random(0), {})
    np.testing.assert_array_equal(result.latents.numpy(), random(0) * 2 - 2 * random(0))
    assert large.calls == 1
    empty = Program(schedule="", solver="euler", guidance=1.0, latent_shape=LATENT, steps=())
    np.testing.assert_array_equal(Sampler({}, HostDevice()).sample(empty, random(0), {}).latents.numpy(), random(0))


class SlowMark(HostMark):
    """A mark that is reached only when somebody waits for it, as if the GPU were far behind."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.waited = False

    def record(self) -> None:
        super().record()
        self.waited = False

    def reached(self) -> bool:
        return self.waited

    def wait(self) -> None:
        self.waited = True
        self.log.append("wait")


class SlowDevice(HostDevice):
    """A device that logs what the sampler asks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        self.log.append("allocate")
        return super().empty(shape, dtype)

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        self.log.append("allocate")
        return super().upload(array)

    def mark(self) -> HostMark:
        self.log.append("allocate")
        return SlowMark(self.log)


def test_steps_are_told_in_order_as_they_finish() -> None:
    events: list[StepEvent] = []
    calls_when_told = []
    large = engine("large", decay)

    def on_step(event: StepEvent) -> None:
        events.append(event)
        calls_when_told.append(large.calls)

    models = ["large", "large", "large"]
    result = Sampler({"large": large}, HostDevice()).sample(euler(models), random(0), {}, on_step=on_step)
    assert [(each.index, each.steps, each.model) for each in events] == [(index, 3, "large") for index in range(3)]
    assert [each.seconds for each in events] == list(result.step_seconds)
    assert calls_when_told == [1, 2, 3]


@pytest.mark.parametrize("told", [False, True])
def test_the_loop_neither_waits_nor_allocates(told: bool) -> None:
    device = SlowDevice()

    def logged(arrays: Arrays) -> npt.NDArray[Any]:
        device.log.append("run")
        return decay(arrays)

    large = engine("large", logged)
    trajectory = Sampler({"large": large}, device).prepare(euler(["large"] * 4), {})
    start = device.upload(random(0))
    device.log.clear()
    on_step = (lambda event: device.log.append(f"step {event.index}")) if told else None
    trajectory.run(start, on_step=on_step)
    after = [entry for step in range(4) for entry in ("wait", f"step {step}")] if told else ["wait"]
    assert device.log == ["run"] * 4 + after


def test_a_trajectory_can_be_run_again() -> None:
    trajectory = Sampler({"large": engine("large", decay)}, HostDevice()).prepare(euler(["large"] * 3), {})
    results = [trajectory.run(random(seed)).latents.numpy().copy() for seed in (0, 1, 0)]
    np.testing.assert_array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        (Precision.FP16, "in fp16-mixed, bf16 or fp32"),
        (Precision.FP16_MIXED, "in bf16 or fp32"),
        (Precision.BF16, "in fp32"),
        (Precision.FP32, "check"),
    ],
)
def test_a_non_finite_velocity_names_model_and_step(precision: Precision, remedy: str) -> None:
    small = engine("small", lambda arrays: arrays["latents"] / (arrays["timestep"][0] != 400.0), precision=precision)
    sampler = Sampler({"large": engine("large", decay), "small": small}, HostDevice())
    models = ["large", "small", "small", "small", "large"]
    message = rf"The small model gave a non-finite velocity at step 4 of 5; it was built in {precision}: .*{remedy}"
    with np.errstate(divide="ignore"), pytest.raises(FlowBlendingError, match=message):
        sampler.sample(euler(models), random(0), {})


def test_what_is_missing_or_does_not_fit_is_named() -> None:
    large = engine("large", conditioned(1.0), TEXT_SPEC, MASK_SPEC, RATE_SPEC)
    sampler = Sampler({"large": large}, HostDevice())
    program, given = euler(["large"], guidance=2.0, batched=True), conditions()

    def fails(message: str, program: Program, latents: Latents, given: dict[str, dict[str, Tensor]]) -> None:
        with pytest.raises(FlowBlendingError, match=message):
            sampler.sample(program, latents, given)

    no_rate = {branch: {k: v for k, v in each.items() if k != "frame_rate"} for branch, each in given.items()}
    fails("large asks for the input frame_rate, .* branch uncond", program, random(0), no_rate)
    fails("asks for the input text, .* branch uncond .*given: nothing", program, random(0), {COND: given[COND]})
    fails("The program runs the small model", euler(["small"]), random(0), given)
    fails(r"text has shape \[1, 6, 4\]|text_mask .* has shape", euler(["large"]), random(0), mixed_lengths(given))
    fails("the shapes .* pad them", program, random(0), {COND: given[COND], UNCOND: conditions(5)[UNCOND]})
    other = dataclasses.replace(program, latent_shape=(3, 3, 2, 5))
    fails(r"latents of engine large has shape \[2, 3, 3, 2, 5\]", other, random(0, (1, 3, 3, 2, 5)), given)
    wrong_type = {COND: given[COND] | {"text": Tensor.of(np.zeros((1, 6, 4), np.float16))}}
    fails("text of engine large is float16, but float32", euler(["large"]), random(0), wrong_type)
    with pytest.raises(FlowBlendingError, match=r"float32 \[1, 4, 3, 2, 6\], but float32 \[1, 4, 3, 2, 5\]"):
        sampler.prepare(program, given).run(random(0, (1, 4, 3, 2, 6)))
    assert large.calls == 0


def mixed_lengths(given: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {COND: given[COND] | {"text_mask": conditions(5)[COND]["text_mask"]}}


def test_an_engine_of_another_kind_is_refused() -> None:
    spec = GraphSpec(name="large", precision=Precision.FP32, inputs=(LATENTS_SPEC,), outputs=(TIMESTEP_SPEC,))
    other = FunctionEngine(spec, lambda arrays: {"timestep": arrays["latents"]})
    with pytest.raises(FlowBlendingError, match=r"Engine large gives .* but velocity"):
        Sampler({"large": other}, HostDevice()).sample(euler(["large"]), random(0), {})


def test_slots_that_cannot_be_neighbours_are_a_fault_of_the_program() -> None:
    runs = tuple(Run(model="large", branches=branches, out=branches) for branches in ((UNCOND, COND), (COND, UNCOND)))
    step = Step(model="large", timestep=1.0, sigma=1.0, instructions=runs)
    program = Program(schedule="", solver="euler", guidance=1.0, latent_shape=LATENT, steps=(step,))
    with pytest.raises(ValueError, match="side by side"):
        Sampler({"large": engine("large", decay)}, HostDevice()).sample(program, random(0), {})


def test_ctrl_c_passes_through_after_the_work_enqueued() -> None:
    device = SlowDevice()

    def interrupted(arrays: Arrays) -> npt.NDArray[Any]:
        if device.log.count("run") == 2:
            raise KeyboardInterrupt
        device.log.append("run")
        return decay(arrays)

    sampler = Sampler({"large": engine("large", interrupted)}, device)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(euler(["large"] * 4), random(0), {})
    assert device.log[-3:] == ["run", "run", "wait"]
