"""The Wan transformer as a graph: diffusers' WanTransformer3DModel with attention and positions that compile well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed

from flowblending.export.attention import attend, rotate
from flowblending.export.family import Exportable, Tensors
from flowblending.export.spec import GraphSpec, Precision, TensorSpec
from flowblending.export.weights import load_model, twin


def load_transformer(folder: Path, name: str, text_length: int, precision: Precision) -> Exportable:
    """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B], text fp32 [B, L, D] -> velocity fp32 like latents.

    Args:
        folder: of a text-to-video transformer.
        name: of the component.
        text_length: L, fixed in the graph.
        precision: of everything that diffusers does not keep in fp32.
    """
    stock: WanTransformer3DModel = load_model(WanTransformer3DModel, folder, precision)
    model = twin(stock)
    model.rope = _Rotary(stock.rope)
    model.set_attn_processor(_Attention())
    config = stock.config
    patch = config.patch_size
    shape = ("batch", config.in_channels, "frames", "height", "width")
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=shape),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", text_length, config.text_dim)),
        ),
        outputs=(
            TensorSpec(
                name="velocity",
                dtype="float32",
                shape=("batch", config.out_channels or config.in_channels, *shape[2:]),
            ),
        ),
    )

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        latents, timestep, text = (torch.empty(tensor.resolve(sizes)) for tensor in spec.inputs)
        return (
            latents.normal_(generator=generator),
            timestep.random_(0, 1000, generator=generator),
            text.normal_(generator=generator),
        )

    def sizes(batch: int, frames: int, height: int, width: int) -> dict[str, int]:
        counts = {"frames": frames * patch[0], "height": height * patch[1], "width": width * patch[2]}
        return {"batch": batch, **counts}

    return Exportable(
        spec=spec,
        module=_Call(model),
        reference=_Call(stock),
        inputs=inputs,
        export_sizes=sizes(2, 3, 4, 5),
        verify_sizes=(sizes(1, 1, 3, 2), sizes(2, 4, 2, 5)),
    )


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


class _Call(torch.nn.Module):
    """A transformer called as WanPipeline calls it: latents and text in its own type; all else is fp32."""

    def __init__(self, model: WanTransformer3DModel) -> None:
        super().__init__()
        self.model = model
        # Asked now: the answer takes a walk over the parameters, and those of a traced module have other names.
        self.dtype: torch.dtype = model.dtype

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> Tensors:
        velocity = self.model(latents.to(self.dtype), timestep, text.to(self.dtype), return_dict=False)[0]
        return (velocity.float(),)
