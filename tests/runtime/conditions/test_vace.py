"""The control of VACE, against the methods of diffusers' pipeline that make it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanVACEPipeline
from PIL import Image

from benchmarks.checkpoints import wan_vace_transformer, wan_vae
from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.references import Referenced, with_references
from flowblending.runtime.conditions.vace import (
    check_frames,
    control,
    frames_given,
    free_frames,
    given,
    mask_latents,
    read_scales,
)
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.media.reference_image import check_reference, on_white
from flowblending.runtime.options import Job
from tests.support import manifests

pytestmark = pytest.mark.slow

FACTORS = (4, 8)
SIZE = (48, 32)
FRAMES = 9
RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 256, (FRAMES, SIZE[1], SIZE[0], 3)).astype(np.uint8)
MASK = RANDOM.integers(0, 256, (FRAMES, SIZE[1], SIZE[0])).astype(np.uint8)
SHAPES = ((50, 90), (33, 17))
REFERENCES = [RANDOM.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]
"""Larger than the video and smaller, of another shape, and not of whole latent pixels."""

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(3, latents_mean=[0.1] * 16, latents_std=[1.7] * 16),
        scheduler=UniPCMultistepScheduler(),
        transformer=wan_vace_transformer(1),
    )


@pytest.fixture(scope="module")
def encode(pipe: Any) -> Callable[[Floats], Floats]:
    """What the bundle's encoder does, by the stock VAE."""

    def encode(values: Floats) -> Floats:
        with torch.no_grad():
            latents = pipe.vae.encode(torch.from_numpy(values)).latent_dist.mode()
        return np.asarray(((latents - 0.1) / 1.7).numpy())

    return encode


def reference(pipe: Any, video: Any, mask: Any, images: Any) -> Floats:
    """As WanVACEPipeline.__call__ does it."""
    with torch.no_grad():
        video, mask, images = pipe.preprocess_conditions(
            video, mask, images, 1, SIZE[1], SIZE[0], FRAMES, torch.float32, torch.device("cpu")
        )
        latents = pipe.prepare_video_latents(video, mask, images, None, torch.device("cpu"))
        return np.asarray(torch.cat([latents, pipe.prepare_masks(mask, images)], dim=1).numpy())


def pictures(frames: Iterable[npt.NDArray[np.uint8]]) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


@pytest.mark.parametrize(("video", "mask", "images"), list(itertools.product((True, False), (True, False), (0, 2))))
def test_it_is_the_pipelines(
    pipe: Any, encode: Callable[[Floats], Floats], video: bool, mask: bool, images: int
) -> None:
    if mask and not video:
        return  # a mask of nothing
    values = given(VIDEO, MASK if mask else None) if video else free_frames(FRAMES, *SIZE)
    shown = [on_white(each, SIZE, FACTORS[1]) for each in REFERENCES[:images]]
    found = control(*values, shown, encode, FACTORS)
    expected = reference(
        pipe,
        pictures(VIDEO) if video else None,
        pictures(MASK) if mask else None,
        pictures(REFERENCES[:images]) if images else None,
    )
    assert found.shape == expected.shape == (1, 96, 3 + images, 4, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # The mask is not computed with, but moved.
    np.testing.assert_array_equal(found[:, 32:], expected[:, 32:])


def test_first_and_last_frame(pipe: Any, encode: Callable[[Floats], Floats]) -> None:
    """As VACE's user guide has it: a mask that is black where a frame is given."""
    mask = np.full_like(MASK, 255)
    mask[0] = mask[-1] = 0
    values, places = given(VIDEO, mask)
    assert [float(each.max()) for each in places[0, 0]] == [0.0] + [1.0] * (FRAMES - 2) + [0.0]
    expected = reference(pipe, pictures(VIDEO), pictures(mask), None)
    np.testing.assert_allclose(control(values, places, [], encode, FACTORS), expected, rtol=1e-5, atol=1e-5)


def image(frame: int, count: int = 1, strength: float = 1.0) -> GivenClip:
    return GivenClip(name="a.png", frames=VIDEO[:count], frame=frame, strength=strength, still=count == 1)


def test_frames_that_are_given_are_kept_and_all_others_are_grey_and_made() -> None:
    """As a video and a mask would say it."""
    values, mask = frames_given([image(8), image(0, count=3)], FRAMES, *SIZE)
    grey = np.full_like(MASK, 255)
    grey[[0, 1, 2, 8]] = 0
    video = VIDEO.copy()
    video[8] = VIDEO[0]
    expected, places = given(video, grey)
    np.testing.assert_array_equal(mask, places)
    np.testing.assert_array_equal(values, np.where(mask > 0, 0, expected))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            [image(0, strength=0.5)],
            "has a strength of 0.5, but a frame that is given to these models stays whole",
        ),
        ([image(0, count=3), image(2)], "Two images are given for frame 2, the second a.png"),
        ([image(9)], "a.png is given for frame 9, but the video has 9 frames"),
    ],
)
def test_frames_that_cannot_be_given(images: list[GivenClip], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_frames(images, FRAMES)


@pytest.mark.parametrize("picture", [*SHAPES, (8, 200), (200, 9), (32, 48)])
@pytest.mark.parametrize("size", [SIZE, (832, 480)])
def test_references_lie_on_white_as_in_the_pipeline(pipe: Any, picture: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = RANDOM.integers(0, 256, (*picture, 3)).astype(np.uint8)
    _, _, ((expected,),) = pipe.preprocess_conditions(
        None, None, [Image.fromarray(pixels)], 1, size[1], size[0], FRAMES, torch.float32, torch.device("cpu")
    )
    np.testing.assert_allclose(on_white(pixels, size, FACTORS[1]), expected.numpy(), atol=2e-5)


def test_references_are_latent_frames_before_the_video_s_own(tmp_path: Path) -> None:
    """Noise that is given is that of the video, and theirs is the seed's; without any, all is drawn at once."""
    program = compile_job(Job(prompt="", steps=2), manifests.write(tmp_path / "bundle"))
    channels, frames, *size = program.latent_shape
    held = Referenced(program=with_references(program, 2))
    drawn, slots = held.make(None, TorchNormal(5), lambda *_: np.zeros(1, np.float32))
    assert (drawn.shape, slots) == ((1, channels, frames + 2, *size), {})
    np.testing.assert_array_equal(drawn, TorchNormal(5).normal(drawn.shape))
    own = TorchNormal(6).normal((1, *program.latent_shape))
    begun, _ = held.make(own, TorchNormal(5), lambda *_: np.zeros(1, np.float32))
    np.testing.assert_array_equal(held.own(begun), own)
    np.testing.assert_array_equal(begun[:, :, :2], TorchNormal(5).normal((1, channels, 2, *size)))


def test_references_that_are_none(tmp_path: Path) -> None:
    Image.new("RGB", (15, 90)).save(tmp_path / "thin.png")
    (tmp_path / "none.png").write_bytes(b"no image")
    for name, said in (("thin.png", "has at least 16 pixels either way"), ("none.png", "none"), ("gone.png", "gone")):
        with pytest.raises(FlowBlendingError, match=said):
            check_reference(tmp_path / name, 16)


def test_scales() -> None:
    hints = {"large": 3, "small": 1}
    found = read_scales("0.5 large=1,0.75,0.5", hints)
    assert {name: each.tolist() for name, each in found.items()} == {"large": [1.0, 0.75, 0.5], "small": [0.5]}
    assert {name: each.tolist() for name, each in read_scales("2", hints).items()} == {
        "large": [2.0] * 3,
        "small": [2.0],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("large=1,2", "has 2 numbers, but large has 3 hints"),
        ("1,2,3", "has 3 numbers, but small has 1 hints"),
        ("medium=1", "no model of this bundle, which has large, small"),
        ("much", "numbers from -100 to 100 were expected"),
        ("nan", "numbers from -100 to 100 were expected"),
        ("large=1,,1", "numbers from -100 to 100 were expected"),
    ],
)
def test_scales_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_scales(text, {"large": 3, "small": 1})


@pytest.mark.parametrize("count", [1, 5, 9, 13, 49, 81, 121])
def test_frames_of_the_mask(count: int) -> None:
    """Which frame stands for its latent frame, at lengths that people use."""
    mask = np.arange(count, dtype=np.float32).reshape(1, 1, count, 1, 1) * np.ones((1, 1, 1, 8, 8), np.float32)
    latent_frames = (count + 3) // 4
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(mask[:, 0, :, :1, :1])[None], size=(latent_frames, 1, 1), mode="nearest-exact"
    )
    np.testing.assert_array_equal(mask_latents(mask, FACTORS)[0, 0, :, 0, 0], expected.flatten().numpy())
