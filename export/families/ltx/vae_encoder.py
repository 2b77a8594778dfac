"""LTX-Video's VAE encoder as one graph: the frames of a clip in, normalised latents out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from flowblending.contracts.graph import VAE, VAE_ENCODER, GraphSpec, Precision, TensorSpec
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files, vae_statistics
from flowblending.export.families.ltx.row import LTX
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import check_model, load_model

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoEncoder3d

REVISION = 1
"""Raised when this file makes other graphs."""


def encoder_part(checkpoint: Checkpoint) -> Part:
    """The graph ``vae_encoder``.

    ``pixels`` fp32 [1, 3, F, H, W] in [-1, 1] and standard normal ``noise`` fp32 like the latents ->
    ``latents`` fp32 [1, C, frames, height, width], drawn from the encoder's distribution and normalised. With zeros for
    the noise they are its mode.

    Raises:
        FlowBlendingError: missing files.
    """
    folder, factors = checkpoint.folder / VAE, LTX.vae_factors(checkpoint.config(VAE))
    return Part(
        name=VAE_ENCODER,
        sources=component_files(checkpoint, VAE),
        load=lambda precision: _load(folder, vae_statistics(checkpoint), factors, precision),
        revision=f"ltx vae encoder {REVISION}",
        check=lambda: check_model(AutoencoderKLLTXVideo, folder),
    )


class LtxEncoder(torch.nn.Module):
    """The stock encoder, a draw from its distribution, and the pipelines' normalisation, which knows no scaling factor.

    Args:
        stock: used as it is, and not changed.
        mean: of the latents, fp32 [C].
        std: of the latents, fp32 [C].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stock: LTXVideoEncoder3d, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.stock = stock
        self.register_buffer("mean", mean.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> Tensors:
        """Latents, fp32, like ``noise``."""
        encoded = self.stock(pixels.to(self.stock.conv_in.conv.weight.dtype)).float()
        # Of the variance, the stock encoder gives one channel, repeated; what is more than that is left out.
        middle, spread = encoded[:, : noise.shape[1]], encoded[:, noise.shape[1] : noise.shape[1] + 1]
        latents = middle + torch.exp(0.5 * spread.clamp(-30.0, 20.0)) * noise
        return ((latents - self.mean) / self.std,)


def _load(
    folder: Path,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    factors: tuple[int, int],
    precision: Precision,
) -> Exportable:
    vae: AutoencoderKLLTXVideo = load_model(AutoencoderKLLTXVideo, folder, precision)
    # The decoder is not needed, and its memory is.
    vae.decoder = None
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
    spec = _spec(vae, factors, precision)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        pixels, noise = (tensor.resolve(sizes) for tensor in spec.inputs)
        return torch.rand(pixels, generator=generator) * 2 - 1, torch.randn(noise, generator=generator)

    return Exportable(
        spec=spec,
        module=LtxEncoder(vae.encoder, mean, std).eval(),
        reference=_reference(vae),
        inputs=inputs,
        export_sizes={"frames": 3, "height": 2, "width": 4},
        verify_sizes=(
            {"frames": 1, "height": 3, "width": 2},
            {"frames": 4, "height": 2, "width": 3},
        ),
    )


def _spec(vae: AutoencoderKLLTXVideo, factors: tuple[int, int], precision: Precision) -> GraphSpec:
    time, space = factors
    latents = (1, vae.config.latent_channels, "frames", "height", "width")
    pixels = (1, vae.config.in_channels, f"{time}*frames-{time - 1}", f"{space}*height", f"{space}*width")
    return GraphSpec(
        name=VAE_ENCODER,
        precision=precision,
        inputs=(
            TensorSpec(name="pixels", dtype="float32", shape=pixels),
            TensorSpec(name="noise", dtype="float32", shape=latents),
        ),
        outputs=(TensorSpec(name="latents", dtype="float32", shape=latents),),
    )


def _reference(vae: AutoencoderKLLTXVideo) -> Callable[..., Tensors]:
    """The stock VAE called as the pipelines' ``prepare_latents`` does, with the noise given."""

    def call(pixels: torch.Tensor, noise: torch.Tensor) -> Tensors:
        found: DiagonalGaussianDistribution = vae.encode(pixels.to(vae.dtype)).latent_dist
        latents = (found.mean + found.std * noise.to(vae.dtype)).float()
        return (LTXPipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std),)

    return call
