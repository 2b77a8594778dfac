"""The Wan transformer as a graph: diffusers' WanTransformer3DModel with attention and positions that compile well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed

from flowblending.contracts.conditions import IMAGE_CHANNELS
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.graph.attention import attend, rotate
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.load import load_model, twin
from flowblending.export.graph.mixed import narrow_layers, normalise, project
from flowblending.export.lora.fit import Lora

Model = TypeVar("Model", WanTransformer3DModel, WanVACETransformer3DModel)

REVISION = 1
"""Raised when this file makes other graphs."""


def load_transformer(
    folder: Path, name: str, text_length: int, precision: Precision, loras: Sequence[Lora] = ()
) -> Exportable:
    """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B], text fp32 [B, L, D] -> velocity fp32 like latents.

    One that takes more channels than it gives has a fourth input, ``image_channels`` fp32 [B, X, F, H, W], for those
    behind the latents'.

    Args:
        folder: of a transformer for text, or for text and channels beside the latents.
        name: of the component.
        text_length: L, fixed in the graph.
        precision: of everything that diffusers does not keep in fp32.
        loras: to fuse into the weights.
    """
    stock: WanTransformer3DModel = load_model(WanTransformer3DModel, folder, precision, streamed=True, loras=loras)
    config = stock.config
    patch = config.patch_size
    size = ("frames", "height", "width")
    channels = config.out_channels or config.in_channels
    beside = (TensorSpec(name=IMAGE_CHANNELS, dtype="float32", shape=("batch", config.in_channels - channels, *size)),)
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=("batch", channels, *size)),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", text_length, config.text_dim)),
            *(beside if config.in_channels > channels else ()),
        ),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=("batch", channels, *size)),),
    )

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        latents, timestep, *others = (torch.empty(tensor.resolve(sizes)) for tensor in spec.inputs)
        return (
            latents.normal_(generator=generator),
            timestep.random_(0, 1000, generator=generator),
            *(each.normal_(generator=generator) for each in others),
        )

    def sizes(batch: int, frames: int, height: int, width: int) -> dict[str, int]:
        counts = {"frames": frames * patch[0], "height": height * patch[1], "width": width * patch[2]}
        return {"batch": batch, **counts}

    module = _Call(*rewritten(stock, precision))
    return Exportable(
        spec=spec,
        module=module,
        reference=_Call(stock, stock.dtype),
        inputs=inputs,
        export_sizes=sizes(2, 3, 4, 5),
        verify_sizes=(sizes(1, 1, 3, 2), sizes(2, 4, 2, 5)),
        streamed=(stock, module),
    )


def load_signal(folder: Path, name: str, loras: Sequence[Lora] = ()) -> Exportable:
    """The graph: timestep fp32 [B] -> signal fp32 [B, 6 D], what TeaCache's ``ret_steps`` variant calls ``e0``.

    Args:
        folder: of a transformer; its blocks are not read.
        name: of the component.
        loras: to fuse into the weights.
    """
    stock: WanTransformer3DModel = load_model(WanTransformer3DModel, folder, Precision.FP32, layers=0, loras=loras)
    width = 6 * stock.config.num_attention_heads * stock.config.attention_head_dim

    def reference(timestep: torch.Tensor) -> Tensors:
        text = torch.zeros(len(timestep), 1, stock.config.text_dim)
        return (stock.condition_embedder(timestep, text)[1],)

    return Exportable(
        spec=GraphSpec(
            name=name,
            precision=Precision.FP32,
            inputs=(TensorSpec(name="timestep", dtype="float32", shape=("batch",)),),
            outputs=(TensorSpec(name="signal", dtype="float32", shape=("batch", width)),),
        ),
        module=_WanSignal(stock),
        reference=reference,
        inputs=lambda sizes, generator: (torch.empty(sizes["batch"]).random_(0, 1000, generator=generator),),
        export_sizes={"batch": 2},
        verify_sizes=({"batch": 1}, {"batch": 5}),
    )


class _WanSignal(torch.nn.Module):
    """The projected timestep embedding of a Wan transformer."""

    def __init__(self, stock: WanTransformer3DModel) -> None:
        super().__init__()
        self.embedder = stock.condition_embedder

    def forward(self, timestep: torch.Tensor) -> Tensors:
        embedded = self.embedder.time_embedder(self.embedder.timesteps_proj(timestep))
        return (self.embedder.time_proj(self.embedder.act_fn(embedded)),)


def rewritten(stock: Model, precision: Precision) -> tuple[Model, torch.dtype]:
    """A copy with other positions and attention, over the same weights; and the type that it computes between layers.

    That is the type of its weights, and in fp16-mixed fp32: blocks go on in the type of what they are given.
    """
    model = twin(stock)
    model.rope = _Rotary(stock.rope)
    if precision is not Precision.FP16_MIXED:
        model.set_attn_processor(_Attention())
        return model, stock.dtype
    narrow_layers(model)
    model.patch_embedding.register_forward_hook(lambda _layer, _inputs, tokens: tokens.float())
    model.set_attn_processor(_MixedAttention(normalised=stock.config.cross_attn_norm))
    return model, torch.float32


class _Rotary(torch.nn.Module):
    """The position embedding of every token: cos and sin, each fp32 [batch, tokens, head_dim / 2].

    The stock module repeats each angle for the two values that it turns; RotaryEmbedding wants it once.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, stock: WanRotaryPosEmbed) -> None:
        super().__init__()
        self.patch = stock.patch_size
        self.widths = [stock.t_dim // 2, stock.h_dim // 2, stock.w_dim // 2]
        self.register_buffer("cos", stock.freqs_cos[:, 0::2].float().contiguous(), persistent=False)
        self.register_buffer("sin", stock.freqs_sin[:, 1::2].float().contiguous(), persistent=False)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = [size // patch for size, patch in zip(latents.shape[2:], self.patch, strict=True)]
        return self._spread(self.cos, latents.shape[0], counts), self._spread(self.sin, latents.shape[0], counts)

    def _spread(self, table: torch.Tensor, batch: int, counts: list[int]) -> torch.Tensor:
        columns = torch.split(table, self.widths, dim=1)
        frames, rows, places = (column[:count] for column, count in zip(columns, counts, strict=True))
        angles = [
            each.expand(*counts, each.shape[-1])
            for each in (frames[:, None, None], rows[None, :, None], places[None, None])
        ]
        # The width is a number here: compilers refuse a cache of a width that only the running graph knows.
        return torch.cat(angles, dim=-1).reshape(1, math.prod(counts), sum(self.widths)).expand(batch, -1, -1)


class _Attention:
    """Attention of a Wan block (diffusers models/transformers/transformer_wan.py, WanAttnProcessor), text only."""

    def __call__(
        self,
        attention: WanAttention,
        hidden: torch.Tensor,
        text: torch.Tensor | None = None,
        _mask: torch.Tensor | None = None,
        positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        context = hidden if text is None else text
        query = attention.norm_q(attention.to_q(hidden))
        key = attention.norm_k(attention.to_k(context))
        if positions is not None:
            query = rotate(query, *positions, attention.heads)
            key = rotate(key, *positions, attention.heads)
        output: torch.Tensor = attention.to_out[0](attend(query, key, attention.to_v(context), attention.heads))
        return output


class _MixedAttention:
    """The same with queries and keys in fp32 from the layers on which they come from to the attention itself.

    Args:
        normalised: whether what cross-attention makes its queries of has been through a norm.
    """

    def __init__(self, *, normalised: bool) -> None:
        self.normalised = normalised

    def __call__(
        self,
        attention: WanAttention,
        hidden: torch.Tensor,
        text: torch.Tensor | None = None,
        _mask: torch.Tensor | None = None,
        positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        context = hidden if text is None else text
        bare = text is not None and not self.normalised
        query = normalise(project(attention.to_q, hidden) if bare else attention.to_q(hidden), attention.norm_q)
        key = normalise(attention.to_k(context), attention.norm_k)
        if positions is not None:
            query = rotate(query, *positions, attention.heads)
            key = rotate(key, *positions, attention.heads)
        value = attention.to_v(context)
        attended = attend(query.to(value.dtype), key.to(value.dtype), value, attention.heads)
        output: torch.Tensor = attention.to_out[0](attended)
        return output


class _Call(torch.nn.Module):
    """A transformer called as its pipeline calls it: latents and text in its own type ``dtype``; all else is fp32."""

    def __init__(self, model: WanTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        image_channels: torch.Tensor | None = None,
    ) -> Tensors:
        """Velocity, fp32, like ``latents``, behind which the channels of an image are put."""
        if image_channels is not None:
            latents = torch.cat([latents, image_channels], dim=1)
        velocity = self.model(latents.to(self.dtype), timestep, text.to(self.dtype), return_dict=False)[0]
        return (velocity.float(),)
