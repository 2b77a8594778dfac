"""EasyCache while a program runs, and as a static mask, against a loop that keeps its state as the source does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.program import COND, LATENTS, UNCOND, VELOCITY, Program
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.dry_run import plan_lines
from flowblending.runtime.golden.closed_form import FORMS, LATENT, ClosedFormCase, bundle_id, engines
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.easycache import EasyCache, EasyMask
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.caches.policy import Outline, decide
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.cost import cost_of
from flowblending.runtime.program.program_file import ProgramFile
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS, solve
from flowblending.runtime.sampler.loop import Sampler, SampleResult
from tests.support import manifests
from tests.support.schedules import visits

Array = npt.NDArray[np.float64]
GRID = SigmaGrid(kind="shifted", shift=3.0)
NOISE = np.random.default_rng(0).standard_normal((1, *LATENT)).astype(np.float32)
RANDOM = np.random.default_rng(1)
GIVEN = ClosedFormCase(schedule="L1", solver="euler", guidance=5.0, batched=False).conditions(RANDOM)


def stages(text: str) -> StageSchedule:
    return StageSchedule.parse(text, sum(int(run[1:]) for run in text.split()), 0.4, 0.2)


def plan(
    schedule: str,
    cache: str,
    *,
    solver: str = "unipc",
    guidance: float = 5.0,
    batched: bool = False,
    constants: dict[str, dict[str, Sequence[float]]] | None = None,
) -> Program:
    made = stages(schedule)
    return compile_program(
        schedule=made,
        models=manifests.PAIR,
        solver=solver,
        grid=sigma_grid(GRID, solver, made.steps, 0),
        latent_shape=LATENT,
        guidance=guidance,
        batched=batched,
        cache=parse_cache(cache),
        constants=constants,
    )


def wavy(model: str) -> Callable[[Arrays], Arrays]:
    """A formula whose velocity is not linear in the latents, so that its change is now fast and now slow."""

    def velocity(arrays: Arrays) -> Arrays:
        found = FORMS[model](arrays)["velocity"]
        return {"velocity": (found + 0.3 * np.sin(arrays["timestep"].reshape(-1, 1, 1, 1, 1) / 60)).astype(np.float32)}

    return velocity


def run(program: Program) -> tuple[SampleResult, list[tuple[str, float, int]]]:
    """The sampler's result, and every engine call: model, timestep, batch."""
    seen: list[tuple[str, float, int]] = []

    def watched(model: str) -> Callable[[Arrays], Arrays]:
        def velocity(arrays: Arrays) -> Arrays:
            seen.append((model, float(arrays["timestep"][0]), len(arrays["timestep"])))
            return wavy(model)(arrays)

        return velocity

    models = {name: FunctionEngine(engine.spec, watched(name)) for name, engine in engines().items()}
    conditions = {
        branch: {name: Tensor.of(array) for name, array in inputs.items()} for branch, inputs in GIVEN.items()
    }
    prepared = Sampler(models, HostDevice()).prepare(program, conditions)
    once = prepared.run(NOISE)
    latents, calls = once.latents.numpy().copy(), list(seen)
    # Nothing of a run is left for the next, whichever way it is followed.
    again = prepared.run(NOISE, on_step=lambda _: None)
    np.testing.assert_array_equal(again.latents.numpy(), latents)
    assert seen == calls * 2
    assert once.calls == again.calls
    return again, calls


class Published:
    """The state of ``easycache_forward``, for one model from a switch to the next."""

    def __init__(self) -> None:
        self.raw_input: Array | None = None
        self.raw_output: Array | None = None
        self.prev_prev_input: Array | None = None
        self.k: float | None = None
        self.accumulated = 0.0
        self.cache: dict[str, Array] = {}

    def decide(self, x: Array, threshold: float, *, forced: bool) -> bool:
        """Whether a step computes."""
        compute = True
        if forced:
            self.accumulated = 0.0
        elif self.raw_input is not None and self.raw_output is not None and self.k is not None:
            change = np.abs(x - self.raw_input).mean()
            self.accumulated += self.k * (change / np.abs(self.raw_output).mean())
            compute = bool(self.accumulated >= threshold)
            if compute:
                self.accumulated = 0.0
        self.raw_input = x
        return compute

    def store(self, x: Array, velocities: dict[str, Array]) -> None:
        """What a computed step leaves."""
        output = velocities[COND]
        if self.raw_output is not None and self.prev_prev_input is not None:
            self.k = float(np.abs(output - self.raw_output).mean() / np.abs(x - self.prev_prev_input).mean())
        self.prev_prev_input, self.raw_output = x, output
        self.cache = {branch: velocity - x for branch, velocity in velocities.items()}


def reference(program: Program, threshold: float, first: int, *, mask: str | None = None) -> tuple[Array, str]:
    """The plain solver around the published rule, or around a mask; also which steps computed."""
    sigmas = [*(step.sigma for step in program.steps), 0.0]
    slots: dict[str, Array] = {LATENTS: NOISE.astype(np.float64)}
    state, before, computed = Published(), "", ""
    branches = (COND, UNCOND) if program.guidance > 1 else (COND,)
    for i, (step, mixes) in enumerate(zip(program.steps, solve(program.solver, sigmas), strict=True)):
        if step.model != before:
            state = Published()
        before, x = step.model, slots[LATENTS]
        forced = i < first or i == len(program.steps) - 1
        compute = state.decide(x, threshold, forced=forced) if mask is None else mask[i] == "1"
        computed += "01"[compute]
        if compute:
            found = {}
            for branch in branches:
                arrays = {"latents": x.astype(np.float32), "timestep": np.array([step.timestep], np.float32)}
                found[branch] = wavy(step.model)({**arrays, **GIVEN[branch]})["velocity"].astype(np.float64)
            state.store(x, found)
        reused = {branch: x + state.cache[branch] for branch in branches}
        guided = reused[COND]
        if program.guidance > 1:
            guided = reused[UNCOND] + program.guidance * (reused[COND] - reused[UNCOND])
        slots[VELOCITY] = guided
        for mix in mixes:
            slots[mix.out] = sum((c * slots[name] for c, name in mix.terms), np.zeros(()))
    return slots[LATENTS], computed


@pytest.mark.parametrize(
    ("schedule", "threshold", "first"), [("L20", 0.2, 3), ("L9 S14 L7", 0.1, 5), ("S24", 0.05, 10), ("L4 S6 L2", 9, 1)]
)
@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_it_decides_while_it_runs_as_published(
    solver: str, guidance: float, schedule: str, threshold: float, first: int
) -> None:
    for batched in (False, True):
        cache = f"easycache:{threshold},{first}"
        program = plan(schedule, cache, solver=solver, guidance=guidance, batched=batched)
        expected, computed = reference(program, threshold, first)
        result, calls = run(program)
        np.testing.assert_allclose(result.latents.numpy(), expected, rtol=1e-3, atol=1e-4)
        # The engines that were called, one by one.
        branches = 2 if guidance > 1 else 1
        batches = [branches] if batched else [1] * branches
        assert calls == [
            (step.model, float(np.float32(step.timestep)), size)
            for step, digit in zip(program.steps, computed, strict=True)
            if digit == "1"
            for size in batches
        ]
        models = visits(schedule).models
        made = {
            model: branches * sum(m == model and d == "1" for m, d in zip(models, computed, strict=True))
            for model in models
        }
        assert result.calls == made
        assert set(result.model_seconds) == set(made)
        assert "0" in computed
        least = {model: program.calls(model) - program.undecided(model) for model in made}
        assert all(least[model] <= made[model] <= program.calls(model) for model in made)


def test_the_thresholds_leave_out_different_steps() -> None:
    masks = {threshold: reference(plan("L30", "off"), threshold, 10)[1] for threshold in (0.02, 0.05, 0.2)}
    counts = [mask.count("1") for mask in masks.values()]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


def test_a_threshold_that_nothing_stays_below_is_the_plain_run() -> None:
    result, calls = run(plan("L5 S5", "easycache:1e-30,1"))
    plain, expected = run(plan("L5 S5", "off"))
    np.testing.assert_array_equal(result.latents.numpy(), plain.latents.numpy())
    assert calls == expected


def test_steps_that_compute_whatever_is_measured() -> None:
    choice = plan("L12 S5 L2 S2", "easycache").choice
    assert choice is not None
    assert "".join("?" if each is not None else "1" for each in choice.reuse) == "1111111111??11???111" + "1"
    choice = plan("L12 S5", "easycache:0.1,2").choice
    assert choice is not None
    assert "".join("?" if each is not None else "1" for each in choice.reuse) == "11??????????11??1"


def measured(steps: int) -> dict[str, dict[str, Sequence[float]]]:
    values = np.random.default_rng(7).uniform(0.001, 0.04, (2, steps))
    return {"easycache": {LARGE: values[0].tolist(), SMALL: values[1].tolist()}}


@pytest.mark.parametrize("steps", [50, 30, 80])
def test_a_static_mask_adds_up_what_was_measured(steps: int) -> None:
    constants = measured(50)
    outline = Outline(
        schedule=visits(f"L{steps - 18} S10 L8"), timesteps=(500.0,) * steps, guided=True, constants=constants
    )
    decisions = decide([EasyMask(threshold=0.06, first=4)], outline)
    mask, total, since = "", 0.0, 0
    for step, model in enumerate(outline.schedule.models):
        since = 0 if step in (0, steps - 18, steps - 8) else since + 1
        # Half as many steps are twice as long.
        total += constants["easycache"][model][int(np.rint(step * 49 / (steps - 1)))] * 50 / steps
        skip = since > 1 and 4 <= step < steps - 1 and total < 0.06
        total = total if skip else 0.0
        mask += "10"[skip]
    assert "".join("01"[each] for each in decisions.cond) == mask
    assert decisions.uncond == decisions.cond
    assert 0 < mask.count("0") < steps - 4


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS.built_in)
def test_a_static_mask_reuses_as_published(solver: str, guidance: float) -> None:
    for batched in (False, True):
        options = {"solver": solver, "guidance": guidance, "batched": batched}
        program = plan("L14 S9 L5", "easycache-static:0.06,4", constants=measured(28), **options)  # type: ignore[arg-type]
        mask = "".join("10"[not any(hasattr(each, "model") for each in step.instructions)] for step in program.steps)
        assert "100" in mask
        result, calls = run(program)
        expected, _ = reference(program, 0.0, 0, mask=mask)
        np.testing.assert_allclose(result.latents.numpy(), expected, rtol=1e-3, atol=1e-4)
        assert sum(batch for *_, batch in calls) == mask.count("1") * (2 if guidance > 1 else 1)
        # It is a program like any other, and one of velocities if they are extrapolated.
        assert Program.from_json(program.to_json()) == program
        taylor = plan("L14 S9 L5", "easycache-static:0.06,4+taylor:0", constants=measured(28), **options)  # type: ignore[arg-type]
        assert taylor == plan("L14 S9 L5", f"mask:{mask}", **options)  # type: ignore[arg-type]


def test_the_static_form_names_itself() -> None:
    with pytest.raises(UsageError, match=r"leaves none of the 6 steps of L2 S2 L2 .* as in easycache-static:0\.05,3"):
        plan("L2 S2 L2", "easycache-static:0.05,1", constants=measured(6))


@pytest.mark.parametrize(
    ("schedule", "cache", "message"),
    [
        ("L20", "easycache+taylor:1", "decides while the program runs, and other caches cannot build on that"),
        ("L20", "easycache+guidance:2,1001", "other caches cannot build on that; give it alone, or take easycache-st"),
        ("L8", "easycache", "first 10 steps of a run, .* leaves none of the 8 steps .* as in easycache:0.05,3, or"),
        ("L20", "easycache-static", "no constants for the bundle's large model; measure them with fb-calibrate"),
        ("L20", "easycache:0", "easycache:0 has 0 where a number above 0 was expected"),
        ("L20", "easycache:0.1,0", "easycache:0.1,0 has 0 where a whole number from 1 on was expected"),
        ("L20", "easycache-static:x", "easycache-static:x has x where"),
        ("L20", "easycache+magcache", "decides about the same engine calls twice; leave out magcache"),
    ],
)
def test_what_is_refused(schedule: str, cache: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(schedule, cache)


def test_words() -> None:
    assert parse_cache("easycache") == (EasyCache(threshold=0.05, first=10),)
    assert parse_cache("EasyCache: 0.1, 4") == (EasyCache(threshold=0.1, first=4),)
    assert parse_cache("easycache-static:0.2") == (EasyMask(threshold=0.2, first=10),)


def test_a_program_file_cannot_say_it(tmp_path: Path) -> None:
    specs = {name: engine.spec for name, engine in engines().items()}
    program = plan("L20", "easycache")
    file = ProgramFile.of(program, bundle=bundle_id(), specs=specs)
    with pytest.raises(UsageError, match="which a program file cannot say; give --cache easycache-static, whose"):
        file.write(tmp_path / "program.json")
    assert not list(tmp_path.iterdir())
    plain = plan("L20", "off")
    assert "choice" not in plain.to_json()
    assert dataclasses.replace(program, choice=None).to_json().keys() == plain.to_json().keys()
    listing = program.listing()
    assert listing.count("unless it is left out, as is decided when it is reached:") == 9


def test_its_cost_is_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifests.write(tmp_path / "bundle")
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.program.cost import Timings

    bundle = open_bundle(tmp_path / "bundle")
    job = Job(prompt="x", schedule="L6 S6", steps=12, solver="euler", guidance=5.0, cache="easycache:0.1,3")
    cost = cost_of(compile_job(job, bundle.manifest), bundle.manifest)
    # The fourth to sixth step, the ninth to eleventh; two branches each.
    assert (cost.calls, cost.undecided) == ({LARGE: 12, SMALL: 12}, {LARGE: 6, SMALL: 6})
    assert (cost.flops, cost.flops_least) == (12 * 1100 + 12 * 110, 6 * 1100 + 6 * 110)
    assert cost.bound_most == pytest.approx(2 * cost.bound)
    assert math.isclose(cost.bound, 24 / 13.2)
    # Latents, two velocities, and three to compare with.
    assert cost.slot_bytes == 6 * math.prod(bundle.manifest.geometry.latent_shape) * 4
    Timings(bundle.manifest.id, "cpu", bundle.manifest.geometry.latent_shape).write(
        {LARGE: 1.0, SMALL: 0.5, "text_encoder": 1.0, "vae": 2.0}
    )
    lines = "\n".join(plan_lines(bundle, job, "cpu"))
    assert "computes 111???" in lines
    assert "computes 11???1" in lines
    assert (
        "large x 12, small x 12 at most; the cache decides about large x 6, small x 6 while the program runs" in lines
    )
    assert "(27.5% to 55.0%), 9.1% of it attention; speed-up bound 1.818x to 3.636x" in lines
    assert "time      about 12.00 s to 21.00 s as last measured (sampling 9.00 s to 18.00 s, " in lines
    assert "1.33x to 2.67x all-large's speed, 73% of the bound)" in lines


def test_a_probe_measures_what_numpy_does() -> None:
    device, random = HostDevice(), np.random.default_rng(2)
    a, b = (random.standard_normal((3, 1, 70001)).astype(np.float32) for _ in range(2))
    probe = device.probe(2)
    probe.measure(1, Tensor.of(a), Tensor.of(b))
    probe.measure(0, Tensor.of(a), None)
    assert probe.read() == pytest.approx((np.abs(a).mean(dtype=np.float64), np.abs(a - b).mean(dtype=np.float64)))
