"""The Wan VACE transformer as a graph: WanVACETransformer3DModel, whose own blocks turn a control into hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import WanVACETransformer3DModel

from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.families.wan.transformer import rewritten
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.load import load_model
from flowblending.export.graph.mixed import project
from flowblending.export.lora.fit import Lora

REVISION = 1
"""Raised when this file makes other graphs."""


def load_transformer(
    folder: Path, name: str, text_length: int, precision: Precision, loras: Sequence[Lora] = ()
) -> Exportable:
    """The graph: latents, timestep, text as in text-to-video, control and its scales -> velocity fp32 like latents.

    ``control`` is fp32 [B, 96, F, H, W]: latents of what is to stay and of what is to change, and the mask of every
    pixel; ``control_scale`` fp32 [layers] is what each hint is multiplied by.

    Args:
        folder: of a VACE transformer.
        name: of the component.
        text_length: of the text, fixed in the graph.
        precision: of everything that diffusers does not keep in fp32.
        loras: to fuse into the weights.
    """
    stock: WanVACETransformer3DModel = load_model(
        WanVACETransformer3DModel, folder, precision, streamed=True, loras=loras
    )
    config = stock.config
    patch = config.patch_size
    size = ("frames", "height", "width")
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=("batch", config.in_channels, *size)),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", text_length, config.text_dim)),
            TensorSpec(name="control", dtype="float32", shape=("batch", config.vace_in_channels, *size)),
            TensorSpec(name="control_scale", dtype="float32", shape=(len(config.vace_layers),)),
        ),
        outputs=(
            TensorSpec(
                name="velocity", dtype="float32", shape=("batch", config.out_channels or config.in_channels, *size)
            ),
        ),
    )

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        latents, timestep, text, control, scale = (torch.empty(tensor.resolve(sizes)) for tensor in spec.inputs)
        return (
            latents.normal_(generator=generator),
            timestep.random_(0, 1000, generator=generator),
            text.normal_(generator=generator),
            control.normal_(generator=generator),
            scale.uniform_(0.5, 1.5, generator=generator),
        )

    def sizes(batch: int, frames: int, height: int, width: int) -> dict[str, int]:
        return {"batch": batch, "frames": frames * patch[0], "height": height * patch[1], "width": width * patch[2]}

    def reference(
        latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, control: torch.Tensor, scale: torch.Tensor
    ) -> Tensors:
        velocity = stock(
            hidden_states=latents.to(stock.dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(stock.dtype),
            control_hidden_states=control.to(stock.dtype),
            control_hidden_states_scale=scale.to(stock.dtype),
            return_dict=False,
        )[0]
        return (velocity.float(),)

    module = VaceTransformer(*rewritten(stock, precision)).eval()
    return Exportable(
        spec=spec,
        module=module,
        reference=reference,
        inputs=inputs,
        export_sizes=sizes(2, 3, 4, 5),
        verify_sizes=(sizes(1, 1, 3, 2), sizes(2, 4, 2, 5)),
        streamed=(stock, module),
    )


class VaceTransformer(torch.nn.Module):
    """WanVACETransformer3DModel's forward pass, the blocks of the control between those of the video.

    A hint is computed where it is needed, so that there is never more than one of them in memory; the stock class
    computes all of them first. A control always has as many tokens as the video, so that nothing is padded.

    Args:
        model: a rewritten copy, which is changed.
        dtype: of everything between the layers.
    """

    def __init__(self, model: WanVACETransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        if dtype != model.dtype:
            for block in model.vace_blocks:
                block.proj_out = _Projection(block.proj_out)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        control: torch.Tensor,
        control_scale: torch.Tensor,
    ) -> Tensors:
        """Velocity, fp32, like ``latents``."""
        model, patch = self.model, self.model.config.patch_size
        batch, _, *size = latents.shape
        counts = [count // step for count, step in zip(size, patch, strict=True)]
        rotation = model.rope(latents)
        hidden = model.patch_embedding(latents.to(self.dtype)).flatten(2).transpose(1, 2)
        hints = model.vace_patch_embedding(control.to(self.dtype)).flatten(2).transpose(1, 2)
        embedded, modulation, context, _ = model.condition_embedder(timestep, text.to(self.dtype), None)
        modulation = modulation.unflatten(1, (6, -1))
        first, scales = hidden, control_scale.to(self.dtype)
        for index, block in enumerate(model.blocks):
            hidden = block(hidden, context, modulation, rotation)
            if index in model.config.vace_layers:
                place = model.config.vace_layers.index(index)
                hint, hints = model.vace_blocks[place](first, context, hints, modulation, rotation)
                hidden = hidden + hint * scales[place]
        shift, scale = (model.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
        velocity = model.proj_out((model.norm_out(hidden.float()) * (1 + scale) + shift).to(hidden.dtype)).float()
        patches = velocity.reshape(batch, *counts, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return (patches.reshape(batch, -1, *(n * p for n, p in zip(counts, patch, strict=True))),)


class _Projection(torch.nn.Linear):
    """A linear layer over a stream that no norm has brought to size, in fp16-mixed."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return project(self, stream)
