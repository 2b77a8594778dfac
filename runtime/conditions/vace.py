"""The control of Wan VACE: what a video keeps, what is made anew, and where, as one input of the transformer.

Sources: ``preprocess_conditions``, ``prepare_video_latents`` and ``prepare_masks`` of diffusers' pipeline_wan_vace.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.conditions.given import Given, GivenClip
from flowblending.runtime.media.clip import mask_values, pixels

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], Floats]
"""From pixels fp32 [1, 3, F, H, W] in [-1, 1] to the mode of their latents, fp32 [1, C, f, h, w]."""

MOST_SCALE: Final = 100.0

_HALF: Final = np.float32(0.5)


def free_frames(count: int, width: int, height: int) -> tuple[Floats, Floats]:
    """Pixels and mask of a video of which nothing is given: grey, and all of it to be made."""
    return np.zeros((1, 3, count, height, width), np.float32), np.ones((1, 1, count, height, width), np.float32)


def given(frames: npt.NDArray[np.uint8], grey: npt.NDArray[np.uint8] | None) -> tuple[Floats, Floats]:
    """Pixels and mask of a video that is given.

    Args:
        frames: uint8 [F, H, W, 3].
        grey: uint8 [F, H, W], white where the video is to be made anew; None for everywhere, as a video of poses or
            of depth is given.
    """
    values = pixels(frames)
    mask = np.ones_like(values[:, :1]) if grey is None else mask_values(grey)
    return values, mask


def check_frames(images: Sequence[Given | GivenClip], frames: int) -> None:
    """Refuse images of frames that a control cannot have.

    Args:
        frames: of the video.

    Raises:
        UsageError: one has a strength, is for a frame that the video does not have, or two are for one frame.
    """
    taken: set[int] = set()
    for each in images:
        if each.strength != 1.0:
            raise UsageError(
                f"{each} has a strength of {each.strength:g}, but a frame that is given to these models stays whole; "
                "leave the strength out, or give a video and --control-scale."
            )
        own = set(range(each.frame, each.frame + (len(each.frames) if isinstance(each, GivenClip) else 1)))
        if own & taken:
            raise UsageError(f"Two images are given for frame {min(own & taken)}, the second {each}; leave one out.")
        if max(own) >= frames:
            raise UsageError(
                f"{each} is given for frame {max(own)}, but the video has {frames} frames, from 0 to {frames - 1}; "
                "give one of these."
            )
        taken |= own


def frames_given(images: Sequence[GivenClip], count: int, width: int, height: int) -> tuple[Floats, Floats]:
    """Pixels and mask of a video of which some frames are given; all others are grey, and to be made.

    As the user guide of WanVACEPipeline has it for the first and the last frame, with the grey that it calls exact.

    Args:
        images: as `check_frames` has them, uint8 [F, H, W, 3] each.
        count: frames of the video.
        width, height: of the video.
    """
    values, mask = free_frames(count, width, height)
    for each in images:
        own = slice(each.frame, each.frame + len(each.frames))
        values[:, :, own], mask[:, :, own] = pixels(each.frames), 0
    return values, mask


def control(
    values: Floats, mask: Floats, references: Sequence[Floats], encode: Encode, factors: tuple[int, int]
) -> Floats:
    """The transformer's input ``control``, fp32 [1, 2 C + s * s, R + f, h, w].

    Args:
        values: pixels [1, 3, F, H, W] in [-1, 1].
        mask: [1, 1, F, H, W], 1 where pixels are made anew.
        references: fp32 [3, H, W] in [-1, 1], each a latent frame before the video's own; see
            `flowblending.runtime.media.reference_image`.
        encode: the VAE's encoder.
        factors: video frames per latent frame, and pixels s per latent pixel.
    """
    sharp = np.where(mask > _HALF, np.float32(1), np.float32(0))
    latents = np.concatenate([encode(values * (1 - sharp)), encode(values * sharp)], axis=1)
    for reference in references:
        kept = encode(reference[None, :, None])
        latents = np.concatenate([np.concatenate([kept, np.zeros_like(kept)], axis=1), latents], axis=2)
    places = mask_latents(mask, factors)
    none = np.zeros_like(places[:, :, : len(references)])
    return np.ascontiguousarray(np.concatenate([latents, np.concatenate([none, places], axis=2)], axis=1))


def mask_latents(mask: Floats, factors: tuple[int, int]) -> Floats:
    """A mask [1, 1, F, H, W] with a channel for every pixel of a latent pixel, [1, s * s, f, h, w].

    Of the frames of a latent frame it takes one: that of ``torch.nn.functional.interpolate`` in mode nearest-exact.
    """
    time, space = factors
    _, _, count, height, width = mask.shape
    blocks = mask.reshape(count, height // space, space, width // space, space).transpose(2, 4, 0, 1, 3)
    latent_frames = (count + time - 1) // time
    scale = np.float32(count) / np.float32(latent_frames)
    nearest = ((np.arange(latent_frames, dtype=np.float32) + _HALF) * scale).astype(np.int64)
    chosen = blocks.reshape(space * space, *blocks.shape[2:])[:, np.minimum(nearest, count - 1)]
    return np.ascontiguousarray(chosen[None])


def plain(latent_shape: Sequence[int], space: int) -> Floats:
    """A control without anything to see, where there is no encoder: latents of zeros, and all of it to be made.

    Args:
        latent_shape: [C, F, H, W] of the video's latents.
        space: pixels per latent pixel.
    """
    channels, *size = latent_shape
    latents = np.zeros((1, 2 * channels, *size), np.float32)
    return np.concatenate([latents, np.ones((1, space * space, *size), np.float32)], axis=1)


def read_scales(text: str, hints: Mapping[str, int]) -> dict[str, Floats]:
    """What the hints of each model are multiplied by, fp32 [hints], by model.

    Args:
        text: ``0.8`` for all; or for each hint of a model a number, ``large=1,1,0.9,0.9,0.8,0.8,0.7,0.7 small=0.9``.
        hints: how many a model has.

    Raises:
        UsageError: no numbers, another number of them than a model has hints, or another model.
    """
    found = {model: np.ones(count, np.float32) for model, count in hints.items()}
    for word in text.split():
        name, equals, listed = word.rpartition("=")
        if equals and name not in hints:
            raise UsageError(
                f"The control scale {word} is of no model of this bundle, which has {', '.join(hints)}; name one."
            )
        for model in [name] if equals else hints:
            numbers = [_number(each, word) for each in listed.split(",")]
            if len(numbers) not in (1, hints[model]):
                raise UsageError(
                    f"The control scale {word} has {len(numbers)} numbers, but {model} has {hints[model]} hints; give "
                    "one number for all, or one for each."
                )
            found[model] = np.array(numbers * (1 if len(numbers) > 1 else hints[model]), np.float32)
    return found


def _number(text: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_SCALE:
        raise UsageError(
            f"The control scale {word} was given, but numbers from -{MOST_SCALE:g} to {MOST_SCALE:g} were expected; "
            "give one such as 0.8, or one for each hint of a model: large=1,0.9,0.8 small=1."
        )
    return number
