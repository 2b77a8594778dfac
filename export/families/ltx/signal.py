"""What TeaCache looks at in an LTX-Video transformer: the modulated input of its first block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import LTXVideoTransformer3DModel

from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.load import load_model
from flowblending.export.lora.fit import Lora


def load_signal(folder: Path, name: str, loras: Sequence[Lora] = ()) -> Exportable:
    """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B] -> signal fp32 [B, D, F, H, W].

    Args:
        folder: of the transformer; of its blocks only the first is read.
        name: of the component.
        loras: to fuse into the weights.
    """
    stock: LTXVideoTransformer3DModel = load_model(
        LTXVideoTransformer3DModel, folder, Precision.FP32, layers=1, loras=loras
    )
    channels, size = stock.config.in_channels, ("frames", "height", "width")

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        shape = (sizes["batch"], channels, *(sizes[each] for each in size))
        return torch.randn(shape, generator=generator), 1000.0 * torch.rand(sizes["batch"], generator=generator)

    return Exportable(
        spec=GraphSpec(
            name=name,
            precision=Precision.FP32,
            inputs=(
                TensorSpec(name="latents", dtype="float32", shape=("batch", channels, *size)),
                TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            ),
            outputs=(TensorSpec(name="signal", dtype="float32", shape=("batch", stock.proj_in.out_features, *size)),),
        ),
        module=_LtxSignal(stock).eval(),
        reference=lambda latents, timestep: _reference(stock, latents, timestep),
        inputs=inputs,
        export_sizes={"batch": 2, "frames": 3, "height": 4, "width": 5},
        verify_sizes=(
            {"batch": 1, "frames": 5, "height": 3, "width": 4},
            {"batch": 3, "frames": 2, "height": 5, "width": 7},
        ),
    )


class _LtxSignal(torch.nn.Module):
    """norm1(proj_in(latents)) * (1 + scale) + shift of block 0 (diffusers models/transformers/transformer_ltx.py)."""

    def __init__(self, stock: LTXVideoTransformer3DModel) -> None:
        super().__init__()
        block, projection = stock.transformer_blocks[0], stock.time_embed.linear
        self.project, self.norm, self.embed = stock.proj_in, block.norm1, stock.time_embed.emb
        # Shift and scale are two of the six parts of a large projection; the others are for later in the block.
        rows = 2 * block.scale_shift_table.shape[1]
        self.table = torch.nn.Parameter(block.scale_shift_table[:2].clone(), requires_grad=False)
        self.weight = torch.nn.Parameter(projection.weight[:rows].clone(), requires_grad=False)
        self.bias = torch.nn.Parameter(projection.bias[:rows].clone(), requires_grad=False)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> Tensors:
        batch, _, frames, height, width = latents.shape
        hidden = self.norm(self.project(latents.flatten(2).transpose(1, 2)))
        embedded = self.embed(timestep, resolution=None, aspect_ratio=None, batch_size=batch, hidden_dtype=hidden.dtype)
        modulation = torch.nn.functional.linear(torch.nn.functional.silu(embedded), self.weight, self.bias)
        shift, scale = (self.table[None] + modulation.reshape(-1, *self.table.shape)).chunk(2, dim=1)
        signal = hidden * (1 + scale) + shift
        return (signal.transpose(1, 2).reshape(batch, -1, frames, height, width),)


def _reference(stock: LTXVideoTransformer3DModel, latents: torch.Tensor, timestep: torch.Tensor) -> Tensors:
    """The same as the stock model computes it on its way: what its first self-attention is given."""
    batch, _, frames, height, width = latents.shape
    seen: list[torch.Tensor] = []
    attention = stock.transformer_blocks[0].attn1
    hook = attention.register_forward_pre_hook(
        lambda _, arguments, named: seen.append(named["hidden_states"] if "hidden_states" in named else arguments[0]),
        with_kwargs=True,
    )
    try:
        stock(
            hidden_states=latents.flatten(2).transpose(1, 2),
            encoder_hidden_states=torch.zeros(batch, 1, stock.config.caption_channels),
            timestep=timestep,
            encoder_attention_mask=torch.ones(batch, 1),
            num_frames=frames,
            height=height,
            width=width,
        )
    finally:
        hook.remove()
    return (seen[0].transpose(1, 2).reshape(batch, -1, frames, height, width),)
