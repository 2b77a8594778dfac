"""What is said of images and clips on a command line, and what is refused of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowblending import UsageError
from flowblending.runtime.conditions.given import Given, open_given, read_given


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("cat.png", Given(path=Path("cat.png"))),
        ("end.png@120:0.8", Given(path=Path("end.png"), frame=120, strength=0.8)),
        ("end.png@120", Given(path=Path("end.png"), frame=120)),
        ("a/b@2x.png:0.5", Given(path=Path("a/b@2x.png"), strength=0.5)),
        ("a@home/cat.png", Given(path=Path("a@home/cat.png"))),
        ("C:cat.png@0:1", Given(path=Path("C:cat.png"))),
    ],
)
def test_names(text: str, given: Given) -> None:
    assert read_given(text) == given
    assert read_given(str(given)) == given


@pytest.mark.parametrize("text", ["", "@3", "cat.png@3:0", "cat.png@3:1.5", "cat.png@3:0.0.1", "cat.png:0"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="but PATH, PATH@FRAME or PATH@FRAME:STRENGTH was expected, with a strength"):
        read_given(text)


def test_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    clip = tmp_path / "clip"
    clip.mkdir()
    for index in range(6):
        Image.fromarray(pixels).save(clip / f"{index}.png")
    image, taken = open_given([f"{tmp_path}/cat.png", f"{clip}@4:0.5"], (12, 8), 9, fit="crop")
    assert np.array_equal(image.frames, pixels[None]) and image.still and (image.frame, image.strength) == (0, 1.0)
    assert taken.frames.shape == (5, 8, 12, 3) and not taken.still and taken.more
    assert (taken.frame, taken.strength) == (4, 0.5)
    with pytest.raises(UsageError, match="is given for frame 9, but the video has 9 frames, from 0 to 8; give one of"):
        open_given([f"{tmp_path}/cat.png@9"], (12, 8), 9, fit="crop")
