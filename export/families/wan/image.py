"""What Wan's image-to-video transformers take of images: channels beside the latents, and tokens of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import Condition, image_channels_condition, image_tokens_condition
from flowblending.contracts.graph import IMAGE_ENCODER
from flowblending.export.checkpoint.checkpoint import TRANSFORMER, Checkpoint
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.clip import image_tokens
from flowblending.export.families.wan.row import IMAGE_TO_VIDEO, WAN
from flowblending.export.families.wan.transformer import ImageTokens

_GIVE = "give a checkpoint such as Wan 2.1 I2V, or SkyReels-V2 I2V"


def image_conditions(checkpoint: Checkpoint, transformer: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions of a pipeline that makes videos of images.

    Args:
        checkpoint: run with such a class.
        transformer: its configuration.
    """
    seen = seen_images(checkpoint, checkpoint.place(TRANSFORMER), transformer)
    channels = image_channels_condition(channels_beside(transformer))
    return (channels,) if seen is None else (channels, image_tokens_condition(seen.total, seen.width, seen.images))


def seen_images(checkpoint: Checkpoint, folder: Path, config: Mapping[str, Any]) -> ImageTokens | None:
    """What a transformer sees of images through CLIP; None for one that does not.

    A checkpoint for a first and a last frame has a position for every token of the two.

    Args:
        checkpoint: the pipeline that it runs in.
        folder: of the transformer, for messages.
        config: its configuration.

    Raises:
        FlowBlendingError: the pipeline has no such encoder, or runs no such transformer.
    """
    width = config.get("image_dim")
    if width is None and config.get("added_kv_proj_dim") is None:
        return None
    if checkpoint.pipeline not in IMAGE_TO_VIDEO:
        raise FlowBlendingError(
            f"{shown(folder)} is a transformer that looks at an image through CLIP, which {checkpoint.pipeline} does "
            f"not give it; {_GIVE}, as a whole."
        )
    if width is None or config.get("added_kv_proj_dim") is None:
        has, lacks = ("image_dim", "added_kv_proj_dim")[:: 1 if width is not None else -1]
        raise FlowBlendingError(
            f"The configuration of {shown(folder)} has {has} and no {lacks}, but a transformer that looks at images "
            f"has both; {_GIVE}."
        )
    each, positions = image_tokens(checkpoint), config.get("pos_embed_seq_len")
    if positions not in (None, 2 * each):
        raise FlowBlendingError(
            f"The transformer in {shown(folder)} has positions for {positions} tokens of images, but the "
            f"{IMAGE_ENCODER} of {shown(checkpoint.folder)} makes {each} of an image, {2 * each} of a first "
            f"and a last one; {_GIVE}."
        )
    return ImageTokens(each=each, images=1 if positions is None else 2, width=int(width))


def channels_beside(transformer: Mapping[str, Any]) -> int:
    """Channels that a transformer takes beside those of the latents that it gives."""
    taken = int(transformer["in_channels"])
    return taken - int(transformer.get("out_channels") or taken)


def latent_channels(checkpoint: Checkpoint, transformer: Mapping[str, Any]) -> int:
    """Of the latents, which need not be all that the transformer takes.

    Raises:
        FlowBlendingError: it takes other channels beside them than an image-to-video pipeline gives it.
    """
    taken = int(transformer["in_channels"])
    if checkpoint.pipeline not in IMAGE_TO_VIDEO:
        return taken
    latents = taken - channels_beside(transformer)
    expected = 2 * latents + WAN.vae_factors(checkpoint.config("vae"))[0]
    if taken != expected:
        raise FlowBlendingError(
            f"The transformer of {shown(checkpoint.folder)} takes {taken} channels and gives {latents}, but a "
            f"{checkpoint.pipeline} gives it {expected}: those of the latents and of an image's, and a mask; give a "
            "checkpoint such as Wan 2.2 I2V A14B."
        )
    return latents


def check_whole_attention(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a SkyReels-V2 transformer that is told frame rates, or attends to blocks of frames one after the other.

    Raises:
        FlowBlendingError: it is one of diffusion forcing.
    """
    if config.get("inject_sample_info") or config.get("num_frame_per_block", 1) > 1:
        raise FlowBlendingError(
            f"{shown(folder)} is a transformer of SkyReels-V2 for diffusion forcing (DF), which is not supported; give "
            "a checkpoint of SkyReels-V2 I2V."
        )
