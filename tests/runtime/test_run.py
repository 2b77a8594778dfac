"""One run on formulas: its events, its files, and what is left when it ends early or badly."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Generator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.api import Generation, VideoSampler
from flowblending.runtime.compare.sample import sample
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.events import (
    EncodeEvent,
    FinishedEvent,
    FramesEvent,
    LatentsEvent,
    LoadEvent,
    RunEvent,
    SamplingEvent,
    WarningEvent,
)
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import Normal, TorchNormal
from flowblending.runtime.media.read_ahead import Chunk
from flowblending.runtime.options import Job
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import StepEvent, Trajectory
from flowblending.runtime.video_metadata import video_metadata
from flowblending.system.console import Console
from tests.support import manifests
from tests.support.toy_pipeline import FRAMES, NO_TEXT, ToyPipeline, toy_pipeline

JOB = Job(prompt="a cat", steps=4, schedule="L1 S2 L1", seed=7)
KINDS = [
    *[LoadEvent] * 2,
    SamplingEvent,
    *[StepEvent] * 4,
    LatentsEvent,
    *[LoadEvent] * 2,
    *[FramesEvent] * 3,
    FinishedEvent,
]


@pytest.fixture
def pipeline(tmp_path: Path) -> ToyPipeline:
    return toy_pipeline(tmp_path / "toy")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def a_run(pipeline: ToyPipeline, out: Path, job: Job = JOB) -> VideoRun:
    outputs = [out / "video.npy", out / "frames"]
    out.mkdir(exist_ok=True)
    return VideoRun(pipeline, job, embeddings=NO_TEXT, outputs=outputs, latents_out=out / "latents.npy")


def test_a_run_tells_what_it_does_and_writes_what_it_tells(pipeline: ToyPipeline, out: Path) -> None:
    run = a_run(pipeline, out)
    events = list(run.events())
    assert [type(event) for event in events] == KINDS
    assert [event.component for event in events if isinstance(event, LoadEvent)] == [
        "large",
        "small",
        "vae_first",
        "vae_next",
    ]
    frames = [event for event in events if isinstance(event, FramesEvent)]
    assert [event.first for event in frames] == [0, 1, 5]
    np.testing.assert_array_equal(np.load(out / "video.npy"), np.concatenate([each.images() for each in frames]))
    assert len(list((out / "frames").iterdir())) == FRAMES
    (latents,) = (event.latents.numpy() for event in events if isinstance(event, LatentsEvent))
    np.testing.assert_array_equal(np.load(out / "latents.npy"), latents)
    finished = events[-1]
    assert isinstance(finished, FinishedEvent)
    assert finished.seconds.keys() == {"loading", "large", "small", "vae", "video", "total"}
    assert sum(seconds for stage, seconds in finished.seconds.items() if stage != "total") <= finished.seconds["total"]
    assert dict(finished.sample.calls) == {"large": 4, "small": 4}
    # Again, with every engine open; a folder of images is never merged, which is told before the work.
    with pytest.raises(UsageError, match="exists already"):
        next(run.events())
    again = [type(event) for event in a_run(pipeline, out / "again").events()]
    assert again == [kind for kind in KINDS if kind is not LoadEvent]


def test_noise_that_does_not_look_like_noise_is_told_before_the_work(pipeline: ToyPipeline) -> None:
    shape = VideoRun(pipeline, JOB, embeddings=NO_TEXT).program.latent_shape
    noise = TorchNormal(1).normal((1, *shape))
    found = {}
    for name, given in (("noise", noise), ("large", noise * 3), ("shifted", noise + 2), ("constant", noise * 0)):
        events = VideoRun(pipeline, JOB, latents=given, embeddings=NO_TEXT, decode=False).events()
        early = itertools.takewhile(lambda event: isinstance(event, WarningEvent), events)
        warnings = [event.message for event in early if isinstance(event, WarningEvent)]
        found[name] = [message for message in warnings if "look like noise" in message]
        events.close()
    assert [len(messages) for messages in found.values()] == [0, 1, 1, 1]
    assert "the noise given does not look like noise: standard deviation 3" in found["large"][0]
    with pytest.warns(UserWarning, match=r"does not look like noise: .* are for fb-run --decode, or decode\(\)"):
        next(iter(VideoSampler(pipeline).generate("x", noise=noise * np.float32(3), guidance=1.0, steps=1)), None)


def test_engines_are_opened_first_where_that_is_asked_for(pipeline: ToyPipeline) -> None:
    events = VideoRun(pipeline, JOB, embeddings=NO_TEXT, open_first=True).events()
    assert [type(event) for event in itertools.islice(events, 5)] == [*[LoadEvent] * 4, SamplingEvent]
    events.close()


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_run_closed_at_any_event_leaves_nothing_half_written_and_nothing_held(
    pipeline: ToyPipeline, out: Path, number: int
) -> None:
    run = a_run(pipeline, out)
    alive = pipeline.device.alive
    events = run.events()
    for event in itertools.islice(events, number + 1):
        kind = type(event)
    assert kind is KINDS[number]
    events.close()
    del event
    assert pipeline.device.alive == alive
    written = {path.name for path in out.iterdir()}
    latents = {"latents.npy"} if number >= KINDS.index(LatentsEvent) else set()
    assert written == latents | ({"video.npy", "frames"} if kind is FinishedEvent else set())
    # And the pipeline is as good as new.
    assert isinstance(list(a_run(pipeline, out / "again").events())[-1], FinishedEvent)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, FlowBlendingError, SystemExit])
def test_what_was_there_before_stays_when_a_consumer_fails(
    pipeline: ToyPipeline, out: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    (out / "video.npy").write_bytes(b"older")

    console = Console(quiet=True)
    monkeypatch.setattr(console, "progress", Mock(side_effect=failure))
    with pytest.raises(failure):
        generate(pipeline, JOB, out / "video.npy", console)
    assert (out / "video.npy").read_bytes() == b"older"
    assert [path.name for path in out.iterdir()] == ["video.npy"]


def test_slots_and_conditions_go_before_anything_is_decoded(pipeline: ToyPipeline) -> None:
    trajectories: list[weakref.ref[Trajectory]] = []
    for event in VideoRun(pipeline, JOB, embeddings=NO_TEXT).events():
        if isinstance(event, SamplingEvent):
            trajectories.append(weakref.ref(event.trajectory))
        if isinstance(event, LatentsEvent):
            assert [each() for each in trajectories] == [None]


def test_an_option_that_does_nothing_is_told_first(pipeline: ToyPipeline, out: Path) -> None:
    job = dataclasses.replace(JOB, negative_prompt="y", guidance=1.0)
    first, *rest = a_run(pipeline, out, job).events()
    assert isinstance(first, WarningEvent)
    assert first.message == "the negative prompt does nothing, because no step has guidance above 1."
    assert not any(isinstance(event, WarningEvent) for event in rest)
    guided = dataclasses.replace(job, guidance=3.0)
    assert not any(isinstance(event, WarningEvent) for event in a_run(pipeline, out / "guided", guided).events())


def test_nothing_is_written_or_opened_of_a_job_that_is_refused(pipeline: ToyPipeline, out: Path) -> None:
    with pytest.raises(UsageError, match="steps were asked for"):
        a_run(pipeline, out, dataclasses.replace(JOB, steps=0))
    with pytest.raises(UsageError, match="unknown"):
        a_run(pipeline, out, dataclasses.replace(JOB, solver="none"))
    with pytest.raises(UsageError, match="does not fit in 64 bits"):
        list(a_run(pipeline, out, dataclasses.replace(JOB, seed=2**70)).events())
    with pytest.raises(UsageError, match=r"suffix \.gif is unknown"):
        VideoRun(pipeline, JOB, outputs=[out / "x.npy", out / "x.gif"])
    with pytest.raises(FlowBlendingError, match="is no folder"):
        VideoRun(pipeline, JOB, latents_out=out / "none" / "x.npy")
    with pytest.raises(UsageError, match="infinite or undefined numbers"):
        VideoRun(pipeline, JOB, latents=np.full((1, 16, 3, 4, 8), np.nan, np.float32))
    assert not list(out.iterdir())
    assert not pipeline.engines.is_open("large")


def test_latents_that_are_given_are_known_by_their_digest(pipeline: ToyPipeline) -> None:
    noise = TorchNormal(7).normal((1, 16, 3, 4, 8))
    given = VideoRun(pipeline, JOB, embeddings=NO_TEXT, latents=noise, decode=False)
    tensor = VideoRun(pipeline, JOB, embeddings=NO_TEXT, latents=pipeline.device.upload(noise), decode=False)
    drawn = VideoRun(pipeline, JOB, embeddings=NO_TEXT, decode=False)
    assert drawn.metadata["seed"] == "7"
    assert given.metadata == tensor.metadata
    assert "seed" not in given.metadata
    assert len(given.metadata["latents_sha256"]) == 64
    results = [final_latents(run) for run in (given, tensor, drawn)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def final_latents(run: VideoRun) -> np.ndarray:
    (latents,) = (event.latents.numpy() for event in run.events() if isinstance(event, LatentsEvent))
    return latents


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        (Precision.FP16, "build it in bf16 or fp32"),
        (Precision.BF16, "build it in fp32"),
        (Precision.FP32, "check its checkpoint and the latents"),
    ],
)
def test_a_non_finite_pixel_is_told_in_one_wording(tmp_path: Path, precision: Precision, remedy: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    told = set()
    for number, make in enumerate(("run", "generate", "iterate", "decode", "pixels", "compare")):
        pipeline = toy_pipeline(tmp_path / f"toy{number}", spoiled={"vae_next": 1}, precision=precision)
        latents = TorchNormal(7).normal((1, 16, 3, 4, 8))
        with pytest.raises(FlowBlendingError) as found:
            match make:
                case "run":
                    list(a_run(pipeline, out).events())
                case "generate":
                    generate(pipeline, JOB, out / "video.npy", Console(quiet=True))
                case "iterate":
                    list(Generation(pipeline, JOB, None, {}))
                case "decode":
                    list(VideoSampler(pipeline).decode(latents))
                case "pixels":
                    pipeline.pixels(latents, JOB)
                case "compare":
                    sample(pipeline, JOB, warn=print, on_step=lambda *_: None, out=out / "video.npy")
        told.add(str(found.value))
    assert told == {f"The VAE decoder gave a non-finite pixel from frame 6 on; it was built in {precision}: {remedy}."}
    assert [path.name for path in out.iterdir()] == ["latents.npy"]


def test_every_consumer_makes_the_same_video(pipeline: ToyPipeline, out: Path) -> None:
    expected = generate(pipeline, JOB, out / "a.npy", Console(quiet=True)).latents
    frames = np.load(out / "a.npy")
    events: list[RunEvent] = list(Generation(pipeline, JOB, None, {}))
    assert EncodeEvent not in map(type, events)  # what users of the Python API are told has not changed
    (latents,) = (event.latents.numpy() for event in events if isinstance(event, LatentsEvent))
    np.testing.assert_array_equal(latents, expected)
    api = np.concatenate([event.images() for event in events if isinstance(event, FramesEvent)])
    np.testing.assert_array_equal(api, frames)
    compared = sample(pipeline, JOB, warn=print, on_step=lambda *_: None, out=out / "b.npy")
    np.testing.assert_array_equal(compared.latents, expected)
    np.testing.assert_array_equal(compared.frames, frames)
    np.testing.assert_array_equal(np.load(out / "b.npy"), frames)
    np.testing.assert_array_equal(pipeline.pixels(expected, JOB), frames)
    decoded = [event.frames for event in VideoSampler(pipeline).decode(expected) if isinstance(event, FramesEvent)]
    np.testing.assert_array_equal(to_uint8(np.concatenate(decoded, axis=1)), frames)


@pytest.mark.parametrize(("timestep", "scale"), [(None, None), (0.3, None), (0.0, 0.0)])
def test_every_consumer_tells_the_decoder_what_the_job_says(
    pipeline: ToyPipeline, out: Path, monkeypatch: pytest.MonkeyPatch, timestep: float | None, scale: float | None
) -> None:
    manifest = pipeline.bundle.manifest
    spec = dataclasses.replace(manifest.pipeline, decode_timestep=0.05, decode_noise_scale=0.025)
    changed = manifest.model_copy(update={"pipeline": spec})
    pipeline.bundle = dataclasses.replace(pipeline.bundle, manifest=changed)
    told: list[DecodeConditioning] = []

    class Spy(Decoder):
        """Keeps what it is told."""

        def decode(self, latents: Tensor, noise: Normal, *, floats: bool = False) -> Generator[Chunk, None, None]:
            told.append(self.conditioning)
            return super().decode(latents, noise, floats=floats)

    monkeypatch.setattr("flowblending.runtime.pipeline.Decoder", Spy)
    job = dataclasses.replace(JOB, decode_timestep=timestep, decode_noise_scale=scale)
    latents = generate(pipeline, job, out / "a.npy", Console(quiet=True)).latents
    list(Generation(pipeline, job, None, {}))
    sample(pipeline, job, warn=print, on_step=lambda *_: None, out=out / "b.npy")
    pipeline.pixels(latents, job)
    list(VideoSampler(pipeline).decode(latents, decode_timestep=timestep, decode_noise_scale=scale))
    expected = DecodeConditioning(
        timestep=0.05 if timestep is None else timestep, noise_scale=0.025 if scale is None else scale
    )
    assert told == [expected] * 5
    metadata = VideoRun(pipeline, job, embeddings=NO_TEXT).metadata
    assert metadata.get("decode_timestep") == (None if timestep is None else f"{timestep:g}")


def test_the_metadata_names_what_a_video_was_made_from(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    program = compile_job(Job(prompt="x", steps=4), manifest)
    plain = video_metadata(manifest, Job(prompt="x", steps=4), program)
    given = Job(prompt="x", steps=4, video="street.mp4", mask="car.png", strength=0.5, image=("cat.png", "end.png@8"))
    more = video_metadata(manifest, given, program)
    expected = {"video": "street.mp4", "mask": "car.png", "strength": "0.5", "image": "cat.png end.png@8"}
    assert more == plain | expected
