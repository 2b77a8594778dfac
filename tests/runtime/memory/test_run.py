"""Runs that keep to their plan: on a GPU of as much memory as a test says (a stand-in), and on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import flowblending
from flowblending import OutOfMemoryError, StepEvent
from flowblending.contracts.manifest import Manifest
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.cuda import CudaDevice
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.memory.needs import run_memory
from flowblending.runtime.memory.plan import RunMemory, plan_phases, plan_resident
from flowblending.runtime.options import Job
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
        with pytest.raises(OutOfMemoryError, match=r"This run takes .* with --memory phases .* are free; stop other"):
            video(sampler)
        assert not [each for each in driver.journal() if each.what == "alloc" and each.bytes in weights.values()]


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
    with pytest.raises(flowblending.UsageError, match="memory is 'much', but auto, resident or phases was expected"):
        flowblending.open(build("wan").folder, memory="much")
