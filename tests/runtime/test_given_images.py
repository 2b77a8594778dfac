"""Images that Python gives: what is taken, what it becomes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowblending import UsageError
from flowblending.runtime.given_images import given_image, picture_of

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
FLOATS = PIXELS.astype(np.float64) / 255


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS,
        FLOATS,
        FLOATS.astype(np.float32)[None],
        torch.from_numpy(PIXELS),
        torch.from_numpy(FLOATS).permute(2, 0, 1),
        torch.from_numpy(FLOATS).permute(2, 0, 1)[None].float(),
    ],
    ids=["RGB", "RGBA", "uint8", "float64", "float32 batch", "tensor", "tensor of channels", "tensor batch"],
)
def test_every_form_of_an_image_is_the_same_image(image: Any) -> None:
    np.testing.assert_array_equal(picture_of(image, "image"), PIXELS)


def test_other_modes_of_pillows_become_colours() -> None:
    grey = Image.fromarray(PIXELS).convert("L")
    np.testing.assert_array_equal(picture_of(grey, "image"), np.asarray(grey)[..., None].repeat(3, axis=2))
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    assert not picture_of(clear, "image").any()


def test_it_comes_to_the_videos_size_as_files_do() -> None:
    clip = given_image(PIXELS, "image", (16, 8), frame=4, fit="stretch")
    expected = np.asarray(Image.fromarray(PIXELS).resize((16, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(clip.frames, expected[None])
    assert (clip.name, clip.frame, clip.strength, clip.still) == ("image", 4, 1.0, True)
    assert "stretched to 1.33 times" in clip.notes[0]
    assert "25% of it is cut off" in given_image(PIXELS, "image", (16, 8), fit="crop").notes[0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "image is 'cat.png', but an image of Pillow"),
        (5, "image is 5, but an image of Pillow"),
        (PIXELS[..., 0], r"image is ndarray \[20, 30\], but"),
        (np.stack([PIXELS, PIXELS]), r"image is ndarray \[2, 20, 30, 3\], but"),
        (PIXELS.astype(np.int64), r"image is ndarray \[20, 30, 3\], but"),
        (2 * FLOATS - 1, "image holds numbers from -1 to 1, but an image"),
        (FLOATS * 255, "image holds numbers from 0 to 255"),
        (FLOATS * np.nan, "image holds numbers from nan to nan"),
        (PIXELS[:4], "image is 30x4 pixels, but 8x8 is the least"),
        (object(), "image is <object object at"),
    ],
    ids=["path", "number", "grey", "several", "integers", "signed", "large", "undefined", "small", "object"],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        picture_of(image, "image")
