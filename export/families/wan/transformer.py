"""The Wan transformer as a graph: diffusers' WanTransformer3DModel with attention and positions that compile well.

SkyReelsV2Transformer3DModel is the same but for the timestep's embedding, as long as it attends to all frames at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from flowblending.contracts.conditions import IMAGE_CHANNELS, IMAGE_TOKENS
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.families.wan.attention import Attention, MixedAttention
from flowblending.export.families.wan.embedders import ImageEmbedding, Timesteps
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.load import ModelClass, load_model, twin
from flowblending.export.graph.mixed import narrow_layers
from flowblending.export.lora.fit import Lora

Model = TypeVar("Model", WanTransformer3DModel, WanVACETransformer3DModel, SkyReelsV2Transformer3DModel)
Transformer: TypeAlias = WanTransformer3DModel | SkyReelsV2Transformer3DModel

REVISION = 1
"""Raised when this file makes other graphs."""


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """What a transformer sees of images through CLIP.

    Attributes:
        each: tokens of an image.
        images: how many there are of a video: its first frame, or the first and the last.
        width: of a token.
    """

    each: int
    images: int
    width: int

    @property
    def total(self) -> int:
        """Tokens of all images."""
        return self.each * self.images


def load_transformer(
    folder: Path,
    name: str,
    text_length: int,
    precision: Precision,
    loras: Sequence[Lora] = (),
    *,
    image: ImageTokens | None = None,
    kind: ModelClass[Transformer] = WanTransformer3DModel,
) -> Exportable:
    """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B], text fp32 [B, L, D] -> velocity fp32 like latents.

    One that takes more channels than it gives has a fourth input, ``image_channels`` fp32 [B, X, F, H, W], for those
    behind the latents'; and one that sees images a fifth, ``image_tokens`` fp32 [B, N, W], one image behind the other.

    Args:
        folder: of a transformer for text, or for text and channels beside the latents.
        name: of the component.
        text_length: L, fixed in the graph; where it sees images, what its class takes for granted (512).
        precision: of everything that diffusers does not keep in fp32.
        loras: to fuse into the weights.
        image: what it sees of images, if it does.
        kind: its class.
    """
    stock: Transformer = load_model(kind, folder, precision, streamed=True, loras=loras)
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
            *(() if image is None else (_tokens(image),)),
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

    module = _Call(*rewritten(stock, precision, 0 if image is None else image.total))
    return Exportable(
        spec=spec,
        module=module,
        reference=_Call(stock, stock.dtype, image),
        inputs=inputs,
        export_sizes=sizes(2, 3, 4, 5),
        verify_sizes=(sizes(1, 1, 3, 2), sizes(2, 4, 2, 5)),
        streamed=(stock, module),
    )


def _tokens(image: ImageTokens) -> TensorSpec:
    return TensorSpec(name=IMAGE_TOKENS, dtype="float32", shape=("batch", image.total, image.width))


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


def rewritten(stock: Model, precision: Precision, image_tokens: int = 0) -> tuple[Model, torch.dtype]:
    """A copy with other positions and attention, over the same weights; and the type that it computes between layers.

    That is the type of its weights, and in fp16-mixed fp32: blocks go on in the type of what they are given.

    Args:
        stock: it is not changed.
        precision: of its weights.
        image_tokens: of all images that it sees through CLIP.
    """
    model = twin(stock)
    model.rope = _Rotary(stock.rope)
    embedder = model.condition_embedder
    if embedder.image_embedder is not None:
        embedder.image_embedder = ImageEmbedding(embedder.image_embedder)
    if isinstance(stock, SkyReelsV2Transformer3DModel):
        embedder.timesteps_proj = Timesteps(embedder.timesteps_proj)
    if precision is not Precision.FP16_MIXED:
        model.set_attn_processor(Attention(image_tokens=image_tokens))
        return model, stock.dtype
    narrow_layers(model)
    model.patch_embedding.register_forward_hook(lambda _layer, _inputs, tokens: tokens.float())
    processor = MixedAttention(normalised=stock.config.cross_attn_norm, image_tokens=image_tokens)
    model.set_attn_processor(processor)
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


class _Call(torch.nn.Module):
    """A transformer called as its pipeline calls it: what it is given in its own type ``dtype``; all else is fp32.

    Args:
        model: the stock one, or one rewritten.
        dtype: of what it is given beside the timestep.
        rows: of the stock one: the images of a video are rows of a batch to it.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype, rows: ImageTokens | None = None) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.rows = rows

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        image_channels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
    ) -> Tensors:
        """Velocity, fp32, like ``latents``, behind which the channels of an image are put."""
        if image_channels is not None:
            latents = torch.cat([latents, image_channels], dim=1)
        seen = () if image_tokens is None else (image_tokens.to(self.dtype),)
        if seen and self.rows is not None:
            seen = (seen[0].reshape(-1, self.rows.each, self.rows.width),)
        velocity = self.model(latents.to(self.dtype), timestep, text.to(self.dtype), *seen, return_dict=False)[0]
        return (velocity.float(),)
