"""The family Wan 2.1 text-to-video, as diffusers' WanPipeline runs it (pipelines/wan/pipeline_wan.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanRotaryPosEmbed

from flowblending import FlowBlendingError
from flowblending.export.attention import attend, rotate
from flowblending.export.checkpoint import (
    MODEL_INDEX,
    TRANSFORMER,
    Checkpoint,
    model_files,
    read_json,
    vae_factors,
    vae_statistics,
)
from flowblending.export.family import Exportable, Part, Tensors
from flowblending.export.spec import GraphSpec, PipelineSpec, Precision, SigmaGrid, TensorSpec
from flowblending.export.wan_vae import decoder_parts
from flowblending.export.weights import load_model, twin

TEXT_LENGTH = 512
"""Tokens of a prompt: the default of WanPipeline, which pads every prompt to it and gives no mask to the transformer."""

_SCHEDULERS = {
    "UniPCMultistepScheduler": ("unipc", "flow_shift"),
    "DPMSolverMultistepScheduler": ("dpm++", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("euler", "shift"),
}


class Wan:
    """Which checkpoints are Wan 2.1 text-to-video, and what they consist of."""

    name = "wan"
    pipelines = ("WanPipeline",)

    def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
        """The constants of WanPipeline and of this checkpoint.

        Raises:
            FlowBlendingError: a pipeline of Wan 2.2 or a scheduler of another kind.
        """
        _refuse_later_versions(checkpoint)
        solver, grid = _sampler(checkpoint)
        temporal, spatial = vae_factors(checkpoint)
        mean, std = vae_statistics(checkpoint)
        transformer = checkpoint.config(TRANSFORMER)
        return PipelineSpec(
            family=self.name,
            pipeline=checkpoint.pipeline,
            latent_channels=transformer["in_channels"],
            temporal_factor=temporal,
            spatial_factor=spatial,
            patch=_patch(transformer),
            latents_mean=mean,
            latents_std=std,
            text_length=TEXT_LENGTH,
            clean_prompt=True,
            grid=grid,
            solver=solver,
            steps=50,
            guidance=5.0,
            batched_guidance=False,
            negative_prompt="",
            frame_rate=16.0,
            width=832,
            height=480,
            frames=81,
            # FlowBlending (arXiv 2512.24724), ablation of the two boundaries on Wan.
            early=0.4,
            late=0.2,
        )

    def transformer(self, checkpoint: Checkpoint, folder: Path, name: str) -> Part:
        """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B], text fp32 [B, L, D] -> velocity like latents.

        Raises:
            FlowBlendingError: a transformer that needs an image, or missing files.
        """
        _refuse_later_versions(checkpoint)
        config = read_json(folder / "config.json")
        if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
            raise FlowBlendingError(
                f"{folder} is an image-to-video transformer, but only text-to-video is supported; "
                "give a Wan 2.1 T2V checkpoint."
            )
        return Part(
            name=name, sources=model_files(folder), load=lambda precision: _load_transformer(folder, name, precision)
        )

    def parts(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """The text encoder and the two graphs of the VAE decoder."""
        from flowblending.export.text import text_encoder_part

        return (text_encoder_part(checkpoint, TEXT_LENGTH, zero_padding=True), *decoder_parts(checkpoint))


def _refuse_later_versions(checkpoint: Checkpoint) -> None:
    index = read_json(checkpoint.folder / MODEL_INDEX)
    found = [
        field
        for field, absent in (
            ("transformer_2", (None, None)),
            ("boundary_ratio", None),
            ("expand_timesteps", False),
        )
        if _value(index.get(field)) not in (absent, None)
    ]
    if found:
        raise FlowBlendingError(
            f"{checkpoint.folder} is a Wan 2.2 pipeline (it sets {found[0]}), but only Wan 2.1 is supported; "
            "give a Wan 2.1 T2V checkpoint."
        )


def _value(entry: object) -> object:
    """Components stand in ``model_index.json`` as a pair [library, class], or [null, null] where there is none."""
    return tuple(entry) if isinstance(entry, list) else entry


def _sampler(checkpoint: Checkpoint) -> tuple[str, SigmaGrid]:
    config = checkpoint.config("scheduler")
    kind = config.get("_class_name")
    if kind not in _SCHEDULERS:
        raise FlowBlendingError(
            f"{checkpoint.folder} samples with {kind}, but {', '.join(_SCHEDULERS)} are supported; "
            "give a checkpoint with one of these schedulers."
        )
    solver, shift = _SCHEDULERS[kind]
    if solver != "euler" and not (
        config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas")
    ):
        raise FlowBlendingError(
            f"The scheduler of {checkpoint.folder} predicts {config.get('prediction_type')}, but flow_prediction with "
            "use_flow_sigmas was expected; give a Wan 2.1 T2V checkpoint."
        )
    if config.get("use_dynamic_shifting"):
        raise FlowBlendingError(
            f"The scheduler of {checkpoint.folder} shifts its noise levels with the size of the video "
            "(use_dynamic_shifting), which WanPipeline does not provide for; give a Wan 2.1 T2V checkpoint."
        )
    return solver, SigmaGrid(
        kind="shifted", shift=float(config.get(shift, 1.0)), train_timesteps=config.get("num_train_timesteps", 1000)
    )


def _patch(config: Mapping[str, Any]) -> tuple[int, int, int]:
    frames, height, width = config["patch_size"]
    return frames, height, width


class _Rotary(torch.nn.Module):
    """The position embedding of every token: cos and sin, each fp32 [batch, tokens, head_dim / 2].

    The stock module repeats each angle for the two values that it turns; RotaryEmbedding wants it once.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, stock: WanRotaryPosEmbed) -> None:
        super().__init__()
        self.patch = stock.patch_size
        self.limit = stock.max_seq_len
        self.widths = (stock.t_dim // 2, stock.h_dim // 2, stock.w_dim // 2)
        self.register_buffer("cos", stock.freqs_cos[:, 0::2].float().contiguous(), persistent=False)
        self.register_buffer("sin", stock.freqs_sin[:, 1::2].float().contiguous(), persistent=False)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = [size // patch for size, patch in zip(latents.shape[2:], self.patch, strict=True)]
        return self._spread(self.cos, latents.shape[0], counts), self._spread(self.sin, latents.shape[0], counts)

    def _spread(self, table: torch.Tensor, batch: int, counts: list[int]) -> torch.Tensor:
        columns = table.split(self.widths, dim=1)
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
        output: torch.Tensor = attention.to_out[0](
            attend(query, key, attention.to_v(context), attention.heads)
        )
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


def _load_transformer(folder: Path, name: str, precision: Precision) -> Exportable:
    stock: WanTransformer3DModel = load_model(WanTransformer3DModel, folder, precision)
    model = twin(stock)
    model.rope = _Rotary(stock.rope)
    model.set_attn_processor(_Attention())
    config = stock.config
    patch = _patch(config)
    shape = ("batch", config.in_channels, "frames", "height", "width")
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=shape),
            TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", TEXT_LENGTH, config.text_dim)),
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
