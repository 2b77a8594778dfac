"""The same job through every front end: equal latents and equal pixels, bit for bit."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flowblending
from flowblending import FramesEvent, LatentsEvent
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.runtime.batch.messages import Finished, MessageConsole
from flowblending.runtime.batch.ray_actors import Maker, RenderedVideo, Setting
from flowblending.runtime.batch.tasks import Task
from flowblending.runtime.batch.worker import make
from flowblending.runtime.cluster.node import NodeBundle
from flowblending.runtime.compare.sample import sample
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.serve.triton.worker import answer
from flowblending.system.console import Console
from tests.conftest import Build

pytestmark = pytest.mark.slow

JOB = Job(
    prompt="一只猫 walks 🐈 on the grass",
    negative_prompt="rain",
    seed=11,
    steps=5,
    schedule="L2 S2 L1",
    cache="mask:10111+guidance:2,1001",
)


@dataclass(frozen=True)
class Result:
    """What a front end gave: a video uint8 [F, H, W, 3], and the latents where it gives them."""

    frames: npt.NDArray[np.uint8]
    latents: npt.NDArray[np.float32] | None = None


@pytest.fixture(params=["wan", "ltx"])  # Wan decodes in chunks; LTX's decoder draws noise of its own
def bundle(build: Build, request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(build(request.param).folder)


@pytest.fixture
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    opened = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest), machine=MachineSettings(threads=1))
    yield opened
    opened.close()


def command_line(bundle: Bundle, folder: Path) -> Result:
    """fb-run in a process of its own."""
    out, latents = folder / "command.npy", folder / "command_latents.npy"
    words = [sys.executable, "-m", "flowblending.runtime.cli", bundle.folder, "--prompt", JOB.prompt]
    words += ["--negative-prompt", JOB.negative_prompt, "--seed", JOB.seed, "--steps", JOB.steps]
    words += ["--schedule", JOB.schedule, "--cache", JOB.cache, "--device", "cpu", "--threads", 1]
    words += ["--out", out, "--save-latents", latents]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=300)
    return Result(np.load(out), np.load(latents))


def python_api(bundle: Bundle, _folder: Path) -> Result:
    """Iterating over a generation."""
    with flowblending.open(bundle.folder, device="cpu", threads=1) as sampler:
        events = list(
            sampler.generate(
                JOB.prompt,
                negative_prompt=JOB.negative_prompt,
                seed=JOB.seed,
                steps=JOB.steps,
                schedule=JOB.schedule,
                cache=JOB.cache,
            )
        )
        (latents,) = (event.latents.numpy() for event in events if isinstance(event, LatentsEvent))
        return Result(
            np.concatenate([event.images() for event in events if isinstance(event, FramesEvent)]), latents.copy()
        )


def decoded_later(bundle: Bundle, _folder: Path) -> Result:
    """Sampling first, and decoding the latents afterwards."""
    with flowblending.open(bundle.folder, device="cpu", threads=1) as sampler:
        latents = sampler.generate(
            sampler.encode(JOB.prompt),
            negative_prompt=sampler.encode(JOB.negative_prompt or ""),
            seed=JOB.seed,
            steps=JOB.steps,
            schedule=JOB.schedule,
            cache=JOB.cache,
        ).latents()
        chunks = [each.images() for each in sampler.decode(latents, seed=JOB.seed) if isinstance(each, FramesEvent)]
        return Result(np.concatenate(chunks), latents.numpy().copy())


def cluster_worker(bundle: Bundle, _folder: Path) -> Result:
    """What a node of a Ray cluster does with a task."""
    setting = Setting(
        name="one",
        bundle=NodeBundle.of(bundle),
        device="cpu",
        machine=MachineSettings(threads=1),
    )
    maker = Maker(setting, None)
    maker.open()
    video = maker.make(1, JOB, "video.npy")
    assert isinstance(video, RenderedVideo)
    return Result(np.load(io.BytesIO(video.content)))


def worker_process(pipeline: Pipeline, folder: Path) -> Result:
    """What a worker process does with a task."""
    out = folder / "worker.npy"
    assert isinstance(make(pipeline, Task(number=1, job=JOB, out=out), MessageConsole(lambda _: None)), Finished)
    return Result(np.load(out))


def triton_worker(pipeline: Pipeline, _folder: Path) -> Result:
    """What the model in Triton does with a request."""
    answers: list[dict[str, Any]] = []
    arrays = {
        "prompt": np.array([JOB.prompt.encode()], np.object_),
        "negative_prompt": np.array([(JOB.negative_prompt or "").encode()], np.object_),
        "seed": np.array([JOB.seed], np.uint64),
        "steps": np.array([JOB.steps], np.int32),
        "schedule": np.array([JOB.schedule.encode()], np.object_),
        "cache": np.array([JOB.cache.encode()], np.object_),
        "result": np.array([b"frames", b"latents"], np.object_),
        "progress": np.array([True]),
    }
    answer(pipeline, arrays, lambda outputs, *, last=False: answers.append(dict(outputs)), lambda: False)  # noqa: ARG005
    assert len(answers) == 5 + 1  # the steps', and the result's
    return Result(answers[-1]["frames"], answers[-1]["latents"])


def comparison(pipeline: Pipeline, folder: Path) -> Result:
    """What fb-compare measures, writes, and decodes again from the latents that it keeps."""
    out = folder / "compared.npy"
    made = sample(pipeline, JOB, warn=print, on_step=lambda _done, _of: None, out=out)
    np.testing.assert_array_equal(np.load(out), made.frames)
    np.testing.assert_array_equal(pipeline.pixels(made.latents, JOB), made.frames)
    return Result(made.frames, made.latents)


OF_BUNDLES: tuple[Callable[[Bundle, Path], Result], ...] = (command_line, python_api, decoded_later, cluster_worker)
OF_PIPELINES: tuple[Callable[[Pipeline, Path], Result], ...] = (worker_process, triton_worker, comparison)


def test_every_front_end_makes_the_same_video(bundle: Bundle, pipeline: Pipeline, tmp_path: Path) -> None:
    latents = generate(pipeline, JOB, tmp_path / "expected.npy", Console(quiet=True)).latents
    expected = Result(np.load(tmp_path / "expected.npy"), latents)
    found = {each.__name__: each(bundle, tmp_path) for each in OF_BUNDLES}
    found |= {each.__name__: each(pipeline, tmp_path) for each in OF_PIPELINES}
    for name, result in found.items():
        np.testing.assert_array_equal(result.frames, expected.frames, err_msg=name)
        if result.latents is not None:
            np.testing.assert_array_equal(result.latents, expected.latents, err_msg=name)
    assert {name for name, result in found.items() if result.latents is None} == {"cluster_worker", "worker_process"}


def test_a_video_of_a_prompt_file_is_the_video_of_its_prompt(bundle: Bundle, tmp_path: Path) -> None:
    prompts, videos, alone = tmp_path / "prompts.txt", tmp_path / "videos", tmp_path / "alone.mp4"
    prompts.write_text(JOB.prompt + "\n")
    words = [sys.executable, "-m", "flowblending.runtime.cli", str(bundle.folder), "--steps", "3", "--threads", "1"]
    for more in (["--prompt", JOB.prompt, "--out", alone], ["--prompts", prompts, "--out", videos, "--workers", 1]):
        subprocess.run([*words, *map(str, more)], check=True, capture_output=True, timeout=300)
    (video,) = videos.glob("*.mp4")
    assert video.read_bytes() == alone.read_bytes()
