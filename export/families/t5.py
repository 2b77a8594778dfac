"""The text encoder (T5 or UMT5) as a graph.

Knows what the pipelines do with a prompt's padding, and nothing else of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import T5EncoderModel, UMT5EncoderModel

from flowblending import FlowBlendingError
from flowblending.contracts.graph import TEXT_ENCODER, GraphSpec, Precision, TensorSpec
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files
from flowblending.export.checkpoint.naming import shown
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import check_encoder, load_encoder

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

REVISION = 1
"""Raised when this file makes other graphs."""

ENCODERS = {"t5": T5EncoderModel, "umt5": UMT5EncoderModel}
Encoder: TypeAlias = T5EncoderModel | UMT5EncoderModel


@dataclass(frozen=True, kw_only=True)
class _Padding:
    """What a pipeline does about the padding of a prompt; see ``text_encoder_part``."""

    length: int
    zeroed: bool
    attended: bool

    @property
    def masked(self) -> bool:
        """Whether the graph needs to know where the padding is."""
        return self.zeroed or not self.attended


def text_encoder_part(
    checkpoint: Checkpoint, text_length: int, zero_padding: bool, attend_padding: bool = False
) -> Part:
    """The graph ``text_encoder``: ids, mask int64 [batch, L] -> text fp32 [batch, L, D].

    Args:
        checkpoint: its text encoder must be a T5 or UMT5 encoder.
        text_length: L, fixed in the graph.
        zero_padding: whether the pipeline sets the embeddings of padding to zero (WanPipeline).
        attend_padding: whether the pipeline lets the encoder attend to padding, by giving it no mask (LTXPipeline).
            The graph then has the input ``ids`` alone, unless ``zero_padding`` needs the mask.

    Raises:
        FlowBlendingError: another kind of text encoder, or missing files.
    """
    kind = checkpoint.config(TEXT_ENCODER).get("model_type")
    if kind not in ENCODERS:
        raise FlowBlendingError(
            f"The text encoder of {shown(checkpoint.folder)} is of type {kind}, but {' or '.join(ENCODERS)} was "
            "expected; give a checkpoint whose text encoder is one of these."
        )
    padding = _Padding(length=text_length, zeroed=zero_padding, attended=attend_padding)
    return Part(
        name=TEXT_ENCODER,
        sources=component_files(checkpoint, TEXT_ENCODER),
        load=lambda precision: _load(checkpoint.folder / TEXT_ENCODER, kind, precision, padding),
        revision=f"t5 {REVISION}",
        check=lambda: check_encoder(ENCODERS[kind], checkpoint.folder / TEXT_ENCODER),
    )


class _Encoder(torch.nn.Module):
    """The forward pass of a T5 or UMT5 encoder, over the layers of the stock one, and what the pipeline does around it.

    Sums of layers and attention scores are fp32 in every precision: fp16 would overflow there, which the stock
    classes mend with clamps. T5: arXiv 1910.10683, section 2.1; transformers modeling_t5.py and modeling_umt5.py.
    """

    buckets: torch.Tensor

    def __init__(self, stock: Encoder, padding: _Padding) -> None:
        super().__init__()
        self.stock = stock
        self.padding = padding
        config = stock.config
        buckets = _position_buckets(
            padding.length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Tensors:
        stack = self.stock.encoder
        dtype = stack.embed_tokens.weight.dtype
        hidden = stack.embed_tokens(ids).float()
        bias = position = torch.zeros((), dtype=torch.float32)
        for block in stack.block:
            attention, feed_forward = block.layer[0], block.layer[-1]
            # T5 has position biases in its first layer, which all layers use; UMT5 has them in every layer.
            if attention.SelfAttention.has_relative_attention_bias:
                weight = attention.SelfAttention.relative_attention_bias.weight
                position = torch.nn.functional.embedding(self.buckets, weight).permute(2, 0, 1)[None].float()
                bias = position if self.padding.attended or mask is None else position + _padding_bias(mask)
            hidden = hidden + _attend(attention.SelfAttention, _normalise(attention.layer_norm, hidden, dtype), bias)
            hidden = hidden + feed_forward.DenseReluDense(_normalise(feed_forward.layer_norm, hidden, dtype)).float()
        text = _normalise(stack.final_layer_norm, hidden, dtype).float()
        if self.padding.zeroed and mask is not None:
            text = text * (mask > 0)[..., None]
        return (text,)


def _attend(attention: T5Attention, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Self-attention without scaling; ``bias`` fp32 [batch or 1, heads, L, L] is added to the scores."""
    length, heads, width = bias.shape[-1], attention.n_heads, attention.key_value_proj_dim
    query, key, value = (
        project(hidden).reshape(-1, length, heads, width).transpose(1, 2)
        for project in (attention.q, attention.k, attention.v)
    )
    shares = torch.softmax((query @ key.transpose(2, 3)).float() + bias, dim=-1).to(value.dtype)
    attended: torch.Tensor = attention.o((shares @ value).transpose(1, 2).reshape(-1, length, heads * width)).float()
    return attended


def _normalise(norm: T5LayerNorm, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    weight: torch.Tensor = norm.weight.float()
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, norm.variance_epsilon).to(dtype)


def _padding_bias(mask: torch.Tensor) -> torch.Tensor:
    """What keeps attention from padding: fp32 [batch, 1, 1, L]."""
    return (1.0 - mask.float())[:, None, None, :] * torch.finfo(torch.float32).min


def _position_buckets(length: int, count: int, farthest: int) -> torch.Tensor:
    """The bucket of each pair of positions, int32 [L, L]: exact up to a distance, then logarithmically wider.

    A constant of the graph: a logarithm that another library rounds otherwise would move a pair to another bucket.
    T5: arXiv 1910.10683, section 2.1; the formula is ``_relative_position_bucket`` of transformers modeling_t5.py.
    """
    positions = torch.arange(length)
    offset = positions[None, :] - positions[:, None]
    half = count // 2
    exact = half // 2
    distance = offset.abs()
    wide = exact + (torch.log(distance.float() / exact) / math.log(farthest / exact) * (half - exact)).long()
    buckets = torch.where(distance < exact, distance, wide.clamp(max=half - 1)) + (offset > 0) * half
    return buckets.int()


def _load(folder: Path, kind: str, precision: Precision, padding: _Padding) -> Exportable:
    stock = load_encoder(ENCODERS[kind], folder, precision)
    # In bf16 the stock class adds its layers up in bf16, and is further from fp32 than the graph, which adds in fp32.
    compared = stock if precision is not Precision.BF16 else load_encoder(ENCODERS[kind], folder, Precision.FP32)
    length = padding.length
    names = ("ids", "mask") if padding.masked else ("ids",)
    spec = GraphSpec(
        name=TEXT_ENCODER,
        precision=precision,
        inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("batch", length)) for name in names),
        outputs=(TensorSpec(name="text", dtype="float32", shape=("batch", length, stock.config.d_model)),),
    )

    def reference(ids: torch.Tensor, mask: torch.Tensor | None = None) -> Tensors:
        attended = {} if padding.attended else {"attention_mask": mask}
        text = compared(ids, **attended).last_hidden_state
        if padding.zeroed and mask is not None:
            # As WanPipeline does it: cut every prompt's embeddings to its length, then append zeros.
            cut = [row[:count] for row, count in zip(text, mask.sum(dim=1).tolist(), strict=True)]
            text = torch.stack([torch.cat([row, row.new_zeros(length - len(row), row.shape[1])]) for row in cut])
        return (text.float(),)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        counts = torch.randint(1, length + 1, (sizes["batch"], 1), generator=generator)
        mask = (torch.arange(length) < counts).long()
        ids = torch.randint(0, stock.config.vocab_size, mask.shape, generator=generator) * mask
        return (ids, mask) if padding.masked else (ids,)

    return Exportable(
        spec=spec,
        module=_Encoder(stock, padding).eval(),
        reference=reference,
        inputs=inputs,
        export_sizes={"batch": 2},
        verify_sizes=({"batch": 1}, {"batch": 3}),
        streamed=(stock, compared),
    )
