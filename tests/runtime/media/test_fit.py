"""Pictures at another size: bit for bit what diffusers' processors make of them, or with bars, and never in silence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from flowblending import UsageError
from flowblending.contracts.conditions import CROP, FITS, LETTERBOX, STRETCH
from flowblending.runtime.media.clip import Clip, check_mask, clip_of_arrays, mask_values, pixels
from flowblending.runtime.media.fit import Fit

SOURCES = [(64, 48), (48, 64), (97, 61), (33, 200), (64, 64), (500, 16), (16, 16)]
TARGETS = [(64, 48), (96, 160), (32, 32), (208, 64)]
DIFFUSERS = {CROP: "crop", STRETCH: "default"}


def picture(size: tuple[int, int], frames: int = 1) -> np.ndarray:
    return np.random.default_rng(size[0]).integers(0, 256, (frames, size[1], size[0], 3)).astype(np.uint8)


def fitted(name: str, source: tuple[int, int], target: tuple[int, int], how: str) -> np.ndarray:
    return Fit(name=name, source=source, target=target, how=how).apply(picture(source)[0])


@pytest.mark.parametrize("how", DIFFUSERS)
@pytest.mark.parametrize("target", TARGETS)
def test_equals_diffusers_to_the_bit(how: str, target: tuple[int, int]) -> None:
    processor = VideoProcessor(vae_scale_factor=16)
    for source in SOURCES:
        frames = picture(source, 2)
        clip = clip_of_arrays(frames, target, how)
        images = [Image.fromarray(each) for each in frames]
        expected = processor.preprocess_video(images, target[1], target[0], resize_mode=DIFFUSERS[how])
        assert pixels(clip.frames).shape == (1, 3, 2, target[1], target[0])
        assert np.array_equal(pixels(clip.frames), expected.numpy()), (source, target)


def test_masks_equal_diffusers_to_the_bit() -> None:
    grey = picture((97, 61))[0, ..., 0]
    how = Fit(name="m", source=(97, 61), target=(64, 48), how=STRETCH)
    reference = VideoProcessor(vae_scale_factor=16).preprocess_video([Image.fromarray(grey)], 48, 64)
    expected = torch.clamp((reference + 1) / 2, min=0, max=1)
    assert np.array_equal(mask_values(how.apply(grey)[None]), expected.numpy())


@pytest.mark.parametrize(("source", "target"), itertools.product(SOURCES, TARGETS))
def test_letterboxing_keeps_all_of_it_between_black_bars(source: tuple[int, int], target: tuple[int, int]) -> None:
    white = np.full((source[1], source[0], 3), 255, np.uint8)
    made = Fit(name="a", source=source, target=target, how=LETTERBOX).apply(white)
    assert made.shape == (target[1], target[0], 3)
    rows, columns = np.flatnonzero(made[..., 0].any(1)), np.flatnonzero(made[..., 0].any(0))
    height, width = len(rows), len(columns)
    assert (made[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()
    # Its own shape but for whole pixels, as large as it can be, and in the middle.
    assert width == target[0] or height == target[1]
    assert abs(width - height * source[0] / source[1]) < 1 + source[0] / source[1]
    assert abs((target[0] - 1 - columns[-1]) - columns[0]) <= 1
    assert abs((target[1] - 1 - rows[-1]) - rows[0]) <= 1
    # What diffusers' "fill" has inside its smeared edges.
    filled = VideoProcessor(vae_scale_factor=16).resize(Image.fromarray(picture(source)[0]), *target[::-1], "fill")
    ours = Fit(name="a", source=source, target=target, how=LETTERBOX).apply(picture(source)[0])
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.array_equal(ours[inside], np.asarray(filled)[inside])


def test_what_is_lost_is_told() -> None:
    def notes(source: tuple[int, int], how: str) -> list[str]:
        return Fit(name="cat.png", source=source, target=(832, 480), how=how).notes()

    assert notes((4032, 3024), CROP) == [
        "cat.png is 4032x3024, and the video 832x480: 23% of it is cut off; --fit letterbox would keep all of it."
    ]
    assert notes((4032, 3024), LETTERBOX) == [
        "cat.png is 4032x3024, and the video 832x480: 23% of every frame is black bars."
    ]
    assert notes((480, 832), STRETCH) == [
        "cat.png is 480x832, and the video 832x480: it is stretched to 3.00 times its width for its height."
    ]
    assert [notes((1664, 960), how) for how in FITS] == [[], [], []]
    assert [notes((832, 481), how) for how in FITS] == [[], [], []]


def test_a_shape_beyond_all_measure_is_not_enlarged() -> None:
    wide = Fit(name="wall.png", source=(16384, 8), target=(832, 480), how=CROP)
    with pytest.raises(UsageError, match=r"wall\.png is 16384x8 pixels, .* would leave 0\.08%; give --fit letterbox"):
        wide.check()
    for how in (LETTERBOX, STRETCH):
        Fit(name="wall.png", source=(16384, 8), target=(832, 480), how=how).check()
    assert fitted("a", (500, 8), (64, 64), LETTERBOX).any()


def test_arrays_are_frames_too() -> None:
    still = clip_of_arrays(picture((64, 48))[0], (32, 32))
    assert (still.count, still.still, still.width, still.height) == (1, True, 64, 48)
    assert clip_of_arrays(picture((64, 48), 3), (32, 32)).count == 3
    wrong = {
        "is float32": picture((64, 48)).astype(np.float32),
        r"uint8 \[48, 64\], but": picture((64, 48))[0, ..., 0],
        "has no frames": picture((64, 48))[:0],
        "1x1 pixels, but at least 8": picture((1, 1)),
    }
    for message, array in wrong.items():
        with pytest.raises(UsageError, match=f"first_frame .*{message}"):
            clip_of_arrays(array, (32, 32), name="first_frame")


def grey_clip(count: int, size: tuple[int, int] = (64, 48), *, still: bool = False, more: bool = False) -> Clip:
    frames = np.zeros((count, 32, 32), np.uint8)
    return Clip(name="mask.png", frames=frames, width=size[0], height=size[1], still=still, more=more)


def test_a_mask_fits_what_it_belongs_to() -> None:
    of = clip_of_arrays(picture((64, 48), 3), (32, 32), name="in.mp4")
    assert check_mask(grey_clip(3), of).count == 3
    assert check_mask(grey_clip(1, still=True), of).count == 3
    with pytest.raises(UsageError, match=r"mask mask\.png is 48x64, but in\.mp4, .* is 64x48; give a mask of the same"):
        check_mask(grey_clip(3, (48, 64)), of)
    with pytest.raises(UsageError, match=r"mask\.png has 2 frames, but in\.mp4, .* has 3 frames; give a mask with"):
        check_mask(grey_clip(2), of)
    with pytest.raises(UsageError, match="has 1 frame, but"):
        check_mask(grey_clip(1), of)
    with pytest.raises(UsageError, match="has more than 3 frames, but"):
        check_mask(grey_clip(3, more=True), of)
