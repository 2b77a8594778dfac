"""fb-calibrate with closed-form engines and on a tiny bundle: each number against one that is worked out otherwise."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import LARGE, SMALL, SigmaGrid
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.models import Model, by_letter
from flowblending.contracts.program import COND, UNCOND, Program
from flowblending.engine.backends.function import FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import carry_calibration, open_bundle
from flowblending.engine.bundle.calibration import add_calibration, remove_calibration
from flowblending.runtime import cli
from flowblending.runtime.calibrate import boundaries, features
from flowblending.runtime.calibrate.choose import choose_late
from flowblending.runtime.calibrate.divergence import Divergence, measure
from flowblending.runtime.calibrate.measure import (
    Early,
    Late,
    Measures,
    early_ticks,
    late_ticks,
    measure_early,
    measure_late,
)
from flowblending.runtime.calibrate.pair import ModelPair, pair_of
from flowblending.runtime.calibrate.prompts import read_prompts
from flowblending.runtime.calibrate.propagation import block_ticks, measure_blocks, measure_schedules
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.golden import closed_form
from flowblending.runtime.jobs import compile_job, passed_over
from flowblending.runtime.options import Job
from flowblending.runtime.planned_job import Start
from flowblending.runtime.program.caches.magcache import CONSTANTS
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.cost import cost_of
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.sampler.loop import Sampler
from tests.conftest import Build
from tests.support import manifests
from tests.support.killed import leave

PAIR = ModelPair(first="L", second="S")
SHAPE = (1, *closed_form.LATENT)
STEPS = 6
LATENT_MEASURES = Measures(
    similarity=features.similarity_measure("latent"), distance=features.distance_measure("latent")
)
Floats = npt.NDArray[np.float32]


def random(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def program(runs: str, solver: str = "unipc", guidance: float = 5.0, batched: bool = False) -> Program:
    return compile_program(
        schedule=StageSchedule.scaled(runs, STEPS),
        models=manifests.PAIR,
        solver=solver,
        grid=sigma_grid(SigmaGrid(kind="shifted", shift=3.0), solver, STEPS, 30),
        latent_shape=closed_form.LATENT,
        guidance=guidance,
        batched=batched,
    )


def conditions() -> dict[str, dict[str, Tensor]]:
    case = closed_form.ClosedFormCase(schedule="L1", solver="euler", guidance=5.0, batched=False)
    return {
        branch: {name: Tensor.of(array) for name, array in inputs.items()}
        for branch, inputs in case.conditions(np.random.default_rng(1)).items()
    }


def trajectory(**options: Any) -> StepTrajectory:
    return StepTrajectory(
        programs={letter: program(f"{letter}1", **options) for letter in "LS"},
        engines=closed_form.engines(),
        device=HostDevice(),
        conditions=conditions(),
    )


def sampled(runs: str, noise: Floats, **options: Any) -> Floats:
    result = Sampler(closed_form.engines(), HostDevice()).sample(program(runs, **options), noise, conditions())
    return result.latents.numpy().copy()


def cosine(a: Floats, b: Floats) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


@pytest.mark.parametrize("solver", ["euler", "dpm++", "unipc"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_walk_is_the_sampler_step_by_step_and_back_again(solver: str, batched: bool) -> None:
    made, noise = trajectory(solver=solver, batched=batched), random(0)
    made.start(Start(latents=noise))
    for index in range(3):
        made.evaluate(index, "S")  # the trajectory takes no notice of it
        made.step(index, "L")
    state = made.save()
    for index in range(3, STEPS):
        made.step(index, "S")
    np.testing.assert_array_equal(made.latents(), sampled("L3 S3", noise, solver=solver, batched=batched))
    made.restore(state)
    for index, letter in zip(range(3, STEPS), "SLL", strict=True):
        made.step(index, letter)
    np.testing.assert_array_equal(made.latents(), sampled("L3 S1 L2", noise, solver=solver, batched=batched))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_divergence_and_ratios_are_those_of_the_formulas(guidance: float) -> None:
    noise, ticks = random(2), [0]
    found = measure(trajectory(guidance=guidance), Start(latents=noise), ["L"] * STEPS, lambda: ticks.append(1))
    assert sum(ticks) == STEPS
    assert list(found.distances) == (["cond"] if guidance == 1.0 else ["cond", "uncond", "guided"])
    # The first step, from the engines' formulas alone; and at the second, the latents of a run of one step.
    timesteps = [step.timestep for step in program("L1", guidance=guidance).steps]
    given = conditions()

    def velocity(model: str, branch: str, latents: Floats, timestep: float) -> npt.NDArray[np.float64]:
        arrays = {name: tensor.numpy() for name, tensor in given[branch].items()}
        inputs = {"latents": latents, "timestep": np.array([timestep], np.float32), **arrays}
        return closed_form.FORMS[model](inputs)["velocity"].astype(np.float64)

    small, large = (velocity(model, COND, noise, timesteps[0]) for model in (SMALL, LARGE))
    assert found.distances["cond"]["relative_l2"][0] == pytest.approx(
        float(np.sqrt(((small - large) ** 2).sum() / (large**2).sum())), rel=1e-6
    )
    assert found.distances["cond"]["rms"][0] == pytest.approx(float(np.sqrt(((small - large) ** 2).mean())), rel=1e-6)
    assert found.distances["cond"]["cosine"][0] == pytest.approx(
        1 - float((small * large).sum() / np.sqrt((small**2).sum() * (large**2).sum())), rel=1e-3, abs=1e-9
    )
    if guidance > 1.0:
        both = [
            5 * velocity(m, COND, noise, timesteps[0]) - 4 * velocity(m, UNCOND, noise, timesteps[0])
            for m in (SMALL, LARGE)
        ]
        expected = float(np.sqrt(((both[0] - both[1]) ** 2).sum() / (both[1] ** 2).sum()))
        assert found.distances["guided"]["relative_l2"][0] == pytest.approx(expected, rel=1e-5)
    other = trajectory(guidance=guidance)
    other.start(Start(latents=noise))
    other.step(0, "L")
    after = other.latents()
    other.step(1, "L")
    points = [noise, after, other.latents()]
    assert list(found.caches) == ["magcache", "easycache"]
    for model in (LARGE, SMALL):
        # EasyCache, as in its source: how much the velocity changed per change of the latents, one step before.
        x = [each.astype(np.float64) for each in points]
        v = [velocity(model, COND, each, t) for each, t in zip(points, timesteps, strict=False)]
        k = np.abs(v[1] - v[0]).mean() / np.abs(x[1] - x[0]).mean()
        expected = k * np.abs(x[2] - x[1]).mean() / np.abs(v[1]).mean()
        assert found.caches["easycache"][model][:3] == pytest.approx([0.0, 0.0, float(expected)], rel=1e-4)
        norms = [
            np.sqrt((velocity(model, COND, x, t) ** 2).sum(axis=1))
            for x, t in zip((noise, after), timesteps, strict=False)
        ]
        assert found.caches["magcache"][model][:2] == pytest.approx(
            [1.0, float((norms[1] / norms[0]).mean())], rel=1e-5
        )


def test_what_boundaries_are_tried_by_is_what_whole_runs_give() -> None:
    noise, other, ticks = random(3), random(4), [0]

    def tick() -> None:
        ticks[0] += 1

    def no_frames(latents: Floats) -> npt.NDArray[np.uint8]:
        raise AssertionError(f"latents {latents.shape} need no decoder")

    tried = [0, 2, 4]
    made = trajectory()
    divergence, early = measure_early(
        made,
        Start(latents=noise),
        other=Start(latents=other),
        tried=tried,
        measures=LATENT_MEASURES,
        decode=no_frames,
        tick=tick,
    )
    assert ticks[0] == early_ticks(STEPS, tried) == 2 * STEPS + 6 + 4 + 2
    large = sampled("L1", noise)
    np.testing.assert_array_equal(early.latents, large)
    np.testing.assert_array_equal(early.reference, features.latent_statistics(sampled("L1", other)))
    runs = {0: "S6", 2: "L2 S4", 4: "L4 S2", 6: "L6"}
    assert early.similarities == pytest.approx({n: cosine(sampled(each, noise), large) for n, each in runs.items()})
    assert divergence == measure(trajectory(), Start(latents=noise), ["L"] * STEPS, lambda: None)

    ticks[0] = 0
    late = measure_late(
        made,
        Start(latents=noise),
        early=2,
        tried=[0, 1, 3, 4],
        all_large=early,
        measures=LATENT_MEASURES,
        decode=no_frames,
        tick=tick,
    )
    assert ticks[0] == late_ticks(STEPS, 2, [0, 1, 3, 4]) == STEPS + 1 + 3
    runs = {0: "L2 S4", 1: "L2 S3 L1", 3: "L2 S1 L3", 4: "L6"}
    assert late.similarities == pytest.approx({n: cosine(sampled(each, noise), large) for n, each in runs.items()})
    for count, each in runs.items():
        np.testing.assert_array_equal(late.features[count], features.latent_statistics(sampled(each, noise)))


def test_what_blocks_and_schedules_do_to_the_video_is_what_whole_runs_give() -> None:
    noise, ticks = random(5), [0]

    def tick() -> None:
        ticks[0] += 1

    def decode(latents: Floats) -> npt.NDArray[np.uint8]:
        values = np.clip(128 + 40 * latents[0, :3], 0, 255).astype(np.uint8)  # three channels as colours
        return values.transpose(1, 2, 3, 0)

    def error(runs: str) -> npt.NDArray[np.float64]:
        return (decode(sampled(runs, noise)).astype(float) - decode(sampled("L1", noise))).ravel() / 255

    made = trajectory()
    divergence, squares, latents = measure_blocks(made, Start(latents=noise), [0, 2, 3], decode, tick)
    assert ticks[0] == block_ticks(STEPS, [0, 2, 3]) == STEPS + 6 + 4 + 3
    assert divergence == measure(trajectory(), Start(latents=noise), ["L"] * STEPS, lambda: None)
    np.testing.assert_array_equal(latents, sampled("L1", noise))
    runs = ("S2 L4", "L2 S1 L3", "L3 S3")
    assert squares == pytest.approx([float(np.mean(error(each) ** 2)) for each in runs])
    assert min(squares) > 1e-5

    schedules = {"L2 S1 L1 S2": "LLSLSS", "S6": "S" * 6}
    ticks[0] = 0
    found = measure_schedules(made, Start(latents=noise), schedules, all_large=latents, decode=decode, tick=tick)
    assert ticks[0] == 2 * STEPS
    assert found == pytest.approx({each: float(np.mean(error(each) ** 2)) for each in schedules})


def test_a_model_that_gives_no_numbers_is_named_with_its_step() -> None:
    engines = closed_form.engines()
    spec = engines[SMALL].spec
    engines[SMALL] = FunctionEngine(spec, lambda arrays: {"velocity": np.full_like(arrays["latents"], np.nan)})
    made = StepTrajectory(
        programs={letter: program(f"{letter}1") for letter in "LS"},
        engines=engines,
        device=HostDevice(),
        conditions=conditions(),
    )
    made.start(Start(latents=random(0)))
    made.step(0, "L")
    with pytest.raises(FlowBlendingError, match="The small model gave a non-finite velocity at step 2 of 6"):
        made.evaluate(1, "S")


def test_boundaries() -> None:
    assert boundaries.candidates(50, 5) == [0, 10, 20, 30, 40, 50]
    assert boundaries.candidates(3, 10) == [0, 1, 2, 3]
    # 10 would do, but 20 falls below again: the similarity has to stay.
    assert boundaries.early_boundary({0: 0.5, 10: 0.97, 20: 0.95, 30: 0.96, 50: 1.0}) == 30
    assert boundaries.early_boundary({0: 0.5, 10: 0.9, 50: 1.0}) == 50
    assert boundaries.late_boundary({0: 9.0, 10: 4.1, 20: 4.0, 30: 3.0}, all_large=3.0, spread=1.0) == 20
    assert boundaries.late_boundary({0: 1.0, 10: 4.0, 20: 3.0}, all_large=3.0, spread=1.0) == 0
    # A difference no larger than its spread, above or below, decides nothing.
    for undecided in ({0: 4.0, 10: 4.0}, {0: 2.0, 10: 3.0}, {0: 3.0, 10: 9.0}):
        assert boundaries.late_boundary(undecided, all_large=3.0, spread=1.0) is None
    assert boundaries.late_boundary({0: 3.0, 10: 3.0}, all_large=3.0, spread=0.0) is None
    # Standard deviations fall with the root of the number: half as large with four times as many prompts.
    assert boundaries.prompts_needed(8, 1.0, 2.0) == boundaries.prompts_needed(8, -1.0, 2.0) == 32
    assert boundaries.prompts_needed(8, 1.0, 1.0) == 9
    assert boundaries.prompts_needed(8, 0.0, 1.0) is boundaries.prompts_needed(1, 1.0, 0.0) is None
    family = manifests.PIPELINE
    assert boundaries.family_boundaries(family, 50) == (20, 10)
    assert boundaries.family_boundaries(dataclasses.replace(family, early=1.0, late=0.0), 10) == (10, 0)
    sigmas = [1.0, 0.9, 0.8, 0.5]
    assert boundaries.by_sigma("L1 S2 L1", sigmas) == "L@0.9500 S@0.6500 L"
    assert boundaries.by_sigma("L4", sigmas) == "L4"
    assert boundaries.by_sigma("L1 S1", [0.50000002, 0.50000001]) == "L@0.500000015 S"
    assert boundaries.proxy_boundaries([9, 5, 2, 1, 1, 2, 3, 5]) == (2, 2)
    assert boundaries.proxy_boundaries([1, 1, 1]) == (0, 0)
    assert boundaries.three_stages(10, 4, 2, PAIR) == "L4 S4 L2"
    assert boundaries.three_stages(10, 0, 0, PAIR) == "S10"
    assert boundaries.three_stages(10, 6, 4, PAIR) == boundaries.three_stages(10, 10, 0, PAIR) == "L10"


def test_constants_are_measured_of_every_model_and_an_experts_are_its_models() -> None:
    def alone(letter: str) -> Program:
        return compile_program(
            schedule=StageSchedule.runs(f"{letter}{STEPS}"),
            models=by_letter(closed_form.MODELS),
            solver="unipc",
            grid=sigma_grid(SigmaGrid(kind="shifted", shift=3.0), "unipc", STEPS, 30),
            latent_shape=closed_form.LATENT,
            guidance=5.0,
            batched=False,
        )

    def measured(letters: str) -> Divergence:
        made = StepTrajectory(
            programs={letter: alone(letter) for letter in letters},
            engines=closed_form.engines(),
            device=HostDevice(),
            conditions=conditions(),
        )
        return measure(made, Start(latents=random(1)), letters[0] * STEPS, lambda: None)

    every = measured("LSD")
    assert set(every.caches["magcache"]) == {"large", "small", "duo_high", "duo_low"}
    assert every.caches["magcache"]["duo_high"] == every.caches["magcache"]["duo_low"]
    # The distances are those of the first two, and what one model shows does not depend on the others.
    pair = measured("LS")
    assert every.distances == pair.distances
    assert {name: every.caches["magcache"][name] for name in ("large", "small")} == pair.caches["magcache"]
    assert measured("L").distances == {}
    assert measured("L").caches["magcache"]["large"] == pair.caches["magcache"]["large"]


@pytest.mark.parametrize("letters", ["S", "LSD"])
def test_the_first_two_models_are_calibrated(letters: str, tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "b")
    models = {**manifests.PAIR, "D": Model(name="draft", letter="D", components=("draft",))}
    manifest = manifest.model_copy(update={"models": tuple(models[letter] for letter in letters)})
    if len(letters) == 1:
        with pytest.raises(UsageError, match=r"This bundle has one model, S \(small\), but fb-calibrate looks for"):
            pair_of(manifest)
    else:
        assert pair_of(manifest) == PAIR


def test_frechet_distance() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=(40, 3)), generator.normal(1.0, 2.0, size=(40, 3))
    split = features.frechet([a[:10], a[10:]], [b[:25], b[25:]])
    # tr (C_a C_b)^(1/2) by the eigenvalues of the product itself.
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shared = np.sqrt(np.linalg.eigvals(one @ other)).sum().real
    whole = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(one) + np.trace(other) - 2 * shared
    assert split == pytest.approx(float(whole), rel=1e-9)
    # Fewer samples than twice the dimensions: variances alone.
    few, others = a[:5], b[:5]
    expected = ((few.mean(0) - others.mean(0)) ** 2 + (few.std(0) - others.std(0)) ** 2).sum()
    assert features.frechet([few], [others]) == pytest.approx(float(expected))
    assert features.frechet([few], [few]) == 0.0
    # One prompt can only be drawn again.
    assert features.frechet_spreads([few], [a[5:10]], [others]) == pytest.approx((0.0, 0.0), abs=1e-9)
    pair, reference = [few, a[5:10]], [others, b[5:10]]
    noise, none = features.frechet_spreads(pair, pair, reference)
    assert noise > 0
    assert none == 0.0
    # What is the same in both distances is no difference: a shift along an axis in which nothing varies.
    here, there = ([np.pad(each, ((0, 0), (0, 1))) for each in group] for group in (pair, reference))
    moved = [each + np.array([0, 0, 0, 2.0]) for each in here]
    assert features.frechet(moved, there) == pytest.approx(features.frechet(here, there) + 4.0)
    assert features.frechet_spreads(here, moved, there) == pytest.approx((noise, 0.0), abs=1e-9)


@pytest.mark.parametrize("prompts", [1, 4, 64])
def test_a_late_stage_is_left_out_only_where_prompts_tell_it(prompts: int) -> None:
    generator = np.random.default_rng(0)

    def drawn(mean: float, spread: float = 1.0) -> list[npt.NDArray[np.float64]]:
        return list(generator.normal(mean, spread, size=(prompts, 1, 2)))

    def late(worse: Callable[[int], float]) -> list[Late]:
        counts, noise = [0, 2, 4, 6], drawn(0.0, 0.2)
        return [
            Late(
                similarities=dict.fromkeys(counts, 1.0),
                features={count: one.large + worse(count) * (1 + noise[index]) for count in counts},
            )
            for index, one in enumerate(measured)
        ]

    measured = [
        Early(similarities={}, large=one, reference=other, latents=np.zeros(1, np.float32))
        for one, other in zip(drawn(1.0), drawn(0.0), strict=True)
    ]
    # Each large step at the end brings the results nearer to all-large sampling's, until four of them are enough.
    test = choose_late(measured, late(lambda count: max(0.0, 4.0 - count)), "latent", family=5)
    assert (test.decided, test.chosen) == ((True, 4) if prompts > 1 else (False, 5))
    # Without any difference no number of prompts decides.
    test = choose_late(measured, late(lambda _: 0.0), "latent", family=5)
    assert (test.decided, test.chosen, test.prompts_needed) == (False, 5, None)
    # The small model's end brings them nearer to the reference.
    test = choose_late(measured, late(lambda count: -1.0 if count < 6 else 0.0), "latent", family=5)
    if prompts == 64:
        assert (test.decided, test.chosen, test.prompts_needed) == (True, 0, None)


def test_no_early_stage_by_the_divergence_alone_becomes_the_familys() -> None:
    assert boundaries.by_proxy((3, 2), 4, 10) == (3, 2)
    assert boundaries.by_proxy((0, 2), 4, 10) == (4, 2)
    assert boundaries.by_proxy((0, 8), 4, 10) == (2, 8)


def test_schedules_scale_with_the_steps() -> None:
    assert str(StageSchedule.scaled("L4 S4 L2", 10)) == "L4 S4 L2"
    assert str(StageSchedule.scaled("L4 S4 L2", 50)) == "L20 S20 L10"
    assert str(StageSchedule.scaled("L4 S4 L2", 5)) == "L2 S2 L1"
    assert str(StageSchedule.scaled("L4 S4 L2", 1)) == "S1"
    with pytest.raises(UsageError, match="0 steps were asked for"):
        StageSchedule.scaled("L1", 0)


def test_every_prompt_has_noise_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text('a\n# b\n{"prompt": "c", "seed": 5}\nd\n{"prompt": "e", "seed": "x"}\n')
    lines = read_prompts(path, Job(prompt="", seed=5))
    assert [(line.number, line.job and line.job.seed) for line in lines] == [(1, 5), (3, 5), (4, 8), (5, None)]


def test_prompts_may_come_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a cat\na dog\n",))
    writer.start()
    lines = read_prompts(pipe, Job(prompt="", seed=5))
    writer.join()
    assert [(line.job.prompt, line.job.seed) for line in lines if line.job is not None] == [("a cat", 5), ("a dog", 6)]


def evidence_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("calibration-*.json"))


def test_a_calibration_becomes_part_of_the_bundle(tmp_path: Path) -> None:
    manifests.write(tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    job = Job(prompt="x", steps=10)
    assert compile_job(job, bundle.manifest).schedule == "L4 S4 L2"
    add_calibration(bundle, {"why": "first"}, runs="L1 S3 L1")
    constants = {"magcache": {LARGE: [1.0, 0.9], SMALL: [1.0, 0.5]}}
    again = add_calibration(bundle, {"caches": {"magcache": {}}}, caches=constants)
    read = open_bundle(tmp_path / "b")
    assert read.manifest == again.manifest
    read.verify()
    assert json.loads((read.folder / "calibration-1.json").read_text()) == {"number": 1, "why": "first"}
    assert evidence_files(read.folder) == ["calibration-1.json", "calibration-2.json"]
    assert compile_job(job, read.manifest).schedule == "L2 S6 L2"
    assert compile_job(Job(prompt="x", steps=10, schedule="LSL"), read.manifest).schedule == "L4 S4 L2"
    assert read.manifest.id == bundle.manifest.id
    # What a killed calibration leaves is no harm; evidence that the manifest names has to be whole.
    leave(read.folder / "calibration-3.json")
    (read.folder / "calibration-3.json").write_text("{}")
    read.verify()
    # A bundle built anew from the same parts keeps it, another does not.
    (tmp_path / "new").mkdir()
    assert carry_calibration(read, bundle.manifest, tmp_path / "new") == read.manifest
    assert evidence_files(tmp_path / "new") == ["calibration-1.json", "calibration-2.json"]
    other = bundle.manifest.model_copy(update={"id": "0" * 16})
    assert carry_calibration(read, other, tmp_path / "new") == other
    (read.folder / "calibration-1.json").write_text("{}")
    with pytest.raises(FlowBlendingError, match=r"calibration-1\.json has 2 bytes"):
        read.verify()
    assert carry_calibration(read, bundle.manifest, tmp_path / "new") == bundle.manifest


def test_evidence_stays_while_something_rests_on_it_and_editions_are_what_they_stand_for(tmp_path: Path) -> None:
    manifests.write(tmp_path / "b")
    built = open_bundle(tmp_path / "b")
    constants = {LARGE: [1.0, 0.9], SMALL: [1.0, 0.5]}
    editions = [built.manifest.edition]

    def add(content: dict[str, object], **found: Any) -> list[str]:
        now = add_calibration(built, content, **found)
        assert open_bundle(tmp_path / "b").manifest == now.manifest
        now.verify()
        editions.append(now.manifest.edition)
        return evidence_files(tmp_path / "b")

    assert add({"why": "a"}, runs="L1 S3 L1") == ["calibration-1.json"]
    manifest = (tmp_path / "b" / "manifest.json").read_bytes()
    # The same again is nothing new.
    assert add({"why": "a"}, runs="L1 S3 L1") == ["calibration-1.json"]
    assert (tmp_path / "b" / "manifest.json").read_bytes() == manifest
    assert add({"caches": {"m": {}, "e": {}}}, caches={"m": constants, "e": constants}) == [
        "calibration-1.json",
        "calibration-2.json",
    ]
    # Another schedule takes the place of the first, whose evidence nothing rests on; likewise constants, of all caches.
    assert add({"why": "b"}, runs="L2 S2 L1") == ["calibration-2.json", "calibration-3.json"]
    other = {LARGE: [1.0, 0.8], SMALL: [1.0, 0.5]}
    names = ["calibration-2.json", "calibration-3.json", "calibration-4.json"]
    assert add({"caches": {"m": {}}}, caches={"m": other}) == names
    assert add({"caches": {"e": {}}, "n": 2}, caches={"e": other}) == [
        "calibration-3.json",
        "calibration-4.json",
        "calibration-5.json",
    ]
    # A name is never used twice, as long as the bundle is calibrated.
    assert add({"why": "a"}, runs="L1 S3 L1")[-1] == "calibration-6.json"
    assert len(set(editions)) == len(editions) - 1
    assert editions[1] == editions[2]
    # Taken back, the bundle is what was built, and what other defaults made has other names.
    (tmp_path / "b" / "calibration-9.json").write_text("{}")  # of a killed calibration
    bare = remove_calibration(built)
    assert bare.manifest == open_bundle(tmp_path / "b").manifest == built.manifest
    assert evidence_files(tmp_path / "b") == []
    assert add({"why": "c"}, runs="L1 S2 L2") == ["calibration-1.json"]
    assert editions[-1] not in editions[:-1]
    assert add({"why": "d"}, runs="L1 S3 L1") == ["calibration-2.json"]
    assert editions[-1] == editions[1]  # of the same defaults come the same videos
    assert remove_calibration(bare).manifest.edition == editions[0]
    assert remove_calibration(bare).manifest == built.manifest


def test_a_schedule_may_be_kept_by_noise_levels(tmp_path: Path) -> None:
    manifests.write(tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    job = Job(prompt="x", steps=50)
    sigmas = [step.sigma for step in compile_job(job, bundle.manifest).steps]
    runs = boundaries.by_sigma("L14 S26 L10", sigmas)
    manifest = add_calibration(bundle, {}, runs=runs).manifest
    assert compile_job(job, manifest).schedule == "L14 S26 L10"
    # As the same stages that a user asks for, at other steps, shifts and solvers.
    for steps, shift, solver in ((50, 5.0, None), (20, None, "euler"), (33, 1.0, "dpm++")):
        other = Job(prompt="x", steps=steps, shift=shift, solver=solver)
        asked = Job(prompt="x", steps=steps, shift=shift, solver=solver, schedule=runs)
        assert compile_job(other, manifest).schedule == compile_job(asked, manifest).schedule
        assert passed_over(other, manifest) is None
    # Where no step is left for a stage it is left out; asked for, it is refused.
    assert compile_job(Job(prompt="x", steps=2, shift=20.0), manifest).schedule == "L2"
    with pytest.raises(UsageError, match="none is left for stage 2"):
        compile_job(Job(prompt="x", steps=2, shift=20.0, schedule=runs), manifest)
    # Runs hold for the shift that they were measured at.
    by_steps = add_calibration(bundle, {}, runs="L14 S26 L10").manifest
    assert compile_job(Job(prompt="x", steps=50, shift=5.0), by_steps).schedule == "L20 S20 L10"
    assert passed_over(Job(prompt="x", steps=50, shift=5.0), by_steps) is not None


def test_magcache_takes_the_constants_of_the_bundle(tmp_path: Path) -> None:
    manifests.write(tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    job = Job(prompt="x", steps=10, schedule="L10", cache="magcache")
    with pytest.raises(UsageError, match="measure its own with fb-calibrate BUNDLE --prompts FILE --cache magcache"):
        compile_job(job, bundle.manifest)
    ratios = [1.0, 0.99, 0.99, 0.99, 0.97, 0.97, 0.97, 0.9, 0.99, 0.8]
    manifest = add_calibration(bundle, {}, caches={"magcache": {LARGE: ratios, SMALL: ratios}}).manifest
    computed = "".join(
        "1" if step.instructions[0].__class__.__name__ == "Run" else "0" for step in compile_job(job, manifest).steps
    )
    # |1 - product| from step 3 on: .01, .03, .08 (+ .0494), .0968 ..., by hand: at most 0.12 and 4 in a row.
    expected, product, error, skipped = "11", 1.0, 0.0, 0
    for each in ratios[2:]:
        product, skipped = product * each, skipped + 1
        error += abs(1 - product)
        skip = error < 0.12 and skipped <= 4
        expected += "01"[not skip]
        if not skip:
            product, error, skipped = 1.0, 0.0, 0
    assert computed == expected
    assert "0" in computed[2:]
    assert all(len(each.ratios) == 50 for each in CONSTANTS.values())


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``fb-calibrate`` in this process: the exit code, and what it told."""
    from flowblending.runtime.calibrate import cli

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(each) for each in arguments])
        return int(exit_.value.code or 0), "".join(capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("lines", "options", "code", "message"),
    [
        (None, (), 1, "Cannot read the prompt file"),
        ("\n", (), 2, "holds no prompt; write one prompt a line"),
        ('a\n{"prompt": ""}\n', (), 2, "Line 2 of"),
        (
            'a\n{"prompt": "b", "steps": 7}\n',
            (),
            2,
            "asks for 7 steps of unipc with shift 3 and guidance 5 for 64x32, 9 frames, but the first line for",
        ),
        ("a\nb\n", ("--steps", "2"), 2, "2 steps were asked for, but a schedule of three stages needs at least 3"),
        ("a\nb\n", ("--steps", "0"), 2, "--steps is 0, but a whole number"),
        ("a\nb\n", ("--threshold", "1.5"), 2, "The threshold is 1.5"),
        ("a\nb\n", ("--parts", "1"), 2, "1 parts were asked for"),
        ("a\nb\n", ("--cache", "magcache", "--proxy-only"), 2, "--cache measures constants and chooses no schedule"),
        ("a\nb\n", ("--budget", "0.05"), 2, "all-small sampling costs 10.0%; give --budget at least that"),
        ("a\nb\n", ("--budget", "60"), 2, "The budget is 60, but a share above 0, up to 1, or seconds were expected"),
        ("a\nb\n", ("--budget", "soon"), 2, "The budget is soon, but a share"),
        ("a\nb\n", ("--budget", "nans"), 2, "The budget is nans, but a share"),
        ("a\nb\n", ("--budget", "9s", "--device", "cpu"), 2, "large was not measured on this machine yet; run fb-run"),
        ("a\nb\n", ("--switches", "0"), 2, "0 switches were allowed"),
        ("a\n", (), 2, "prompts.txt holds 1 prompt, which has no spread to compare a difference with; give at least 2"),
        ("a\n", ("--budget", "0.5"), 2, "holds 1 prompt, which has no spread"),
        ("a\nb\n", ("--show",), 2, "--prompts does nothing for --show, which measures nothing; leave it out"),
        (
            "a\nb\n",
            ("--no-apply", "--by", "sigma"),
            2,
            "--by does nothing for --no-apply, which keeps nothing; leave it out",
        ),
        ("a\nb\n", ("--switches", "2"), 2, "--switches does nothing for schedules without a --budget; leave it out"),
        ("a\nb\n", ("--budget", "0.6", "--threshold", "0.1"), 2, "--threshold does nothing for --budget; leave it out"),
        ("a\nb\n", ("--proxy-only", "--similarity", "clip:x"), 2, "--similarity does nothing for --proxy-only"),
        ('{"prompt": "a", "schedule": "L2 S2"}\n', (), 2, "sets its schedule, which fb-calibrate is to find out"),
        ("a\nb\n", ("--plot", "none/x.png"), 1, "Cannot write none/x.png"),
        ("a\nb\n", ("--similarity", "dino", "--device", "cpu"), 2, "The features 'dino' are unknown; give latent, "),
        (
            "a\nb\n",
            ("--distance", "nowhere:f", "--device", "cpu"),
            2,
            "nowhere:f cannot be imported (ModuleNotFoundError",
        ),
    ],
)
def test_what_cannot_be_calibrated(
    tmp_path: Path,
    main: Callable[..., tuple[int, str]],
    lines: str | None,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    manifests.write(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    if lines is not None:
        (tmp_path / "prompts.txt").write_text(lines)
    plot = () if "--plot" in options else ("--plot", tmp_path / "x.png")
    found, errors = main(tmp_path / "b", "--prompts", tmp_path / "prompts.txt", *options, *plot)
    assert found == code
    (error,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert message in error
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert not (tmp_path / "b.work").exists()


def test_a_distilled_model_cannot_be_calibrated(tmp_path: Path, main: Callable[..., tuple[int, str]]) -> None:
    manifest = manifests.write(tmp_path / "b")
    large, small = manifest.models
    distilled = small.model_copy(update={"sampling": ModelSampling(guidance=1.0)})
    changed = manifest.model_copy(update={"models": (large, distilled)})
    (tmp_path / "b" / "manifest.json").write_text(changed.model_dump_json())
    (tmp_path / "prompts.txt").write_text("a\n")
    code, errors = main(tmp_path / "b", "--prompts", tmp_path / "prompts.txt", "--no-plot")
    assert code == 2
    assert "The bundle's small model has timesteps or a guidance scale of its own, but fb-calibrate compares" in errors
    assert not (tmp_path / "b.work").exists()


@pytest.mark.slow
def test_a_bundle_is_calibrated_and_run(
    build: Build, tmp_path: Path, main: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(build("wan").folder, tmp_path / "wan")
    (tmp_path / "prompts.txt").write_text('a cat\n{"prompt": "rain", "seed": 3}\n')
    (tmp_path / "look.py").write_text(
        "def mean(frames):\n    assert frames.dtype.name == 'uint8' and frames.shape[1:] == (48, 32, 3)\n"
        "    return frames.reshape(len(frames), -1).mean(1, keepdims=True) + 1\n"
    )
    options = ("wan", "--prompts", "prompts.txt", "--steps", "4", "--device", "cpu")
    named = ("--similarity", "look:mean", "--distance", "look:mean", "--parts", "2")
    code, told = main(*options, *named, "--blended")
    assert code == 0, told
    bundle = open_bundle(tmp_path / "wan")
    bundle.verify()
    evidence = json.loads((tmp_path / "wan" / "calibration-1.json").read_text())
    assert (tmp_path / "calibration.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # Positive features of one dimension have a cosine of 1: the small model takes over at once.
    assert evidence["early"]["chosen"] == 0
    assert [each["mean"] for each in evidence["early"]["tried"]] == pytest.approx([1.0] * 3)
    assert compile_job(Job(prompt="x", steps=4), bundle.manifest).schedule == evidence["schedule"]
    assert "fb-run takes it from now on" in told

    # A second run finds what was measured, and adds nothing to it or to the bundle.
    folder = tmp_path / "wan"
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "wan.work").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(*options, *named, "--blended", "--no-plot")[0] == 0
    # Nor does one that is only to look, at whatever; the bundle may be another's.
    for look in (("--proxy-only",), ("--cache", "magcache"), ("--budget", "0.75", "--proxy-only")):
        code, told = main(*options, *look, "--no-apply", *["--no-plot"] * ("--cache" not in look))
        assert code == 0, told
        assert "the bundle is as it was" in told
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert evidence["schedule"] in main("wan", "--show")[1]
    # By sigma, with what the proxy finds; the family's early boundary where that is none.
    assert main(*options, "--proxy-only", "--no-plot", "--by", "sigma")[0] == 0
    found = json.loads((folder / "calibration-2.json").read_text())
    manifest = open_bundle(folder).manifest
    assert manifest.calibration is not None
    assert manifest.calibration.schedule is not None
    assert manifest.calibration.schedule.runs == boundaries.by_sigma(found["schedule"], found["sigmas"])
    assert compile_job(Job(prompt="x", steps=4), manifest).schedule == found["schedule"]
    assert found["schedule"].startswith("L")
    assert main(*options, "--cache", "magcache", "--cache", "easycache")[0] == 0
    assert evidence_files(folder) == ["calibration-2.json", "calibration-3.json"]
    code, told = main("wan", "--show")
    assert "constants of magcache" in told
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "wan.work").iterdir()} == measured

    # Under a budget, of operations and then of time; the second finds what the first measured.
    blocks = (*options, "--parts", "2")
    code, told = main(*blocks, "--budget", "0.75")
    assert code == 0, told
    found = json.loads((folder / "calibration-4.json").read_text())
    assert found["early"] is None
    assert found["budget"]["chosen"] == found["schedule"]
    assert found["budget"]["three_stages"] in [each["schedule"] for each in found["budget"]["tried"]]
    assert [each["first_step"] for each in found["budget"]["blocks"]] == [1, 3]
    program = compile_job(Job(prompt="x", steps=4), open_bundle(folder).manifest)
    assert program.schedule == found["schedule"]
    assert sum(step.model == SMALL for step in program.steps) == found["budget"]["small_steps"]
    assert cost_of(program, bundle.manifest).bound >= 1 / 0.75
    # fb-run's videos are as far from one another; and it measures what a budget in seconds needs.
    made = []
    for runs in (found["schedule"], "L4"):
        with pytest.raises(SystemExit):
            cli.main(["wan", "--prompt=rain", "--seed=3", "--steps=4", f"--schedule={runs}", f"--out={runs}.npy"])
        made.append(np.load(tmp_path / f"{runs}.npy").astype(float) / 255)
    (tried,) = (each for each in found["budget"]["tried"] if each["schedule"] == found["schedule"])
    assert tried["prompts"][1] == pytest.approx(-10 * np.log10(np.mean((made[0] - made[1]) ** 2)), abs=0.01)
    code, told = main(*blocks, "--budget", "1000s", "--no-plot")
    assert code == 0, told
    assert json.loads((folder / "calibration-5.json").read_text())["schedule"] == "L4"
    assert evidence_files(folder) == ["calibration-3.json", "calibration-5.json"]
    manifest = open_bundle(folder).manifest
    job = Job(prompt="x", steps=4, schedule="L4", cache="magcache:1000,9")
    assert compile_job(job, manifest).calls(LARGE) == 2  # the first step's two branches; the rest is left out
    code, told = main("wan", "--reset")
    assert code == 0
    assert "the schedule L4 and the constants of magcache and the constants of easycache taken back" in told
    assert open_bundle(folder).manifest == build("wan").manifest
    open_bundle(folder).verify()
