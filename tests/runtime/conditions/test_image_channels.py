"""The first and last frame of Wan's image to video, against the method of diffusers' pipeline that encodes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline

from benchmarks.checkpoints import wan_vae
from flowblending import UsageError
from flowblending.runtime.conditions.given import Given, GivenClip
from flowblending.runtime.conditions.image_channels import check_places, image_channels, plain_image
from flowblending.runtime.media.clip import pixels

pytestmark = pytest.mark.slow

FACTORS = (4, 8)
WIDTH, HEIGHT = 48, 32
RANDOM = np.random.default_rng(0)
FIRST, LAST = RANDOM.integers(0, 256, (2, 1, HEIGHT, WIDTH, 3)).astype(np.uint8)

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(3, latents_mean=[0.1] * 16, latents_std=[1.7] * 16),
        scheduler=UniPCMultistepScheduler(),
    )


@pytest.mark.parametrize(("frames", "last"), [(9, False), (9, True), (5, False), (1, False)])
def test_they_are_the_pipelines(pipe: Any, frames: int, last: bool) -> None:
    def encode(values: Floats) -> Floats:
        with torch.no_grad():
            latents = pipe.vae.encode(torch.from_numpy(values)).latent_dist.mode()
        return np.asarray(((latents - 0.1) / 1.7).numpy())

    first = GivenClip(name="first", frames=FIRST)
    ends = [GivenClip(name="last", frames=LAST, frame=frames - 1)] if last else []
    check_places([*ends, first], frames)
    found = image_channels([*ends, first], frames, encode, FACTORS)
    with torch.no_grad():
        _, expected = pipe.prepare_latents(
            torch.from_numpy(pixels(FIRST)[:, :, 0]),
            1,
            height=HEIGHT,
            width=WIDTH,
            num_frames=frames,
            dtype=torch.float32,
            generator=torch.Generator().manual_seed(0),
            last_image=torch.from_numpy(pixels(LAST)[:, :, 0]) if last else None,
        )
    assert found.shape == tuple(expected.shape) == (1, 20, (frames - 1) // 4 + 1, 4, 6)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    # The mask is not computed with.
    np.testing.assert_array_equal(found[:, :4], expected.numpy()[:, :4])
    plain = plain_image((16, *found.shape[2:]), 4, 2 if last else 0)
    np.testing.assert_array_equal(plain[:, :4], found[:, :4])
    assert plain.shape == found.shape
    assert not plain[:, 4:].any()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "make a video from its first frame, and none was given"),
        ([Given(path=Path("end.png"), frame=8)], "from its first frame, and none was given"),
        ([Given(path=Path("cat.png"), frame=4)], "is given for frame 4, but .* as the last: .*@8"),
        ([Given(path=Path("cat.png"), strength=0.5)], "has a strength of 0.5"),
        ([Given(path=Path("a.png")), Given(path=Path("b.png"))], "2 images were given, two of them for one frame"),
        ([GivenClip(name="cats.mp4", frames=FIRST.repeat(2, 0), still=False)], "cats.mp4 is a clip"),
        ([GivenClip(name="cats.mp4", frames=FIRST, more=True)], "cats.mp4 is a clip"),
    ],
)
def test_what_is_refused(images: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_places(images, 9)


FIRST_IMAGE, LAST_IMAGE = Given(path=Path("cat.png")), Given(path=Path("end.png"), frame=8)


@pytest.mark.parametrize(
    ("images", "wanted", "said"),
    [
        ([FIRST_IMAGE, LAST_IMAGE], 1, r"end.png@8:1 is given for frame 8, .* as the first frame: --image cat\.png\.$"),
        ([FIRST_IMAGE, FIRST_IMAGE], 1, "two of them for one frame; give one for the first frame[.]$"),
        ([FIRST_IMAGE], 2, "from its first frame to its last, which was not given; give both: .* --image end.png@8"),
        ([LAST_IMAGE], 2, "from its first frame to its last, and none was given; give both, such as"),
        ([], 2, "from its first frame to its last, and none was given; give both, such as"),
    ],
)
def test_what_is_refused_by_models_that_look_at_images(images: list[Any], wanted: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_places(images, 9, wanted)


def test_what_models_that_look_at_images_take() -> None:
    check_places([FIRST_IMAGE], 9, 1)
    check_places([LAST_IMAGE, FIRST_IMAGE], 9, 2)
