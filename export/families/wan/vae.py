"""The decoder of Wan's causal VAE as two graphs that decode one latent frame each.

The stock class (diffusers models/autoencoders/autoencoder_kl_wan.py) decodes a clip latent frame by latent frame and
hands the last two feature maps of every causal convolution to the next step. Here these caches are inputs and outputs:
``vae_first`` gives one video frame and the caches, ``vae_next`` takes the caches and gives four frames and the next
caches. So video frames leave as they are decoded, and memory does not grow with the clip. The stock code starts with
empty caches and shorter ones; a cache padded with zeros in front does the same, since the convolutions pad so anyway.

The caches are fp32 in every precision, as all inputs and outputs are; at 832x480 one set is 3.8 GB, and two are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    CACHE_T,
    WanCausalConv3d,
    WanRMS_norm,
    WanUpsample,
)

from flowblending import FlowBlendingError
from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT, GraphSpec, Precision, TensorSpec
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files
from flowblending.export.checkpoint.naming import shown
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import check_model, load_model, twin

REVISION = 2
"""Raised when this file makes other graphs."""


def check_decoder(checkpoint: Checkpoint) -> None:
    """Whether the VAE is that of Wan 2.1, with a configuration that is decoded by the steps above.

    Raises:
        FlowBlendingError: it is another one.
    """
    config = checkpoint.config(VAE)
    if config.get("_class_name") != "AutoencoderKLWan" or config.get("is_residual") or config.get("patch_size"):
        raise FlowBlendingError(
            f"The VAE of {shown(checkpoint.folder)} is not that of Wan 2.1 (an AutoencoderKLWan without is_residual "
            "and patch_size was expected); give a Wan 2.1 T2V checkpoint."
        )


def decoder_parts(checkpoint: Checkpoint) -> tuple[Part, Part]:
    """The graphs ``vae_first`` and ``vae_next``.

    ``latents`` fp32 [1, C, 1, height, width], normalised as the transformer sees them, and for ``vae_next`` the caches
    ``cache_00``, ... fp32 -> ``frames`` fp32 [1, 3, 1 or 4, 8*height, 8*width] in about [-1, 1], and
    ``cache_00_next``, ...

    Raises:
        FlowBlendingError: files are missing, or the VAE is another one.
    """
    check_decoder(checkpoint)
    folder = checkpoint.folder / VAE
    sources = component_files(checkpoint, VAE)
    revision = f"wan vae {REVISION}"
    return (
        Part(
            name=VAE_FIRST,
            sources=sources,
            load=partial(_load, folder, VAE_FIRST),
            revision=revision,
            check=lambda: check_model(AutoencoderKLWan, folder),
        ),
        # Of the same files, which one look is enough for.
        Part(name=VAE_NEXT, sources=sources, load=partial(_load, folder, VAE_NEXT), revision=revision),
    )


class _Convolution(torch.nn.Module):
    """WanCausalConv3d, which pads in height and width itself instead of in a copy of its input."""

    def __init__(self, stock: WanCausalConv3d) -> None:
        super().__init__()
        _, width, _, height, self.past, _ = stock._padding
        self.weight, self.bias, self.stride = stock.weight, stock.bias, stock.stride
        self.padding = (0, height, width)

    def forward(self, values: torch.Tensor, cache: torch.Tensor | None = None) -> torch.Tensor:
        if cache is not None:
            values = torch.cat([cache, values], dim=2)
        elif self.past:
            values = torch.nn.functional.pad(values, (0, 0, 0, 0, self.past, 0))
        return torch.nn.functional.conv3d(values, self.weight, self.bias, self.stride, self.padding)


class _Normalisation(torch.nn.Module):
    """WanRMS_norm in fp32, without spreading the norms over the channels before the division."""

    def __init__(self, stock: WanRMS_norm) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(stock.gamma.float() * stock.scale, requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        exact = values.float()
        norms = torch.linalg.vector_norm(exact, dim=1, keepdim=True).clamp(min=1e-12)
        normalised: torch.Tensor = exact / norms * self.weight
        return normalised.to(values.dtype)


class _Upsampling(torch.nn.Module):
    """WanUpsample: every value becomes a square of 2x2, the same as its ``nearest-exact``.

    That one computes indices while running, since it does not know height and width before.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        squares: torch.Tensor = torch.nn.functional.interpolate(values, scale_factor=2.0, mode="nearest")
        return squares


def altered(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """The same VAE and weights, with the modules above in the place of the stock ones."""
    vae = twin(vae)
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, WanCausalConv3d):
                setattr(module, name, _Convolution(child))
            elif isinstance(child, WanRMS_norm):
                setattr(module, name, _Normalisation(child))
            elif isinstance(child, WanUpsample):
                setattr(module, name, _Upsampling())
    return vae


class _Step(torch.nn.Module):
    """One latent frame through the decoder of a VAE, the stock one or one altered."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.dtype: torch.dtype = vae.dtype
        self.slots = vae._cached_conv_counts["decoder"]
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1, 1), persistent=False)

    def forward(self, latents: torch.Tensor, *caches: torch.Tensor) -> Tensors:
        """Frames and the next caches; the first latent frame comes without caches."""
        maps: list[torch.Tensor | str | None] = [cache.to(self.dtype) for cache in caches]
        # The stock code wants a place for every convolution and fills as many as it needs.
        maps += [None] * (self.slots - len(caches))
        position = [0]
        values = self.post_quant_conv((latents * self.std + self.mean).to(self.dtype))
        frames = self.decoder(values, feat_cache=maps, feat_idx=position, first_chunk=not caches)
        # Not clamped to [-1, 1]: tiles are blended before, and whoever makes pictures of them clamps.
        return (frames.float(), *kept(maps[: position[0]]))


def kept(maps: Sequence[torch.Tensor | str | None]) -> list[torch.Tensor]:
    """The feature maps that the next step takes, fp32, each of two frames."""
    found: list[torch.Tensor] = []
    for cache in maps:
        if not isinstance(cache, torch.Tensor):
            # A marker that the stock code leaves in the place of an upsampling that the first frame does not take. Its
            # feature maps are as large as those of the convolution before it.
            found.append(torch.zeros_like(found[-1]))
        elif cache.shape[2] < CACHE_T:
            found.append(torch.nn.functional.pad(cache.float(), (0, 0, 0, 0, CACHE_T - cache.shape[2], 0)))
        else:
            found.append(cache.float())
    return found


def _load(folder: Path, name: str, precision: Precision) -> Exportable:
    vae: AutoencoderKLWan = load_model(AutoencoderKLWan, folder, precision)
    # The encoder is not needed, and its memory is.
    vae.encoder = vae.quant_conv = None
    stock, step = _Step(vae), _Step(altered(vae))
    spec = _spec(name, precision, stock, vae.config.z_dim)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        shape = spec.inputs[0].resolve(sizes)
        if name == VAE_FIRST:
            return (torch.randn(shape, generator=generator),)
        caches: Tensors = ()
        with torch.no_grad():
            # Caches as they are after the second latent frame: from then on none holds zeros.
            for _ in range(2):
                _, *caches = stock(torch.randn(shape, generator=generator), *caches)
        return (torch.randn(shape, generator=generator), *caches)

    return Exportable(
        spec=spec,
        module=step,
        reference=stock,
        inputs=inputs,
        export_sizes={"height": 3, "width": 4},
        verify_sizes=({"height": 2, "width": 5}, {"height": 6, "width": 3}),
    )


def _spec(name: str, precision: Precision, step: _Step, channels: int) -> GraphSpec:
    """Inputs and outputs, with the shapes of the caches as one step at a small size shows them."""
    with torch.no_grad():
        frames, *caches = step(torch.zeros(1, channels, 1, 1, 1))
        if name == VAE_NEXT:
            frames, *caches = step(torch.zeros(1, channels, 1, 1, 1), *caches)
    latents = TensorSpec(name="latents", dtype="float32", shape=(1, channels, 1, "height", "width"))
    names = [f"cache_{index:02d}" for index in range(len(caches))]
    taken = [seen(cache, each) for each, cache in zip(names, caches, strict=True)]
    given = [seen(cache, f"{each}_next") for each, cache in zip(names, caches, strict=True)]
    return GraphSpec(
        name=name,
        precision=precision,
        inputs=(latents, *taken) if name == VAE_NEXT else (latents,),
        outputs=(seen(frames, "frames"), *given),
    )


def seen(seen: torch.Tensor, name: str) -> TensorSpec:
    """The specification of a tensor that was seen at latent height and width 1."""
    *fixed, height, width = seen.shape
    return TensorSpec(
        name=name, dtype="float32", shape=(*fixed, _multiple(height, "height"), _multiple(width, "width"))
    )


def _multiple(factor: int, symbol: str) -> str:
    return symbol if factor == 1 else f"{factor}*{symbol}"
