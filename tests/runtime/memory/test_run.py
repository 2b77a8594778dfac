"""Runs that keep to their plan: on a GPU of as much memory as a test says (a stand-in), and on the CPU."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowblending
from flowblending import OutOfMemoryError, StepEvent
from flowblending.contracts.manifest import Manifest, VideoProfile
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.tensor import ALIGNMENT
from flowblending.engine.backends.tensorrt.library import load
from flowblending.engine.backends.tensorrt.run import TrtEngine
from flowblending.engine.backends.tensorrt.streaming import StreamingError, leave_in_host
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.calibrate.memory import check_memory
from flowblending.runtime.compare.make import make_all
from flowblending.runtime.compare.runs import Variant
from flowblending.runtime.compare.scoring import Asked
from flowblending.runtime.devices.cuda import CudaDevice
from flowblending.runtime.dry_run import graph_plan
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.memory.choose import choose_plan
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import RunMemory, plan_phases, plan_resident, plan_stream
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.console import Console
from tests.conftest import Build
from tests.runtime.test_on_a_gpu import Video, assert_equal, video
from tests.support.cuda.bundles import plans_of
from tests.support.cuda.driver import Driver

pytestmark = pytest.mark.slow

JOB = Job(prompt="a green square", negative_prompt="red", seed=3, steps=4, schedule="LSL")


def memory_of(manifest: Manifest) -> RunMemory:
    return run_memory(manifest, compile_job(JOB, manifest), texts=2, decode=True)


@pytest.fixture(scope="module")
def plans(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return plans_of(build("wan"), tmp_path_factory.mktemp("plans") / "wan")


@pytest.fixture(scope="module")
def expected(build: Build) -> Video:
    with flowblending.open(build("wan").folder, device="cpu", threads=1) as sampler:
        return video(sampler)


@pytest.mark.parametrize("memory", ["resident", "phases"])
@pytest.mark.cuda
def test_a_run_takes_what_its_plan_says(plans: Bundle, expected: Video, driver: Driver, memory: str) -> None:
    run = memory_of(plans.manifest)
    plan = plan_resident(run) if memory == "resident" else plan_phases(run, None)
    assert not plan.unknown
    CudaDevice().close()
    nothing = driver.used()
    with flowblending.open(plans.folder, device="cuda", memory=memory) as sampler, driver.measured() as peak:
        assert_equal(video(sampler), expected)
    assert 0.9 * plan.peak < peak[0] - nothing <= plan.needs


@pytest.mark.cuda
def test_what_fits_by_its_plan_fits(plans: Bundle, expected: Video, driver: Driver) -> None:
    """At every limit ``auto`` gives the same bits, down to the least that the plan allows; below, nothing is read."""
    run = memory_of(plans.manifest)
    weights = {name: each.weights for name, each in run.engines.items()}
    resident, least = plan_resident(run).needs, plan_phases(run, 0).needs
    roomy = plan_phases(run, None).needs
    assert least < roomy < resident
    for limit, larges in ((resident, 1), (resident - 1, 1), (roomy, 1), (roomy - 1, 2), (least, 2)):
        with flowblending.open(plans.folder, device="cuda") as sampler, driver.limited(limit):
            driver.journal()
            assert_equal(video(sampler), expected)
            read = [each.bytes for each in driver.journal() if each.what == "alloc"]
            assert read.count(weights["large"]) == larges, limit
            assert read.count(weights["text_encoder"]) == 1
    with flowblending.open(plans.folder, device="cuda") as sampler, driver.limited(least - 1):
        driver.journal()
        with pytest.raises(OutOfMemoryError, match=r"This run takes .* with --memory phases .* are free; build "):
            video(sampler)
        assert not [each for each in driver.journal() if each.what == "alloc" and each.bytes in weights.values()]


@pytest.fixture(scope="module")
def streaming(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return plans_of(build("wan"), tmp_path_factory.mktemp("streaming") / "wan", weight_streaming=True)


@pytest.mark.cuda
def test_weights_that_do_not_fit_are_streamed(streaming: Bundle, expected: Video, driver: Driver) -> None:
    """With the same bits, in the memory that the plan says, as many bytes in every call, down to the least."""
    run, program = memory_of(streaming.manifest), compile_job(JOB, streaming.manifest)
    phases, least = plan_phases(run, 0).needs, plan_stream(run, 0).needs
    assert least < phases
    for limit in (phases, phases - 1, (phases + least) // 2, least):
        plan = choose_plan(run, "auto", limit)
        with flowblending.open(streaming.folder, device="cuda") as sampler, driver.limited(limit):
            driver.journal()
            with driver.measured() as peak:
                nothing = driver.used()
                assert_equal(video(sampler), expected)
            assert peak[0] - nothing <= plan.needs
            calls = Counter(each.name for each in driver.journal() if each.name.startswith("stream "))
        assert plan.mode == ("phases" if limit == phases else "stream")
        assert {name.split()[1] for name in calls} == set(plan.streamed)
        for call in calls:
            _, name, size = call.split()
            # As planned, and what the library streams through.
            assert plan.streamed[name] <= int(size) <= 1.08 * plan.streamed[name] + 2 * ALIGNMENT
            assert calls[call] == (2 if name == "text_encoder" else program.calls(name))
    with (
        flowblending.open(streaming.folder, device="cuda") as sampler,
        driver.limited(least - 1),
        pytest.raises(OutOfMemoryError, match=r"This run takes .* with --memory stream .* are free; stop other"),
    ):
        video(sampler)


@pytest.mark.cuda
def test_plans_that_can_stream_are_not_captured(streaming: Bundle, plans: Bundle, driver: Driver) -> None:
    """Their calls may take memory; with all weights on the GPU, too. Nothing is complained about."""
    job = replace(JOB, schedule="LLL", steps=5, solver="euler", guidance=1.0)
    found = []
    for bundle in (plans, streaming):
        program = compile_job(job, bundle.manifest)
        with flowblending.open(bundle.folder, device="cuda") as sampler:
            driver.journal()
            found.append(video(sampler, schedule="LLL", steps=5, solver="euler", guidance=1.0))
            launches = sum(each.what == "graph" for each in driver.journal())
        told = graph_plan(program, bundle.manifest, "cuda", plan_resident(memory_of(bundle.manifest)))
        assert told is not None
        assert told.launches == launches
        assert told.why_not == ("" if bundle is plans else "calls of plans that can stream weights cannot be captured")
    assert_equal(*found)


@pytest.mark.cuda
def test_streaming_more_than_an_engine_can_is_refused_when_it_is_opened(
    streaming: Bundle, plans: Bundle, driver: Driver
) -> None:
    """What no compiler states of it is known then; nothing of it stays on the GPU, and no context keeps it."""
    device = CudaDevice()
    for bundle, words in (
        (streaming, r"cannot leave .* large \(of \d+ bytes of weights that can be streamed, \d+ w"),
        (
            plans,
            r"cannot leave .* large \(of 0 bytes of weights",
        ),
    ):
        component = bundle.manifest.components["large"]
        assert component.weights_bytes is not None
        before = driver.used()
        with device.current(), pytest.raises(OutOfMemoryError, match=words):
            TrtEngine("tensorrt", bundle.path("large"), component.spec, streamed=component.weights_bytes)
        gc.collect()
        assert driver.used() == before


@pytest.mark.cuda
def test_a_budget_is_set_before_there_is_a_context(streaming: Bundle) -> None:
    """The stand-in refuses what the documentation forbids, so that the tests above mean something."""
    trt = load("tensorrt").trt
    with CudaDevice().current():
        engine = trt.Runtime(load("tensorrt").logger).deserialize_cuda_engine(streaming.path("large").read_bytes())
        whole, half = engine.device_memory_size_v2, engine.streamable_weights_size // 2
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        with pytest.raises(StreamingError, match=r"a budget of \d+ bytes was refused"):
            leave_in_host(engine, half)
        assert engine.device_memory_size_v2 == whole
        del context
        leave_in_host(engine, half)
        through = engine.weight_streaming_scratch_memory_size
        assert engine.device_memory_size_v2 - whole == through > 0
        assert engine.weight_streaming_budget_v2 + through <= engine.streamable_weights_size - half


@pytest.mark.cuda
def test_frames_are_encoded_in_a_phase_of_their_own(build: Build, tmp_path: Path, driver: Driver) -> None:
    """In no more memory than the plan says, with which the encoder is closed before the text encoder is opened."""
    source = build("ltx-condition")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "cat.png")
    given = {"image": (str(tmp_path / "cat.png"),), "fit": "stretch"}
    with flowblending.open(source.folder, device="cpu", threads=1) as sampler:
        latents = video(sampler, **given)
    bundle = plans_of(source, tmp_path / "plans")
    with flowblending.open(bundle.folder, device="cuda") as sampler:
        program = sampler.generate("a", steps=4, schedule="LSL", **given).program  # type: ignore[arg-type]
        run = run_memory(bundle.manifest, program, texts=2, decode=True, frames=True)
        assert run.frame_encoders == ("vae_encoder",)
        weights = {name: each.weights for name, each in run.engines.items()}
        with driver.limited(plan_phases(run, 0).needs):
            driver.journal()
            assert_equal(video(sampler, **given), latents)
            read = [each.bytes for each in driver.journal() if each.what == "alloc" and each.bytes in weights.values()]
    assert read[:2] == [weights["vae_encoder"], weights["text_encoder"]]
    assert read.count(weights["vae_encoder"]) == 1


@pytest.mark.cuda
def test_tiles_are_taken_where_whole_frames_do_not_fit(
    build: Build, tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of engines that take both, if nobody has said how; with the frames that these tiles give when asked for."""
    monkeypatch.setattr("flowblending.engine.bundle.vae_tiling._SIZES", (64,))
    source = build("wan")
    low = source.manifest.profiles[0].opt
    least = low.model_copy(update={"width": 16, "height": 16, "latent_shape": (*low.latent_shape[:2], 2, 2)})
    high = low.model_copy(update={"width": 128, "height": 96, "latent_shape": (*low.latent_shape[:2], 12, 16)})
    profiles = (VideoProfile(min=least, opt=low, max=high),)
    ranged = source.manifest.model_copy(update={"profiles": profiles})
    bundle = plans_of(Bundle(folder=source.folder, manifest=ranged), tmp_path / "plans")
    job = {"size": "128x96", "schedule": "S2", "steps": 2}
    program = compile_job(Job(prompt="a", **job), bundle.manifest)  # type: ignore[arg-type]
    whole, tiled = (
        plan_phases(run_memory(bundle.manifest, program, texts=2, decode=True, tiling=tiling), 0).needs
        for tiling in (None, Tiling(width=64, height=64, overlap=32))
    )
    assert tiled < whole
    with flowblending.open(bundle.folder, device="cuda") as sampler:
        asked = video(sampler, **job, vae_tiling="64x64+32")
    with (
        flowblending.open(bundle.folder, device="cuda") as sampler,
        driver.limited(tiled),
        pytest.warns(UserWarning, match=r"decoded in tiles of 64x64\+32, "),
    ):
        assert_equal(video(sampler, **job), asked)
    with (
        flowblending.open(bundle.folder, device="cuda") as sampler,
        driver.limited(tiled),
        pytest.raises(OutOfMemoryError, match="most of it to decode"),
    ):
        video(sampler, **job, vae_tiling="off")


@pytest.mark.cuda
def test_calibrations_and_comparisons_are_refused_before_the_work(
    plans: Bundle, driver: Driver, tmp_path: Path
) -> None:
    run = memory_of(plans.manifest)
    weights = {each.weights for each in run.engines.values()}
    pipeline = Pipeline(bundle=plans, device=CudaDevice())
    # Both models have every step: the slots are a little more than a run's.
    needs = plan_resident(run).needs
    with driver.limited(needs + (1 << 16)):
        check_memory(pipeline, JOB, decodes=True)
    with driver.limited(needs - (1 << 16)):
        driver.journal()
        with pytest.raises(OutOfMemoryError, match=r"calibration keeps every engine open, which takes .*; stop other"):
            check_memory(pipeline, JOB, decodes=True)
        check_memory(pipeline, JOB, decodes=False)
    with (
        driver.limited(plan_phases(run, 0).needs // 2),
        pytest.raises(OutOfMemoryError, match=r"^LLL: This run takes "),
    ):
        make_all(
            pipeline,
            jobs=[JOB],
            variants=[Variant(schedule="LLL"), Variant(schedule="SSS")],
            asked=Asked(scorers=[], sets=[]),
            out=tmp_path,
            console=Console(quiet=True),
        )
    assert not [each for each in driver.journal() if each.what == "alloc" and each.bytes in weights]
    assert not list(tmp_path.rglob("*.mp4"))
    pipeline.close()


@pytest.mark.cuda
def test_one_video_after_the_other_by_phases(plans: Bundle, expected: Video, driver: Driver) -> None:
    """The text encoder comes again for the next prompt, in memory that the decoder has given back."""
    run = memory_of(plans.manifest)
    with (
        flowblending.open(plans.folder, device="cuda", memory="phases") as sampler,
        driver.limited(plan_phases(run, 0).needs + 8192),  # the last video's latents are there until Python lets go
    ):
        for _ in range(2):
            assert_equal(video(sampler), expected)
        embedding = sampler.encode("a green square")
        embeddings = {"negative_prompt": sampler.encode("red")}
        made = sampler.generate(embedding, **embeddings, steps=4, schedule="LSL", seed=3)  # type: ignore[arg-type]
        np.testing.assert_array_equal(made.latents().numpy(), expected[0])


@pytest.mark.parametrize("options", [{}, {"batched_guidance": True}, {"cache": "easycache:0.5,2", "steps": 8}])
def test_phases_on_the_cpu(build: Build, options: dict[str, object]) -> None:
    """With the same bits; engines are closed that a phase has no use for."""
    folder = build("wan").folder
    videos = []
    for memory in ("auto", "phases"):
        with flowblending.open(folder, device="cpu", threads=1, memory=memory) as sampler:
            videos.append(video(sampler, **options))
            if memory == "phases":
                for event in sampler.generate("a", schedule="L1 S1"):
                    if isinstance(event, StepEvent):
                        assert not any(sampler.pipeline.engines.is_open(name) for name in ("text_encoder", "vae_next"))
                assert [name for name in sampler.manifest.components if sampler.pipeline.engines.is_open(name)] == [
                    "vae_first",
                    "vae_next",
                ]
    assert_equal(*videos)


def test_a_way_that_there_is_not_is_refused(build: Build) -> None:
    with pytest.raises(flowblending.UsageError, match="is 'much', but auto, resident, phases or stream was expected"):
        flowblending.open(build("wan").folder, memory="much")
