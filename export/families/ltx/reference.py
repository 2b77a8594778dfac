"""The LTX-Video transformer of diffusers, called as its pipelines call it: what graphs are verified against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel

from flowblending.export.graph.exportable import Tensors


def plain_reference(stock: LTXVideoTransformer3DModel, factors: tuple[int, int]) -> Callable[..., Tensors]:
    """The stock transformer called as LTXPipeline and, with a timestep for every frame, LTXImageToVideoPipeline do."""

    def call(
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        frame_rate: torch.Tensor,
    ) -> Tensors:
        frames, height, width = latents.shape[2:]
        velocity = stock(
            hidden_states=LTXPipeline._pack_latents(latents).to(stock.dtype),
            encoder_hidden_states=text.to(stock.dtype),
            timestep=_by_token(timestep, height * width),
            encoder_attention_mask=text_mask.bool(),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(factors[0] / frame_rate.item(), factors[1], factors[1]),
            return_dict=False,
        )[0]
        return (LTXPipeline._unpack_latents(velocity.float(), frames, height, width),)

    return call


def condition_reference(stock: LTXVideoTransformer3DModel, factors: tuple[int, int]) -> Callable[..., Tensors]:
    """The stock transformer called as LTXConditionPipeline calls it."""

    def call(
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        frame_rate: torch.Tensor,
        *held: torch.Tensor,
    ) -> Tensors:
        pipeline = LTXConditionPipeline
        batch, _, frames, height, width = latents.shape
        places = pipeline._prepare_video_ids(batch, frames, height, width)
        places = pipeline._scale_video_ids(places, scale_factor=factors[1], scale_factor_t=factors[0]).float()
        for frame_times in held:
            places[:, 0] = frame_times.repeat_interleave(height * width)
        places[:, 0] = places[:, 0] * (1.0 / frame_rate.item())
        velocity = stock(
            hidden_states=pipeline._pack_latents(latents).to(stock.dtype),
            encoder_hidden_states=text.to(stock.dtype),
            timestep=_by_token(timestep if timestep.dim() == 2 else timestep[:, None], height * width),
            encoder_attention_mask=text_mask.bool(),
            video_coords=places,
            return_dict=False,
        )[0]
        return (pipeline._unpack_latents(velocity.float(), frames, height, width),)

    return call


def _by_token(timestep: torch.Tensor, tokens: int) -> torch.Tensor:
    """A timestep for every token where there is one for every latent frame, of so many tokens each."""
    return timestep.repeat_interleave(tokens, dim=1) if timestep.dim() == 2 and timestep.shape[1] > 1 else timestep
