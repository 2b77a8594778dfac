"""Wan's image to video: the latents of the first frame, and which frames are given, as channels beside the latents.

Source: ``prepare_latents`` of diffusers' pipeline_wan_i2v.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def check_places(images: Sequence[Given | GivenClip], frames: int) -> None:
    """Refuse images that such a model does not take.

    Args:
        frames: of the video.

    Raises:
        UsageError: none is given for the first frame, two are for one frame, or one is for a frame between the first
            and the last, with a strength, or a clip.
    """
    for each in images:
        what = _what_is_wrong(each, frames)
        if what:
            raise UsageError(
                f"{each} {what}, but the models of this bundle take one image, whole, as the first frame, and one as "
                f"the last: --image cat.png --image end.png@{frames - 1}."
            )
    places = [each.frame for each in images]
    if 0 not in places:
        raise UsageError(
            "The models of this bundle make a video from its first frame, and none was given; give an image, such as "
            "--image cat.png."
        )
    if len(set(places)) < len(places):
        raise UsageError(
            f"{len(places)} images were given, two of them for one frame; give one for the first frame, and one for "
            f"the last (@{frames - 1}) if there is any."
        )


def _what_is_wrong(each: Given | GivenClip, frames: int) -> str:
    if each.frame not in (0, frames - 1):
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


def plain_image(latent_shape: Sequence[int], time: int) -> Floats:
    """The same of a first frame of which nothing is to be seen, where there is no encoder.

    Args:
        latent_shape: [C, F, H, W] of the video's latents.
        time: video frames per latent frame.
    """
    return _beside(np.zeros((1, *latent_shape), np.float32), [0], (latent_shape[1] - 1) * time + 1, time)


def _beside(latents: Floats, given: Sequence[int], frames: int, time: int) -> Floats:
    """Latents behind a mask with a channel for every video frame of a latent frame, the first of which counts for t."""
    _, _, count, height, width = latents.shape
    marks = np.zeros(frames, np.float32)
    marks[list(given)] = 1
    mask = np.concatenate([np.repeat(marks[:1], time), marks[1:]]).reshape(count, time).T
    spread = np.broadcast_to(mask[None, :, :, None, None], (1, time, count, height, width))
    return np.ascontiguousarray(np.concatenate([spread, latents], axis=1))
