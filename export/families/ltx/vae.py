"""LTX-Video's VAE decoder as one graph: normalised latents in, the frames of the whole clip out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline
from torch.overrides import TorchFunctionMode

from flowblending.contracts.graph import VAE, Dim, GraphSpec, Precision, TensorSpec
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files, vae_statistics
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import check_model, load_model

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import (
        LTXVideoCausalConv3d,
        LTXVideoDecoder3d,
        LTXVideoMidBlock3d,
        LTXVideoResnetBlock3d,
        LTXVideoUpBlock3d,
        LTXVideoUpsampler3d,
    )
    from diffusers.models.normalization import RMSNorm

REVISION = 1
"""Raised when this file makes other graphs."""

SPATIAL_NOISE = "spatial_noise_"


def vae_part(checkpoint: Checkpoint) -> Part:
    """The graph ``vae``: latents fp32 [1, C, frames, height, width], normalised, -> frames fp32 in about [-1, 1].

    A timestep-conditioned decoder takes ``timestep`` and ``noise_scale`` s, fp32 [1], and standard normal ``noise``
    like the latents, of which it mixes in the share s. A decoder that draws noise inside (0.9.1) takes that too:
    ``spatial_noise_00``, ... fp32 [rows, columns], standard normal. The pipelines draw it from torch's global
    generator, so it is fresh noise for any runtime.

    Raises:
        FlowBlendingError: missing files.
    """
    folder = checkpoint.folder / VAE
    return Part(
        name=VAE,
        sources=component_files(checkpoint, VAE),
        load=lambda precision: _load(folder, vae_statistics(checkpoint), precision),
        revision=f"ltx vae {REVISION}",
        check=lambda: check_model(AutoencoderKLLTXVideo, folder),
    )


class LtxDecoder(torch.nn.Module):
    """LTXVideoDecoder3d's forward pass over the layers of the stock decoder, with every random number an input.

    Around it, what the pipelines do before they call it (diffusers pipeline_ltx.py, at the end of ``__call__``):
    undo the normalisation, then mix in noise.

    Args:
        stock: used as it is, and not changed.
        mean: of the latents, fp32 [C].
        std: of the latents, divided by the VAE's scaling factor, fp32 [C].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stock: LTXVideoDecoder3d, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.stock = stock
        self.register_buffer("mean", mean.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1, 1), persistent=False)

    def forward(self, latents: torch.Tensor, *others: torch.Tensor) -> Tensors:
        """Frames [1, 3, frames, rows, columns]; ``others`` are timestep, noise_scale, noise, and spatial noises."""
        stock = self.stock
        dtype = stock.conv_in.conv.weight.dtype
        latents = latents * self.std + self.mean
        timestep = None
        if stock.timestep_scale_multiplier is not None:
            timestep, noise_scale, noise = others[:3]
            others = others[3:]
            latents = (1 - noise_scale) * latents + noise_scale * noise
            timestep = timestep.to(dtype) * stock.timestep_scale_multiplier
        spatial_noise = iter(others)
        hidden = _resnets(stock.mid_block, _convolve(stock.conv_in, latents.to(dtype)), timestep, spatial_noise)
        for block in stock.up_blocks:
            if block.conv_in is not None:
                hidden = _resnet(block.conv_in, hidden, None, spatial_noise)
            for upsampler in block.upsamplers or ():
                hidden = _upsample(upsampler, hidden)
            hidden = _resnets(block, hidden, timestep, spatial_noise)
        hidden = _normalise(stock.norm_out, hidden)
        if timestep is not None:
            shift, scale = _changes(_embed(stock, timestep, dtype), stock.scale_shift_table)
            hidden = hidden * (1 + scale) + shift
        hidden = _convolve(stock.conv_out, stock.conv_act(hidden)).float()
        return (_unfold(hidden, (stock.patch_size_t, stock.patch_size, stock.patch_size), rows_first=False),)


def _resnets(
    block: LTXVideoMidBlock3d | LTXVideoUpBlock3d,
    hidden: torch.Tensor,
    timestep: torch.Tensor | None,
    spatial_noise: Iterator[torch.Tensor],
) -> torch.Tensor:
    embedded = None if timestep is None else _embed(block, timestep, hidden.dtype)
    for resnet in block.resnets:
        hidden = _resnet(resnet, hidden, embedded, spatial_noise)
    return hidden


def _resnet(
    block: LTXVideoResnetBlock3d,
    hidden: torch.Tensor,
    embedded: torch.Tensor | None,
    spatial_noise: Iterator[torch.Tensor],
) -> torch.Tensor:
    shortcut = hidden
    shift_1 = scale_1 = shift_2 = scale_2 = None
    if embedded is not None:
        shift_1, scale_1, shift_2, scale_2 = _changes(embedded, block.scale_shift_table)
    for norm, conv, shift, scale, strength in (
        (block.norm1, block.conv1, shift_1, scale_1, block.per_channel_scale1),
        (block.norm2, block.conv2, shift_2, scale_2, block.per_channel_scale2),
    ):
        hidden = _normalise(norm, hidden)
        if shift is not None and scale is not None:
            hidden = hidden * (1 + scale) + shift
        hidden = _convolve(conv, block.nonlinearity(hidden))
        if strength is not None:
            hidden = hidden + (next(spatial_noise).to(hidden.dtype) * strength)[None, :, None]
    if block.conv_shortcut is not None:
        shortcut = block.norm3(shortcut.movedim(1, -1)).movedim(-1, 1)
        shortcut = _convolve(block.conv_shortcut, shortcut)
    return hidden + shortcut


def _convolve(layer: LTXVideoCausalConv3d, hidden: torch.Tensor) -> torch.Tensor:
    """A convolution that continues the clip with its first and last frames."""
    around = layer.kernel_size[0] - 1
    before, after = (around, 0) if layer.is_causal else (around // 2, around // 2)
    if around:
        hidden = torch.cat([*[hidden[:, :, :1]] * before, hidden, *[hidden[:, :, -1:]] * after], dim=2)
    result: torch.Tensor = layer.conv(hidden)
    return result


def _upsample(layer: LTXVideoUpsampler3d, hidden: torch.Tensor) -> torch.Tensor:
    grown = _unfold(_convolve(layer.conv, hidden), layer.stride)
    if layer.residual:
        repeats = math.prod(layer.stride) // layer.upscale_factor
        grown = grown + torch.cat([_unfold(hidden, layer.stride)] * repeats, dim=1)
    # The first latent frame stands for one video frame only.
    return grown[:, :, layer.stride[0] - 1 :]


def _unfold(hidden: torch.Tensor, factors: tuple[int, int, int], *, rows_first: bool = True) -> torch.Tensor:
    """Channels into frames, rows and columns; ``rows_first`` tells in which order the channels hold the last two."""
    time, high, wide = factors
    _, _, frames, rows, columns = hidden.shape
    hidden = hidden.reshape(1, -1, time, high, wide, frames, rows, columns)
    hidden = hidden.permute((0, 1, 5, 2, 6, 3, 7, 4) if rows_first else (0, 1, 5, 2, 6, 4, 7, 3))
    return hidden.reshape(1, -1, frames * time, rows * high, columns * wide)


def _normalise(norm: RMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """RMS normalisation over the channels [1, channels, ...]."""
    last = hidden.movedim(1, -1)
    return torch.nn.functional.rms_norm(last, last.shape[-1:], norm.weight, norm.eps).movedim(-1, 1)


def _embed(
    owner: LTXVideoDecoder3d | LTXVideoMidBlock3d | LTXVideoUpBlock3d, timestep: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    embedded: torch.Tensor = owner.time_embedder(
        timestep=timestep, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=dtype
    )
    return embedded


def _changes(embedded: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shifts and scales of adaLN-single, [1, channels, 1, 1, 1] each."""
    changes = embedded.reshape(1, *table.shape) + table[None]
    return tuple(change[..., None, None, None] for change in changes.unbind(dim=1))


def _load(folder: Path, statistics: tuple[tuple[float, ...], tuple[float, ...]], precision: Precision) -> Exportable:
    vae: AutoencoderKLLTXVideo = load_model(AutoencoderKLLTXVideo, folder, precision)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
    std = std / vae.config.scaling_factor
    spec = _spec(vae, precision)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        values = {"timestep": torch.tensor([0.05]), "noise_scale": torch.tensor([0.025])}
        return tuple(
            values.get(tensor.name, torch.randn(tensor.resolve(sizes), generator=generator)) for tensor in spec.inputs
        )

    return Exportable(
        spec=spec,
        module=LtxDecoder(vae.decoder, mean, std).eval(),
        reference=_reference(vae),
        inputs=inputs,
        export_sizes={"frames": 3, "height": 2, "width": 4},
        verify_sizes=({"frames": 2, "height": 3, "width": 2}, {"frames": 4, "height": 2, "width": 3}),
    )


def _spec(vae: AutoencoderKLLTXVideo, precision: Precision) -> GraphSpec:
    decoder, config = vae.decoder, vae.config
    shape = (1, config.latent_channels, "frames", "height", "width")
    inputs = [TensorSpec(name="latents", dtype="float32", shape=shape)]
    if decoder.timestep_scale_multiplier is not None:
        inputs += [TensorSpec(name=name, dtype="float32", shape=(1,)) for name in ("timestep", "noise_scale")]
        inputs.append(TensorSpec(name="noise", dtype="float32", shape=shape))
    factor = frame_factor = 1
    noises: list[tuple[Dim, ...]] = []
    for block in (decoder.mid_block, *decoder.up_blocks):
        resnets = [*block.resnets]
        if getattr(block, "conv_in", None) is not None:
            noises += _noise_shapes(block.conv_in, factor)
        for upsampler in getattr(block, "upsamplers", None) or ():
            frame_factor, factor = frame_factor * upsampler.stride[0], factor * upsampler.stride[1]
        for resnet in resnets:
            noises += _noise_shapes(resnet, factor)
    inputs += [
        TensorSpec(name=f"{SPATIAL_NOISE}{index:02}", dtype="float32", shape=noise)
        for index, noise in enumerate(noises)
    ]
    time, space = frame_factor * config.patch_size_t, factor * config.patch_size
    frames = (1, config.out_channels, f"{time}*frames-{time - 1}", f"{space}*height", f"{space}*width")
    return GraphSpec(
        name=VAE,
        precision=precision,
        inputs=tuple(inputs),
        outputs=(TensorSpec(name="frames", dtype="float32", shape=frames),),
    )


def _noise_shapes(resnet: LTXVideoResnetBlock3d, factor: int) -> list[tuple[Dim, ...]]:
    """The noises that a resnet draws: one for each of its convolutions, as large as a frame is there."""
    shape: tuple[Dim, ...] = ("height", "width") if factor == 1 else (f"{factor}*height", f"{factor}*width")
    return [shape for strength in (resnet.per_channel_scale1, resnet.per_channel_scale2) if strength is not None]


class _Given(TorchFunctionMode):
    """Lets torch.randn return the given numbers, in turn: the stock decoder takes no noise from its caller."""

    def __init__(self, noises: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.noises = iter(noises)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is not torch.randn:
            return func(*args, **kwargs)
        noise = next(self.noises)
        assert args == (noise.shape,), f"the stock decoder asked for noise of shape {args}, not {noise.shape}"
        dtype = kwargs["dtype"]
        assert isinstance(dtype, torch.dtype)
        return noise.to(dtype)


def _reference(vae: AutoencoderKLLTXVideo) -> Callable[..., Tensors]:
    """The stock VAE called as the end of LTXPipeline's ``__call__`` does."""

    def call(latents: torch.Tensor, *others: torch.Tensor) -> Tensors:
        latents = LTXPipeline._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        ).to(vae.dtype)
        timestep = None
        if vae.config.timestep_conditioning:
            timestep, noise_scale, noise = (each.to(vae.dtype) for each in others[:3])
            others = others[3:]
            noise_scale = noise_scale[:, None, None, None, None]
            latents = (1 - noise_scale) * latents + noise_scale * noise
        with _Given(others):
            return (vae.decode(latents, timestep, return_dict=False)[0].float(),)

    return call
