"""From prompt to video on a GPU: a stand-in for it, on which plans run ONNX Runtime's CPU kernels.

What the library itself does there is the same as on a real GPU: cuda-core's calls, NVRTC's kernels, streams, events,
memory and TensorRT's contexts. So the videos have the CPU's bits, and the journal says what every step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import flowblending
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from tests.conftest import Build
from tests.support.cuda.bundles import plans_of
from tests.support.cuda.driver import Driver

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

JOB = Job(prompt="a green square", negative_prompt="red", seed=3, steps=4, schedule="LSL")


@pytest.fixture(scope="module")
def plans(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def make(kind: str) -> Bundle:
        if kind not in made:
            made[kind] = plans_of(build(kind), tmp_path_factory.mktemp("plans") / kind)
        return made[kind]

    return make


@pytest.fixture
def pipeline(plans: Callable[[str], Bundle]) -> Iterator[Pipeline]:
    bundle = plans("wan")
    opened = Pipeline(bundle=bundle, device=open_device("auto", bundle.manifest))
    yield opened
    opened.device.close()
    opened.close()


@pytest.mark.parametrize("kind", ["wan", "ltx", "ltx-condition"])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_video_has_the_bits_of_the_cpu(
    kind: str, at_once: bool, plans: Callable[[str], Bundle], build: Build, driver: Driver
) -> None:
    videos = []
    for bundle, device in ((build(kind), "cpu"), (plans(kind), "cuda")):
        with flowblending.open(bundle.folder, device=device, threads=1) as sampler:
            generation = sampler.generate("a green square", steps=4, schedule="LSL", seed=3, negative_prompt="red")
            if at_once and device == "cuda":
                with driver.at_once():
                    events = list(generation)
            else:
                events = list(generation)
            frames = [event.frames for event in events if isinstance(event, flowblending.FramesEvent)]
            (latents,) = [event.latents.numpy() for event in events if isinstance(event, flowblending.LatentsEvent)]
            videos.append((latents, np.concatenate(frames, axis=1)))
    np.testing.assert_array_equal(videos[1][0], videos[0][0])
    np.testing.assert_array_equal(videos[1][1], videos[0][1])
