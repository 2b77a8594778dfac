"""The Python API on a real bundle: the events, the arrays, and what a caller who stops early leaves behind."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import from_dlpack

import flowblending
from flowblending import (
    Embedding,
    FlowBlendingError,
    FramesEvent,
    LatentsEvent,
    LoadEvent,
    PreviewEvent,
    StepEvent,
    UsageError,
)
from flowblending.runtime.generate import generate
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.sampler.loop import Trajectory
from flowblending.system.console import Console
from tests.conftest import SEVERAL, Build
from tests.support import manifests


def test_importing_the_package_is_instant_and_loads_nothing() -> None:
    code = "import sys, flowblending; print(*sorted({'numpy', 'pydantic', 'rich', 'asyncio'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        flowblending.opne  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu', but auto, cpu or cuda was expected; give device='cpu'"),
        ({"cuda_graph": "on"}, "cuda_graph is 'on', but auto or off was expected; give cuda_graph='off'"),
        ({"threads": 0}, "threads is 0, but a whole number of threads from 1 to 4096 was expected; give threads=2"),
        ({"threads": 4097}, "threads is 4097, but a whole number of threads from 1 to 4096 was expected"),
        ({"device": "cpu", "stream": "5"}, "The stream is a str, but a CUDA stream was expected"),
        ({"device": "cpu", "stream": 5}, "A CUDA stream was given, but the bundle runs on the CPU"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    manifests.write(tmp_path / "toy")
    with pytest.raises(UsageError, match=message):
        flowblending.open(tmp_path / "toy", **options)  # type: ignore[arg-type]  # what the check is for
    with pytest.raises(FlowBlendingError, match="is no bundle"):
        flowblending.open(tmp_path)


@pytest.mark.parametrize("wrong", [None, 5, b"toy", ["toy"], "", " ", "a\0b"], ids=repr)
def test_what_names_no_folder_is_no_bundle(wrong: object) -> None:
    message = f"bundle is {wrong!r}, but the path of a bundle's folder was expected; give bundle='wan-bundle'"
    with pytest.raises(UsageError, match=re.escape(message)):
        flowblending.open(wrong)  # type: ignore[arg-type]  # what the check is for


@pytest.fixture(scope="module")
def bundle(build: Build) -> Path:
    return build("wan").folder


@pytest.fixture
def sampler(bundle: Path) -> Iterator[flowblending.VideoSampler]:
    with flowblending.open(bundle, device="cpu", threads=1) as opened:
        yield opened


@pytest.mark.slow
def test_events_come_in_order_and_equal_what_fb_run_makes(sampler: flowblending.VideoSampler, tmp_path: Path) -> None:
    generation = sampler.generate("a cat", steps=5, schedule="L2 S2 L1", seed=7)
    events = list(generation)
    kinds = [type(event) for event in events]
    frames = [event for event in events if isinstance(event, FramesEvent)]
    loads = [event.component for event in events if isinstance(event, LoadEvent)]
    assert loads == ["text_encoder", "large", "small", "vae_first", "vae_next"]
    assert kinds == [LoadEvent] * 3 + [StepEvent] * 5 + [LatentsEvent] + [LoadEvent] * 2 + [FramesEvent] * len(frames)
    steps = [(event.index, event.steps, event.model) for event in events if isinstance(event, StepEvent)]
    assert steps == list(zip(range(5), [5] * 5, ["large", "large", "small", "small", "large"], strict=True))
    assert [event.first for event in frames] == [0, 1, 5]
    assert [event.images().shape[0] for event in frames] == [1, 4, 4]
    # The same job as fb-run makes it, to the bit.
    out = tmp_path / "x.npy"
    job = Job(prompt="a cat", steps=5, schedule="L2 S2 L1", seed=7)
    latents = generate(sampler.pipeline, job, out, Console(quiet=True)).latents
    (sampled,) = (event.latents for event in events if isinstance(event, LatentsEvent))
    np.testing.assert_array_equal(sampled.numpy(), latents)
    np.testing.assert_array_equal(np.concatenate([event.images() for event in frames]), np.load(out))
    # With a cache the job is another, and the same in both.
    job = dataclasses.replace(job, cache="mask:10111+guidance:2,1001")
    sampled = sampler.generate("a cat", steps=5, schedule="L2 S2 L1", seed=7, cache=job.cache).latents()
    cached = generate(sampler.pipeline, job, tmp_path / "y.npy", Console(quiet=True)).latents
    np.testing.assert_array_equal(sampled.numpy(), cached)
    assert not np.array_equal(cached, latents)
    # Made again, nothing is loaded.
    assert [type(event) for event in generation][:1] == [StepEvent]


@pytest.mark.slow
def test_chosen_steps_show_what_they_make(sampler: flowblending.VideoSampler) -> None:
    job: dict[str, Any] = {"steps": 5, "schedule": "L2 S2 L1", "seed": 7}
    generation = sampler.generate("a cat", preview_every=2, **job)
    events = [event for event in generation if isinstance(event, StepEvent | PreviewEvent)]
    assert [type(event) for event in events] == [StepEvent, StepEvent, PreviewEvent] * 2 + [StepEvent]
    shown = [event for event in events if isinstance(event, PreviewEvent)]
    assert [event.index for event in shown] == [1, 3]
    assert {(event.picture.shape, str(event.picture.dtype)) for event in shown} == {((6, 4, 3), "uint8")}
    # Of the last step it is what the map makes of the result, and showing changes nothing.
    (last,) = [event for event in sampler.generate("a cat", preview_every=5, **job) if isinstance(event, PreviewEvent)]
    latents = sampler.generate("a cat", **job).latents().numpy()
    pictures = sampler.pipeline.preview_map()
    assert pictures is not None
    np.testing.assert_array_equal(last.picture, pictures.picture(latents[0, :, latents.shape[2] // 2]))
    with pytest.raises(UsageError, match="preview_every is 0, but"):
        sampler.generate("a cat", preview_every=0)


@pytest.mark.slow
def test_embeddings_are_encoded_once_and_come_from_anywhere(
    sampler: flowblending.VideoSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sampler.generate("a cat", negative_prompt="rain", steps=3).latents().numpy()
    cat, rain = sampler.encode("a cat"), sampler.encode("rain")
    monkeypatch.delattr(Pipeline, "embed")
    latents = sampler.generate(cat, negative_prompt=rain, steps=3).latents()
    np.testing.assert_array_equal(latents.numpy(), expected)
    # As torch would give them, and read where torch has them.
    text = from_dlpack(cat.text).clone()
    generation = sampler.generate(Embedding(text=text), negative_prompt=rain, steps=3)
    assert generation.embeddings["cond"]["text"].address == text.data_ptr()
    np.testing.assert_array_equal(from_dlpack(generation.latents()).numpy(), expected)
    with pytest.raises(UsageError, match=r"text of the prompt's embedding is float16 \[1, 512, 32\], but float32"):
        sampler.generate(Embedding(text=text.half()))


@pytest.mark.slow
def test_noise_is_read_where_it_is_and_left_as_it_is(sampler: flowblending.VideoSampler) -> None:
    shape = (1, *sampler.manifest.geometry.latent_shape)
    noise = torch.from_numpy(TorchNormal(3).normal(shape))
    before = noise.clone()
    generation = sampler.generate("a cat", steps=2, noise=noise)
    assert generation.noise is not None
    assert generation.noise.address == noise.data_ptr()
    latents = from_dlpack(generation.latents())
    assert torch.equal(noise, before)
    np.testing.assert_array_equal(latents, sampler.generate("a cat", steps=2, seed=3).latents().numpy())
    noise[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match="The noise contains infinite or undefined numbers"):
        sampler.generate("a cat", noise=noise)


@pytest.mark.slow
def test_latents_are_decoded_later_as_at_once(sampler: flowblending.VideoSampler) -> None:
    events = list(sampler.generate("a cat", steps=2))
    (latents,) = (event.latents for event in events if isinstance(event, LatentsEvent))
    at_once = [event.frames for event in events if isinstance(event, FramesEvent)]
    later = [event.frames for event in sampler.decode(from_dlpack(latents)) if isinstance(event, FramesEvent)]
    np.testing.assert_array_equal(np.concatenate(at_once, axis=1), np.concatenate(later, axis=1))


@pytest.mark.slow
def test_every_size_of_a_bundle(build: Build) -> None:
    sizes, counts = SEVERAL["wan"]
    folder = build("wan", size=sizes, frames=counts).folder
    with flowblending.open(folder, device="cpu") as sampler:
        large = sampler.generate("a cat", size="64x48", frames=13, steps=2)
        default = sampler.generate("a cat", steps=2)
        # Of two sizes by turns, on the same engines.
        pairs = list(itertools.zip_longest(large, default))
        for index, shape, pixels in ((0, (1, 16, 4, 6, 8), (13, 48, 64)), (1, (1, 16, 3, 6, 4), (9, 48, 32))):
            events = [pair[index] for pair in pairs if pair[index] is not None]
            (latents,) = (event.latents for event in events if isinstance(event, LatentsEvent))
            assert latents.shape == shape
            frames = np.concatenate([event.frames for event in events if isinstance(event, FramesEvent)], axis=1)
            assert frames.shape[1:] == pixels
            later = [event.frames for event in sampler.decode(latents) if isinstance(event, FramesEvent)]
            np.testing.assert_array_equal(np.concatenate(later, axis=1), frames)
        noise = TorchNormal(0).normal((1, 16, 4, 6, 8))
        given = sampler.generate("a cat", size="64x48", frames=13, steps=2, noise=noise).latents()
        np.testing.assert_array_equal(given.numpy(), large.latents().numpy())
        with pytest.raises(UsageError, match=r"noise is float32 \[1, 16, 4, 6, 8\], but float32 \[1, 16, 3, 6, 4\]"):
            sampler.generate("a cat", noise=noise)
        with pytest.raises(UsageError, match=r"Latents of shape \[16, 5, 6, 8\] were given, .* \[16, 2, 4, 6\] to"):
            sampler.decode(np.zeros((1, 16, 5, 6, 8), np.float32))
        with pytest.raises(UsageError, match="nearest is --size 64x64 --frames 13"):
            sampler.generate("a cat", size="128x128", frames=13)


@pytest.mark.slow
def test_a_caller_who_stops_early_leaves_nothing_behind(sampler: flowblending.VideoSampler) -> None:
    gc.collect()
    for event in sampler.generate("a cat", steps=1000, solver="euler"):
        if isinstance(event, StepEvent) and event.index == 2:
            break
    seen = list(zip(range(11), sampler.generate("a cat", steps=2), strict=False))  # amid the frames
    assert isinstance(seen[-1][1], FramesEvent)
    del seen, event
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Trajectory)]
    # And the sampler is as good as new.
    assert sampler.generate("a cat", steps=1).latents().shape == (1, *sampler.manifest.geometry.latent_shape)


@pytest.mark.slow
def test_two_generations_may_take_turns(sampler: flowblending.VideoSampler) -> None:
    alone = [sampler.generate("a cat", steps=3, seed=seed).latents().numpy().copy() for seed in (1, 2)]
    pairs = zip(*(sampler.generate("a cat", steps=3, seed=seed) for seed in (1, 2)), strict=True)
    for one, two in pairs:
        if isinstance(one, LatentsEvent) and isinstance(two, LatentsEvent):
            np.testing.assert_array_equal(one.latents.numpy(), alone[0])
            np.testing.assert_array_equal(two.latents.numpy(), alone[1])
            return
    raise AssertionError("no latents")


@pytest.mark.slow
def test_a_closed_sampler_says_so_and_its_arrays_stay(bundle: Path) -> None:
    with flowblending.open(bundle, device="cpu") as sampler:
        latents = sampler.generate("a cat", steps=1).latents()
        running = iter(sampler.generate("a cat", steps=3))
        next(running)
    sampler.close()
    assert np.isfinite(latents.numpy()).all()
    for attempt in (lambda: next(running), lambda: sampler.encode("x"), sampler.generate("x").latents):
        with pytest.raises(FlowBlendingError, match="has been closed; open it again"):
            attempt()


@pytest.mark.slow
def test_wrong_options_are_told_at_once_and_a_long_prompt_is_a_warning(sampler: flowblending.VideoSampler) -> None:
    with pytest.raises(UsageError, match="L9 add up to 9 steps"):
        sampler.generate("x", steps=3, schedule="L9")
    with pytest.raises(UsageError, match="the stage S1:t990 must lie below"):
        sampler.generate("x", steps=3, schedule="L2 S1:t990")
    assert sampler.generate("x", steps=3, schedule="l2 s1:t300:g1").program.schedule == "L2 S1:g1:t300"
    with pytest.raises(UsageError, match="The mask has 2 digits, but the run has 3 steps"):
        sampler.generate("x", steps=3, cache="mask:10")
    with pytest.raises(UsageError, match=r"seed is .*, but a whole number from 0 to 18446744073709551615 was expected"):
        sampler.generate("x", seed=2**64)
    with pytest.warns(UserWarning, match="the text encoder takes 512"):
        sampler.encode("a cat " * 400)


@pytest.mark.slow
def test_models_that_ask_for_a_mask_are_given_one(build: Build) -> None:
    with flowblending.open(build("ltx").folder, device="cpu") as sampler:
        expected = sampler.generate("a cat", steps=2).latents().numpy()
        cat = sampler.encode("a cat")
        with pytest.raises(UsageError, match=r"mask of the prompt's embedding is missing, .* give int64 \[1, 128\]"):
            sampler.generate(Embedding(text=cat.text))
        np.testing.assert_array_equal(sampler.generate(cat, steps=2).latents().numpy(), expected)
        events = list(sampler.generate(cat, steps=2))
        (latents,) = (event.latents for event in events if isinstance(event, LatentsEvent))
        at_once = [event.frames for event in events if isinstance(event, FramesEvent)]
        later = [event.frames for event in sampler.decode(latents) if isinstance(event, FramesEvent)]
        np.testing.assert_array_equal(np.concatenate(at_once, axis=1), np.concatenate(later, axis=1))


@pytest.mark.slow
def test_a_video_is_saved_as_fb_run_writes_it(sampler: flowblending.VideoSampler, bundle: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.npy", tmp_path / "theirs.npy"
    events: list[object] = []
    sampler.generate("a cat", steps=2, seed=3).save(ours, events.append)
    command = ["--prompt", "a cat", "--steps", "2", "--seed", "3", "--threads", "1", "--out", str(theirs), "--quiet"]
    subprocess.run([sys.executable, "-m", "flowblending.runtime.cli", str(bundle), *command], check=True)
    assert ours.read_bytes() == theirs.read_bytes()
    assert sum(isinstance(event, StepEvent) for event in events) == 2


@pytest.mark.slow
def test_a_video_that_cannot_be_saved_is_refused_before_work(
    sampler: flowblending.VideoSampler, tmp_path: Path
) -> None:
    events: list[object] = []
    for name in ("video.avi", f"{'x' * 300}.mp4"):
        with pytest.raises(flowblending.FlowBlendingError):
            sampler.generate("a cat", steps=2).save(tmp_path / name, events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []


def examples() -> list[str]:
    """The Python code on the page about embedding."""
    page = Path(__file__).parents[2] / "docs" / "embedding.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_examples_of_the_documentation(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wan").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for code in examples():
        compiled = compile(code, "embedding.md", "exec")
        if "cuda" not in code:
            exec(compiled, {})
            ran += 1
    assert (ran, len(examples())) == (4, 7)
