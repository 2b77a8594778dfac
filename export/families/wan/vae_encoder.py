"""The encoder of Wan's causal VAE as two graphs that make one latent frame each.

As in `flowblending.export.families.wan.vae`, the feature maps that one step hands to the next are inputs and outputs:
``vae_encoder_first`` takes one video frame, ``vae_encoder_next`` four and the caches, so that memory does not grow with
the clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from flowblending.contracts.graph import (
    VAE,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    GraphSpec,
    Precision,
    TensorSpec,
)
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files
from flowblending.export.families.wan.vae import altered, check_decoder, kept, seen
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import load_model

REVISION = 1
"""Raised when this file makes other graphs."""

_FRAMES = {VAE_ENCODER_FIRST: 1, VAE_ENCODER_NEXT: 4}
"""Of the video, in one step."""


def encoder_parts(checkpoint: Checkpoint) -> tuple[Part, Part]:
    """The graphs ``vae_encoder_first`` and ``vae_encoder_next``.

    ``pixels`` fp32 [1, 3, 1 or 4, 8*height, 8*width] in [-1, 1], standard normal ``noise`` fp32 [1, C, 1, height,
    width], and for the second the caches ``cache_00``, ... fp32 -> ``latents`` fp32 like ``noise``, drawn from the
    encoder's distribution and normalised as the transformer sees them, and ``cache_00_next``, ... With zeros for the
    noise they are its mode, which is what Wan's image-to-video pipelines take.

    Raises:
        FlowBlendingError: files are missing, or the VAE is another one.
    """
    check_decoder(checkpoint)
    sources, folder = component_files(checkpoint, VAE), checkpoint.folder / VAE
    first, following = (
        Part(
            name=name,
            sources=sources,
            load=partial(_load, folder, name),
            revision=f"wan vae encoder {REVISION}",
        )
        for name in _FRAMES
    )
    return first, following


class _Step(torch.nn.Module):
    """One latent frame from the encoder of a VAE, the stock one or one altered."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.quant_conv = vae.quant_conv
        self.encoder = vae.encoder
        self.dtype: torch.dtype = vae.dtype
        self.slots = vae._cached_conv_counts["encoder"]
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor, *caches: torch.Tensor) -> Tensors:
        """Latents and the next caches; the first frame comes without caches."""
        maps: list[torch.Tensor | str | None] = [cache.to(self.dtype) for cache in caches]
        # The stock code wants a place for every convolution and fills as many as it needs.
        maps += [None] * (self.slots - len(caches))
        position = [0]
        encoded = self.quant_conv(self.encoder(pixels.to(self.dtype), feat_cache=maps, feat_idx=position)).float()
        found = DiagonalGaussianDistribution(encoded)
        latents = (found.mean + found.std * noise - self.mean) / self.std
        return (latents, *kept(maps[: position[0]]))


def _load(folder: Path, name: str, precision: Precision) -> Exportable:
    vae: AutoencoderKLWan = load_model(AutoencoderKLWan, folder, precision)
    # The decoder is not needed, and its memory is.
    vae.decoder = vae.post_quant_conv = None
    stock, step = _Step(vae), _Step(altered(vae))
    spec = _spec(name, precision, stock, vae.config.z_dim, vae.config.in_channels)

    def drawn(frames: int, sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        pixels, noise = (tensor.resolve(sizes) for tensor in spec.inputs[:2])
        pixels = (*pixels[:2], frames, *pixels[3:])
        return torch.rand(pixels, generator=generator) * 2 - 1, torch.randn(noise, generator=generator)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        caches: Tensors = ()
        if name == VAE_ENCODER_NEXT:
            with torch.no_grad():
                # Caches as they are after the second latent frame: from then on none holds zeros.
                for frames in _FRAMES.values():
                    _, *caches = stock(*drawn(frames, sizes, generator), *caches)
        return (*drawn(_FRAMES[name], sizes, generator), *caches)

    return Exportable(
        spec=spec,
        module=step,
        reference=stock,
        inputs=inputs,
        export_sizes={"height": 3, "width": 4},
        verify_sizes=({"height": 2, "width": 5}, {"height": 6, "width": 3}),
    )


def _spec(name: str, precision: Precision, step: _Step, channels: int, colours: int) -> GraphSpec:
    """Inputs and outputs, with the shapes of the caches as one step at a small size shows them."""
    noise = torch.zeros(1, channels, 1, 1, 1)
    caches: Tensors = ()
    with torch.no_grad():
        for frames in list(_FRAMES.values())[: 1 + (name == VAE_ENCODER_NEXT)]:
            _, *caches = step(torch.zeros(1, colours, frames, 8, 8), noise, *caches)
    latents = (1, channels, 1, "height", "width")
    names = [f"cache_{index:02d}" for index in range(len(caches))]
    taken = [seen(cache, each) for each, cache in zip(names, caches, strict=True)]
    given = [seen(cache, f"{each}_next") for each, cache in zip(names, caches, strict=True)]
    pixels = TensorSpec(name="pixels", dtype="float32", shape=(1, colours, _FRAMES[name], "8*height", "8*width"))
    return GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            pixels,
            TensorSpec(name="noise", dtype="float32", shape=latents),
            *(taken if name == VAE_ENCODER_NEXT else ()),
        ),
        outputs=(TensorSpec(name="latents", dtype="float32", shape=latents), *given),
    )
