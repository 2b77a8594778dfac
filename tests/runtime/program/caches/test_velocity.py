"""Programs with a cache against a sampler that keeps velocities as the sources of the methods do."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.program import COND, GUIDED, LATENTS, UNCOND, VELOCITY, Mix, Program, Rescale, Run
from flowblending.engine.backends.function import FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.golden.closed_form import FORMS, engines
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.combination import slot
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid, sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS, solve
from flowblending.runtime.sampler.loop import Sampler
from tests.support.manifests import PAIR
from tests.support.schedules import visits

Array = npt.NDArray[np.float64]
Model = Callable[[str, Array, float, str], Array]

LATENT = (2, 3, 4, 5)
NOISE = np.random.default_rng(0).standard_normal((1, *LATENT))
WAN = SigmaGrid(kind="shifted", shift=3.0)


def bent(model: str, x: Array, timestep: float, branch: str) -> Array:
    scale = {LARGE: 0.5, SMALL: 0.4}[model] + (0.1 if branch == UNCOND else 0.0)
    return np.asarray(np.tanh(scale * x)) + timestep / 1000


def falling(model: str, x: Array, timestep: float, branch: str) -> Array:  # noqa: ARG001
    return -x


def stages(text: str) -> StageSchedule:
    return StageSchedule.parse(text, sum(int(run[1:]) for run in text.split()), 0.4, 0.2)


def plan(
    schedule: str,
    cache: str,
    *,
    solver: str = "unipc",
    guidance: float = 5.0,
    batched: bool = False,
    rescale: float = 0.0,
) -> Program:
    made = stages(schedule)
    return compile_program(
        schedule=made,
        models=PAIR,
        solver=solver,
        grid=sigma_grid(WAN, solver, made.steps, 0),
        latent_shape=LATENT,
        guidance=guidance,
        batched=batched,
        cache=parse_cache(cache),
        guidance_rescale=rescale,
    )


def execute(program: Program, model: Model) -> tuple[Array, int]:
    """A sampler in float64; also how many calls it made, each branch counted."""
    slots: dict[str, Array] = {LATENTS: NOISE}
    calls = 0
    for step in program.steps:
        for each in step.instructions:
            if isinstance(each, Run):
                for branch, out in zip(each.branches, each.out, strict=True):
                    slots[out] = model(each.model, slots[LATENTS], step.timestep, branch)
                    calls += 1
            elif isinstance(each, Rescale):
                slots[each.out] = rescaled(slots[each.out], slots[each.reference], each.share)
            else:
                assert isinstance(each, Mix)
                slots[each.out] = sum((c * slots[name] for c, name in each.terms), np.zeros(()))
    return slots[LATENTS], calls


def rescaled(guided: Array, cond: Array, share: float) -> Array:
    """As diffusers does it."""
    result: Array = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(cond), share).numpy()
    return result


@dataclass
class Stream:
    """One model's velocities for one branch: TaylorSeer's cache, kept step by step."""

    order: int
    last: int = -1
    factors: list[Array] = field(default_factory=list)

    def computed(self, step: int, velocity: Array) -> Array:
        factors = [velocity]
        for i in range(self.order):
            if i >= len(self.factors):
                break
            factors.append((factors[i] - self.factors[i]) / (step - self.last))
        self.factors, self.last = factors, step
        return velocity

    def predicted(self, step: int) -> Array:
        k = step - self.last
        return np.asarray(sum(k**i / math.factorial(i) * each for i, each in enumerate(self.factors)))


def reference(
    program: Program, model: Model, mask: str, *, order: int = 0, full: str | None = None
) -> tuple[Array, int]:
    """The plain solver around a model that is asked at the steps of ``mask``, and for uncond at those of ``full``.

    With guidance rescale, it is the rescaled velocity that is continued.
    """
    sigmas = [*(step.sigma for step in program.steps), 0.0]
    slots: dict[str, Array] = {LATENTS: NOISE}
    calls, before = 0, ""
    streams: dict[str, Stream] = {}
    difference = np.zeros(())
    for i, (step, mixes) in enumerate(zip(program.steps, solve(program.solver, sigmas), strict=True)):
        if step.model != before:
            streams = {branch: Stream(order) for branch in (COND, UNCOND, GUIDED)}
        before = step.model
        x = slots[LATENTS]
        if mask[i] == "1":
            cond = streams[COND].computed(i, model(step.model, x, step.timestep, COND))
            calls += 1
            if program.guidance > 1 and (full or mask)[i] == "1":
                difference = model(step.model, x, step.timestep, UNCOND) - cond
                calls += 1
            uncond = streams[UNCOND].computed(i, cond + difference)
        else:
            cond, uncond = (streams[branch].predicted(i) for branch in (COND, UNCOND))
        guided = uncond + program.guidance * (cond - uncond) if program.guidance > 1 else cond
        if program.guidance_rescale:
            computed = mask[i] == "1"
            guided = rescaled(guided, cond, program.guidance_rescale) if computed else guided
            guided = streams[GUIDED].computed(i, guided) if computed else streams[GUIDED].predicted(i)
        slots[VELOCITY] = guided
        for mix in mixes:
            slots[mix.out] = sum((c * slots[name] for c, name in mix.terms), np.zeros(()))
    return slots[LATENTS], calls


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_cache_that_leaves_out_nothing_is_the_plain_program(solver: str, guidance: float, batched: bool) -> None:
    grid = sigma_grid(WAN, solver, 9, 0)
    plain = plan("L4 S3 L2", "off", solver=solver, guidance=guidance, batched=batched)
    assert plan("L4 S3 L2", "mask:111111111", solver=solver, guidance=guidance, batched=batched) == plain
    # The plain program, put together by hand.
    velocity = guidance * slot(COND) + (1.0 - guidance) * slot(UNCOND) if guidance > 1 else slot(VELOCITY)
    updates = solve(solver, grid.sigmas, velocities=[velocity] * 9)
    for model, step, update in zip(visits("L4 S3 L2").models, plain.steps, updates, strict=True):
        if guidance <= 1:
            runs = [Run(model=model, branches=(COND,), out=(VELOCITY,))]
        elif batched:
            runs = [Run(model=model, branches=(UNCOND, COND), out=(UNCOND, COND))]
        else:
            runs = [Run(model=model, branches=(branch,), out=(branch,)) for branch in (COND, UNCOND)]
        assert step.instructions == (*runs, *update)
    # Order 0 takes the last velocity as it is, and so does a mask.
    mask = "mask:110010011"
    assert plan("L4 S3 L2", f"{mask}+taylor:0", solver=solver, guidance=guidance, batched=batched) == plan(
        "L4 S3 L2", mask, solver=solver, guidance=guidance, batched=batched
    )


@pytest.mark.parametrize("model", [bent, falling])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_skipped_steps_continue_from_the_computed_ones(solver: str, guidance: float, order: int, model: Model) -> None:
    # Uneven gaps, several skipped in a row, and too little history after each switch.
    mask = "1110100100" + "101101" + "1001"
    for batched in (False, True):
        program = plan("L10 S6 L4", f"mask:{mask}+taylor:{order}", solver=solver, guidance=guidance, batched=batched)
        found, calls = execute(program, model)
        expected, counted = reference(program, model, mask, order=order)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert calls == counted == mask.count("1") * (2 if guidance > 1 else 1)
        assert program.calls(LARGE) == (5 + 2) * (2 if guidance > 1 else 1)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_guidance_is_skipped_at_computed_steps(solver: str, order: int) -> None:
    mask, full = "1111101111" + "110111" + "1111", "1001000100" + "100010" + "1001"
    for batched in (False, True):
        cache = f"mask:{mask}+taylor:{order}+guidance:3,1001"
        program = plan("L10 S6 L4", cache, solver=solver, batched=batched)
        found, calls = execute(program, bent)
        expected, counted = reference(program, bent, mask, order=order, full=full)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert calls == counted == mask.count("1") + full.count("1")


@pytest.mark.parametrize("share", [0.7, 1.0])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_rescaled_velocity_is_what_is_kept(solver: str, order: int, share: float) -> None:
    mask, full = "1110100100" + "101101" + "1001", "1000100000" + "100001" + "1000"
    for batched in (False, True):
        for cache, computed in ((f"mask:{mask}", mask), ("off", "1" * 20)):
            made = functools.partial(plan, "L10 S6 L4", solver=solver, batched=batched, rescale=share)
            taylor = "" if cache == "off" else f"+taylor:{order}"
            program = made(cache + taylor)
            found, calls = execute(program, bent)
            expected, counted = reference(program, bent, computed, order=order)
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            assert calls == counted
        program = made(f"mask:{mask}+taylor:{order}+guidance:3,1001")
        found, calls = execute(program, bent)
        expected, counted = reference(program, bent, mask, order=order, full=full)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert calls == counted == mask.count("1") + full.count("1")


def test_rescaling_is_for_guided_stages() -> None:
    program = compile_program(
        schedule=StageSchedule.runs("L3 S2:g1 L2:g7"),
        models=PAIR,
        solver="unipc",
        grid=sigma_grid(WAN, "unipc", 7, 0),
        latent_shape=LATENT,
        guidance=5.0,
        batched=True,
        guidance_rescale=0.5,
    )
    kinds = ["".join(type(each).__name__[0] for each in step.instructions) for step in program.steps]
    # A run, guidance and its rescaling, and what the solver does with a slot.
    assert all(kind.startswith("RMR") and set(kind[3:]) == {"M"} for kind in (*kinds[:3], *kinds[5:]))
    assert all(set(kind[1:]) == {"M"} for kind in kinds[3:5])
    first = program.steps[0].instructions
    assert first[1:3] == (
        Mix(out=GUIDED, terms=((5.0, COND), (-4.0, UNCOND))),
        Rescale(out=GUIDED, reference=COND, share=0.5),
    )
    assert program.guidance_rescale == 0.5
    assert plan("L2", "off", guidance=1.0, rescale=0.5) == plan("L2", "off", guidance=1.0)


@pytest.mark.parametrize("rescale", [-0.1, 1.1, float("nan"), float("inf")])
def test_refuses_a_rescaling_that_is_no_share(rescale: float) -> None:
    with pytest.raises(UsageError, match=f"The guidance rescale is {rescale}, but a number from 0 to 1 was expected"):
        plan("L2", "off", rescale=rescale)


def test_nothing_is_kept_across_a_switch() -> None:
    """The slots that a stage reads, it has written itself."""
    for cache in ("interval:2", "mask:11101101011+taylor:2", "taylor:2+mask:11011011010+guidance:2,1001"):
        program = plan("L4 S3 L4", cache)
        written: set[str] = set()
        for index, step in enumerate(program.steps):
            if index in stages("L4 S3 L4").switches:
                written.clear()
            for each in step.instructions:
                if isinstance(each, Run):
                    written |= set(each.out)
                elif isinstance(each, Mix):
                    read = {name for _, name in each.terms if name.startswith(("cond", "uncond"))}
                    assert read <= written


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_extrapolation_of_a_polynomial(order: int, degree: int) -> None:
    """Exact up to degree 1. A parabola that the source's formula continues lies k * gap * curvature too low."""
    steps, curvature = 12, 0.25
    timesteps = tuple(1000.0 - 80 * i for i in range(steps))
    sigmas = tuple(1.0 - i / steps for i in range(steps + 1))

    def value(step: float) -> float:
        return 1.0 + (degree > 0) * 0.5 * step + (degree > 1) * curvature * step**2

    def model(name: str, x: Array, timestep: float, branch: str) -> Array:  # noqa: ARG001
        return np.full_like(x, value((1000.0 - timestep) / 80))

    mask = "101010010001"
    program = compile_program(
        schedule=stages(f"L{steps}"),
        models=PAIR,
        solver="euler",
        grid=Grid(sigmas=sigmas, timesteps=timesteps),
        latent_shape=LATENT,
        guidance=1.0,
        batched=False,
        cache=parse_cache(f"mask:{mask}+taylor:{order}"),
    )
    x = NOISE
    for i in range(steps):
        end = execute(
            Program(schedule="", solver="", guidance=1.0, latent_shape=LATENT, steps=program.steps[: i + 1]), model
        )[0]
        velocity = float(((end - x) / (sigmas[i + 1] - sigmas[i])).mean())
        x = end
        if degree <= order and degree < 2 and i > 1:
            assert velocity == pytest.approx(value(i), abs=1e-12)
        if i == 5 and (order, degree) == (2, 2):
            assert velocity == pytest.approx(value(5) - 1 * 2 * curvature, abs=1e-12)
        if mask[i] == "0" and degree > max(order, 1):
            assert abs(velocity - value(i)) > 0.1


def test_slots_are_taken_again_when_nothing_needs_them() -> None:
    """A long run takes no more memory than a short one."""
    for cache, count in (("interval:3", 2), ("interval:3+taylor:1", 4), ("interval:3+taylor:2", 6)):
        assert len([name for name in plan("L40 S20", cache).slots() if "cond" in name]) == count
    # Two sets for two full steps, and one for the branch alone; it may hold more with extrapolation.
    assert len([name for name in plan("L40 S20", "guidance:4,1001").slots() if "cond" in name]) == 3


@pytest.mark.parametrize("cache", ["mask:1101011", "interval:2+taylor:2", "guidance:2,1001", "taylor+guidance:2,1001"])
@pytest.mark.parametrize("batched", [False, True])
def test_the_real_sampler_runs_it(cache: str, batched: bool) -> None:
    """In fp32, through engines whose calls are counted."""
    program = dataclasses.replace(plan("L5 S2", cache, batched=batched), latent_shape=(4, 3, 2, 5))
    random = np.random.default_rng(3)
    conditions = {
        branch: {
            "text": Tensor.of(random.standard_normal((1, 3, 6)).astype(np.float32)),
            "text_mask": Tensor.of(np.ones((1, 3), np.int64)),
            "frame_rate": Tensor.of(np.array([16.0], np.float32)),
        }
        for branch in (COND, UNCOND)
    }
    models = {name: FunctionEngine(engine.spec, FORMS[name]) for name, engine in engines().items()}
    noise = random.standard_normal((1, *program.latent_shape)).astype(np.float32)
    result = Sampler(models, HostDevice()).sample(program, noise, conditions)
    runs = [each for each in program.instructions() if isinstance(each, Run)]
    assert [engine.calls for engine in models.values()] == [sum(run.model == name for run in runs) for name in models]
    assert program.calls(LARGE) + program.calls(SMALL) < 2 * 7
    assert np.isfinite(result.latents.numpy()).all()
