"""The LTX-Video transformer as a graph: one for every size, and for both pipelines' times of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import LTXVideoTransformer3DModel

from flowblending.contracts.conditions import frame_times
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.families.ltx.reference import condition_reference, plain_reference
from flowblending.export.graph.attention import attend, rotate
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.load import load_model
from flowblending.export.graph.mixed import normalise, project
from flowblending.export.lora.fit import Lora

if TYPE_CHECKING:
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoTransformerBlock

REVISION = 1
"""Raised when this file makes other graphs."""


def load_transformer(
    folder: Path,
    name: str,
    precision: Precision,
    *,
    text_length: int,
    factors: tuple[int, int],
    causal: bool,
    held: bool = False,
    loras: Sequence[Lora] = (),
) -> Exportable:
    """The graph: latents, timestep, text, text_mask, frame_rate -> velocity like latents.

    With ``held`` there is a timestep for every latent frame, [batch, frames], and with ``causal`` beside it an input
    ``frame_times`` fp32 [frames], the frame of the video that each latent frame begins with.

    Args:
        folder: of the transformer.
        name: of the component.
        precision: of weights and matrix products; latents, rotation and time embedding enter in fp32.
        text_length: tokens of a prompt, fixed in the graph.
        factors: video frames and pixels per latent frame and pixel.
        causal: whether frames are at the times of LTXConditionPipeline.
        held: whether some latent frames may be given.
        loras: to fuse into the weights.
    """
    stock: LTXVideoTransformer3DModel = load_model(
        LTXVideoTransformer3DModel, folder, precision, streamed=True, loras=loras
    )
    config = stock.config
    size: tuple[str, ...] = ("frames", "height", "width")
    length, width = text_length, config.caption_channels
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=("batch", config.in_channels, *size)),
            TensorSpec(name="timestep", dtype="float32", shape=("batch", "frames") if held else ("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", length, width)),
            TensorSpec(name="text_mask", dtype="int64", shape=("batch", length)),
            TensorSpec(name="frame_rate", dtype="float32", shape=(1,)),
            *([TensorSpec(name="frame_times", dtype="float32", shape=("frames",))] if held and causal else []),
        ),
        outputs=(
            TensorSpec(
                name="velocity", dtype="float32", shape=("batch", config.out_channels or config.in_channels, *size)
            ),
        ),
    )

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        batch = sizes["batch"]
        shape = (batch, config.in_channels, sizes["frames"], sizes["height"], sizes["width"])
        counts = torch.randint(1, length + 1, (batch, 1), generator=generator)
        frames = sizes["frames"]
        # Some out of order, as those of frames that were given are.
        times = torch.tensor(frame_times(frames, factors[0])) + torch.randint(4, (frames,), generator=generator)
        return (
            torch.randn(shape, generator=generator),
            1000.0 * torch.rand((batch, frames) if held else batch, generator=generator),
            torch.randn((batch, length, width), generator=generator),
            (torch.arange(length) < counts).long(),
            torch.tensor([24.0, 25.0, 30.0])[torch.randint(3, (1,), generator=generator)],
            *([times] if held and causal else []),
        )

    return Exportable(
        spec=spec,
        module=LtxTransformer(stock, factors, causal=causal, mixed=precision is Precision.FP16_MIXED).eval(),
        reference=(condition_reference if causal else plain_reference)(stock, factors),
        inputs=inputs,
        export_sizes={"batch": 2, "frames": 3, "height": 4, "width": 5},
        verify_sizes=(
            {"batch": 1, "frames": 5, "height": 3, "width": 4},
            {"batch": 3, "frames": 2, "height": 5, "width": 7},
        ),
        streamed=(stock,),
    )


class LtxTransformer(torch.nn.Module):
    """LTXVideoTransformer3DModel's forward pass over the layers of the stock model, written for compilers.

    Differs from the stock one in form, not in result: latents are packed inside, rotary coordinates follow from the
    shapes, and normalisation, rotation and attention are one operator each.

    Args:
        stock: used as it is, and not changed.
        factors: video frames and pixels per latent frame and pixel.
        causal: frames at the times of LTXConditionPipeline (the first one spans one video frame), not LTXPipeline.
        mixed: fp32 between the layers (fp16-mixed), not the type of their weights.
    """

    frequencies: torch.Tensor

    def __init__(
        self, stock: LTXVideoTransformer3DModel, factors: tuple[int, int], *, causal: bool, mixed: bool = False
    ) -> None:
        super().__init__()
        self.stock = stock
        self.factors = factors
        self.causal = causal
        self.stream = torch.float32 if mixed else stock.proj_in.weight.dtype
        rope = stock.rope
        exponents = torch.linspace(0.0, 1.0, rope.dim // 6, dtype=torch.float32)
        self.register_buffer("frequencies", rope.theta**exponents * math.pi / 2.0, persistent=False)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        frame_rate: torch.Tensor,
        *frame_times: torch.Tensor,
    ) -> Tensors:
        """Velocity, fp32, like ``latents``."""
        stock, dtype = self.stock, self.stock.proj_in.weight.dtype
        batch, _, frames, height, width = latents.shape
        hidden = stock.proj_in(latents.to(dtype).flatten(2).transpose(1, 2)).to(self.stream)
        by_frame = timestep.dim() == 2
        if by_frame:
            timestep = timestep.flatten()
        modulation, embedded = stock.time_embed(timestep, batch_size=batch, hidden_dtype=dtype)
        context = stock.caption_projection(text.to(dtype))
        # -10000 rather than minus infinity, as the stock model has it; ONNX Runtime wants a row for every query.
        bias = ((1 - text_mask.to(dtype)) * -10000.0)[:, None, None, :].expand(-1, -1, hidden.shape[1], -1)
        cos, sin = self._rotation(frames, height, width, frame_rate, *frame_times)
        rotation = cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)
        for block in stock.transformer_blocks:
            hidden = _block(
                block, hidden, context, modulation=modulation, rotation=rotation, bias=bias, by_frame=by_frame
            )
        shift, scale = (stock.scale_shift_table.to(self.stream)[None] + embedded[:, None]).chunk(2, dim=1)
        hidden = _grouped(stock.norm_out(hidden), scale, by_frame) * (1 + scale) + shift
        velocity = stock.proj_out(_ungrouped(hidden, batch, by_frame).to(dtype)).float()
        return (velocity.transpose(1, 2).reshape(batch, -1, frames, height, width),)

    def _rotation(
        self, frames: int, height: int, width: int, frame_rate: torch.Tensor, *frame_times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, fp32 [1, tokens, channels / 2].

        LTXVideoRotaryPosEmbed of diffusers transformer_ltx.py, with the coordinates of the two pipelines: one table
        per axis, spread over the tokens, since the angle of a channel depends on one axis only.
        """
        temporal, spatial = self.factors
        rope = self.stock.rope
        index = torch.arange(frames, dtype=torch.float32)
        if frame_times:
            seconds = frame_times[0] * (1.0 / frame_rate)
        elif self.causal:
            seconds = (index * temporal + (1 - temporal)).clamp(min=0.0) * (1.0 / frame_rate)
        else:
            seconds = index * (temporal / frame_rate)
        rows = torch.arange(height, dtype=torch.float32) * spatial
        columns = torch.arange(width, dtype=torch.float32) * spatial
        axes = (
            (seconds / rope.base_num_frames)[:, None, None],
            (rows / rope.base_height)[None, :, None],
            (columns / rope.base_width)[None, None, :],
        )
        angles = [self.frequencies * (axis[..., None] * 2 - 1) for axis in axes]
        # Channels that six does not divide come first and are not rotated.
        rest = rope.dim // 2 - 3 * (rope.dim // 6)
        tables = []
        for function, still in ((torch.cos, 1.0), (torch.sin, 0.0)):
            spread = [function(angle).expand(frames, height, width, -1) for angle in angles]
            table = torch.stack(spread, dim=-1).reshape(frames * height * width, 3 * (rope.dim // 6))
            tables.append(torch.nn.functional.pad(table, (rest, 0), value=still)[None])
        return tables[0], tables[1]


def _block(
    block: LTXVideoTransformerBlock,
    hidden: torch.Tensor,
    context: torch.Tensor,
    *,
    modulation: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor,
    by_frame: bool,
) -> torch.Tensor:
    """One transformer block; ``modulation`` [batch, 6 * channels] is the time embedding for adaLN-single.

    With ``by_frame`` there is one for every latent frame, [batch * frames, 6 * channels].

    The type of ``hidden`` is that of all sums, products and norms between the layers.
    """
    table = block.scale_shift_table.to(hidden.dtype)
    batch = hidden.shape[0]
    changes = table[None] + modulation.reshape(-1, *table.shape)
    shift, scale, gate, shift_ff, scale_ff, gate_ff = changes.chunk(6, dim=1)
    normed = _grouped(_normalise(block.norm1, hidden), scale, by_frame) * (1 + scale) + shift
    attended = _attention(block.attn1, _ungrouped(normed, batch, by_frame), rotation=rotation)
    hidden = hidden + _ungrouped(_grouped(attended, gate, by_frame) * gate, batch, by_frame)
    hidden = hidden + _attention(block.attn2, hidden, context, bias=bias)
    normed = _grouped(_normalise(block.norm2, hidden), scale_ff, by_frame) * (1 + scale_ff) + shift_ff
    changed = block.ff(_ungrouped(normed, batch, by_frame).to(context.dtype))
    return hidden + _ungrouped(_grouped(changed, gate_ff, by_frame) * gate_ff, batch, by_frame)


def _grouped(values: torch.Tensor, by: torch.Tensor, by_frame: bool) -> torch.Tensor:
    """Tokens [batch, frames * rows * columns, C] as [batch * frames, rows * columns, C], like ``by``."""
    return values.reshape(by.shape[0], -1, values.shape[-1]) if by_frame else values


def _ungrouped(values: torch.Tensor, batch: int, by_frame: bool) -> torch.Tensor:
    """The other way round."""
    return values.reshape(batch, -1, values.shape[-1]) if by_frame else values


def _attention(
    attention: LTXAttention,
    hidden: torch.Tensor,
    text: torch.Tensor | None = None,
    *,
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Self-attention, or cross-attention to ``text``; in the type of the weights, whatever that of ``hidden`` is."""
    dtype = attention.to_v.weight.dtype
    context = hidden.to(dtype) if text is None else text
    if hidden.dtype == dtype:
        query, key = attention.norm_q(attention.to_q(hidden)), attention.norm_k(attention.to_k(context))
    else:
        # Cross-attention is where the stream meets a layer with no norm before it.
        query = attention.to_q(context) if text is None else project(attention.to_q, hidden)
        query, key = normalise(query, attention.norm_q), normalise(attention.to_k(context), attention.norm_k)
    if rotation is not None:
        # All channels are rotated as if they were one head, before they become heads.
        query, key = rotate(query, *rotation, 1), rotate(key, *rotation, 1)
    value = attention.to_v(context)
    attended = attend(query.to(dtype), key.to(dtype), value, attention.heads, mask=bias)
    result: torch.Tensor = attention.to_out[0](attended)
    return result


def _normalise(norm: RMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    weight = None if norm.weight is None else norm.weight.to(hidden.dtype)
    return torch.nn.functional.rms_norm(hidden, tuple(norm.dim), weight, norm.eps)
