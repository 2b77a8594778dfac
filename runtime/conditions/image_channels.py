"""Wan's image to video: the latents of the first frame, and which frames are given, as channels beside the latents.

Source: ``prepare_latents`` of diffusers' pipeline_wan_i2v.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.conditions.given import Given, GivenClip
from flowblending.runtime.media.clip import pixels

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], Floats]
"""From pixels fp32 [1, 3, F, H, W] in [-1, 1] to the mode of their latents, fp32 [1, C, f, h, w]."""

_WHOLE: Final = 1.0


def check_places(images: Sequence[Given | GivenClip], frames: int, wanted: int = 0) -> None:
    """Refuse images that such a model does not take, or fewer than it needs.

    Args:
        images: that are given.
        frames: of the video.
        wanted: how many there have to be: 1 for the first frame alone, 2 for the first and the last; 0 for either.

    Raises:
        UsageError: none is given for the first frame, or for the last where that is needed; two are for one frame; or
            one is for another frame, with a strength, or a clip.
    """
    last = frames - 1
    taken = "one image, whole, as the first frame" + ("" if wanted == 1 else ", and one as the last")
    options = "--image cat.png" + ("" if wanted == 1 else f" --image end.png@{last}")
    for each in images:
        what = _what_is_wrong(each, (0,) if wanted == 1 else (0, last))
        if what:
            raise UsageError(f"{each} {what}, but the models of this bundle take {taken}: {options}.")
    places = [each.frame for each in images]
    if 0 not in places:
        between = " to its last" if wanted > 1 else ""
        raise UsageError(
            f"The models of this bundle make a video from its first frame{between}, and none was given; give "
            f"{'both' if between else 'an image'}, such as {options if between else '--image cat.png'}."
        )
    if wanted > 1 and last not in places:
        raise UsageError(
            f"The models of this bundle make a video from its first frame to its last, which was not given; give both: "
            f"{options}."
        )
    if len(set(places)) < len(places):
        raise UsageError(
            f"{len(places)} images were given, two of them for one frame; give one for the first frame"
            + ("." if wanted == 1 else f", and one for the last (@{last}) if there is any.")
        )


def _what_is_wrong(each: Given | GivenClip, places: Collection[int]) -> str:
    if each.frame not in places:
        return f"is given for frame {each.frame}"
    if each.strength != _WHOLE:
        return f"has a strength of {each.strength:g}"
    if isinstance(each, GivenClip) and (each.more or not each.still):
        return "is a clip"
    return ""


def image_channels(images: Sequence[GivenClip], frames: int, encode: Encode, factors: tuple[int, int]) -> Floats:
    """The transformer's input ``image_channels``, fp32 [1, t + C, f, h, w]: mask, and latents.

    Args:
        images: as `check_places` has them, uint8 [1, H, W, 3] each.
        frames: of the video, all others of which are grey.
        encode: the VAE's encoder.
        factors: video frames t per latent frame, and pixels per latent pixel.
    """
    _, height, width, _ = images[0].frames.shape
    values = np.zeros((1, 3, frames, height, width), np.float32)
    for each in images:
        values[:, :, each.frame] = pixels(each.frames[:1])[:, :, 0]
    return _beside(encode(values), [each.frame for each in images], frames, factors[0])


def plain_image(latent_shape: Sequence[int], time: int, wanted: int = 0) -> Floats:
    """The same of images of which nothing is to be seen, where there is no encoder.

    Args:
        latent_shape: [C, F, H, W] of the video's latents.
        time: video frames per latent frame.
        wanted: how many images there have to be; see `check_places`.
    """
    frames = (latent_shape[1] - 1) * time + 1
    given = [0, frames - 1] if wanted > 1 else [0]
    return _beside(np.zeros((1, *latent_shape), np.float32), given, frames, time)


def _beside(latents: Floats, given: Sequence[int], frames: int, time: int) -> Floats:
    """Latents behind a mask with a channel for every video frame of a latent frame, the first of which counts for t."""
    _, _, count, height, width = latents.shape
    marks = np.zeros(frames, np.float32)
    marks[list(given)] = 1
    mask = np.concatenate([np.repeat(marks[:1], time), marks[1:]]).reshape(count, time).T
    spread = np.broadcast_to(mask[None, :, :, None, None], (1, time, count, height, width))
    return np.ascontiguousarray(np.concatenate([spread, latents], axis=1))
