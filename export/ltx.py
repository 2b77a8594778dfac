"""LTX-Video text-to-video: LTXPipeline (0.9.0, 0.9.1) and LTXConditionPipeline (0.9.5 and later).

Both run one transformer class. They differ in the times that frames are given, in the noise levels, and in how they
encode a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from torch.onnx import ops

from flowblending import FlowBlendingError
from flowblending.export.attention import attend
from flowblending.export.checkpoint import Checkpoint, model_files, read_json, vae_factors, vae_statistics
from flowblending.export.family import TORCH_DTYPES, Exportable, Part, Tensors
from flowblending.export.ltx_vae import load_model, vae_part
from flowblending.export.spec import GraphSpec, PipelineSpec, Precision, SigmaGrid, TensorSpec
from flowblending.export.text import text_encoder_part

CONDITION = "LTXConditionPipeline"
TEXT_LENGTH = {"LTXPipeline": 128, CONDITION: 256}


@dataclass(frozen=True)
class Ltx:
    """The family ``ltx``; see ``flowblending.export.family.Family``."""

    name: str = "ltx"
    pipelines: tuple[str, ...] = tuple(TEXT_LENGTH)

    def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
        """The defaults of the pipeline's ``__call__``, and what its components' configurations say."""
        transformer, vae = checkpoint.config("transformer"), checkpoint.config("vae")
        mean, std = vae_statistics(checkpoint)
        scaling = vae.get("scaling_factor", 1.0)
        temporal, spatial = vae_factors(checkpoint)
        conditioned = vae.get("timestep_conditioning", False)
        return PipelineSpec(
            family=self.name,
            pipeline=checkpoint.pipeline,
            latent_channels=transformer["in_channels"],
            temporal_factor=temporal,
            spatial_factor=spatial,
            patch=(1, 1, 1),
            latents_mean=mean,
            latents_std=tuple(value / scaling for value in std),
            text_length=TEXT_LENGTH[checkpoint.pipeline],
            clean_prompt=False,
            # The pipelines' decode_noise_scale is None by default, which means: as decode_timestep.
            decode_noise_scale=0.0 if conditioned else None,
            decode_timestep=0.0 if conditioned else None,
            grid=_grid(checkpoint),
            solver="euler",
            steps=50,
            guidance=3.0,
            batched_guidance=True,
            negative_prompt="",
            frame_rate=25.0,
            width=704,
            height=512,
            frames=161,
            early=1 / 3,
            late=1 / 6,
        )

    def transformer(self, checkpoint: Checkpoint, folder: Path, name: str) -> Part:
        """The graph of a transformer: latents [batch, C, frames, height, width] -> velocity, all fp32."""
        config = read_json(folder / "config.json")
        for field in ("patch_size", "patch_size_t"):
            if config.get(field, 1) != 1:
                raise FlowBlendingError(
                    f"{folder} has {field} {config[field]}, but the LTX pipelines of diffusers run 1 only; "
                    "give a transformer with patches of one latent pixel."
                )
        return Part(
            name=name,
            # The VAE's compression and the pipeline's class are in the rotary coordinates.
            sources=(
                *model_files(folder),
                checkpoint.folder / "vae" / "config.json",
                checkpoint.folder / "model_index.json",
            ),
            load=lambda precision: _load(checkpoint, folder, name, precision),
        )

    def parts(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """Text encoder and VAE decoder."""
        # LTXPipeline gives its text encoder no mask; LTXConditionPipeline does.
        text = text_encoder_part(
            checkpoint,
            TEXT_LENGTH[checkpoint.pipeline],
            zero_padding=False,
            attend_padding=checkpoint.pipeline != CONDITION,
        )
        return text, vae_part(checkpoint)


def _grid(checkpoint: Checkpoint) -> SigmaGrid:
    """Noise levels, from the scheduler's configuration and from what the pipeline passes to it.

    Raises:
        FlowBlendingError: the scheduler is set to something that the runtime does not compute.
    """
    config = checkpoint.config("scheduler")
    expected: dict[str, object] = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "invert_sigmas": False,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
    }
    if checkpoint.pipeline == CONDITION:
        # It passes timesteps and no mu: diffusers fails with a dynamic shift, and shifts sigmas but not timesteps
        # with a static one.
        expected |= {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None, "num_train_timesteps": 1000}
    for field, value in expected.items():
        if (config.get(field, value) or None) != (value or None):
            raise FlowBlendingError(
                f"The scheduler of {checkpoint.folder} has {field} {config[field]}, but {value} was expected for "
                f"{checkpoint.pipeline}; correct scheduler/scheduler_config.json."
            )
    if checkpoint.pipeline == CONDITION:
        return SigmaGrid(kind="linear-quadratic")
    train_timesteps = config.get("num_train_timesteps", 1000)
    terminal = config.get("shift_terminal") or None
    if not config.get("use_dynamic_shifting", False):
        # The dynamic shift is a static one by exp(mu), so the static one is a dynamic one with constant mu.
        mu = math.log(config.get("shift", 1.0))
        return SigmaGrid(
            kind="dynamic-shift", base_shift=mu, max_shift=mu, shift_terminal=terminal, train_timesteps=train_timesteps
        )
    return SigmaGrid(
        kind="dynamic-shift",
        base_shift=config.get("base_shift", 0.5),
        max_shift=config.get("max_shift", 1.15),
        base_tokens=config.get("base_image_seq_len", 256),
        max_tokens=config.get("max_image_seq_len", 4096),
        shift_terminal=terminal,
        train_timesteps=train_timesteps,
    )


class LtxTransformer(torch.nn.Module):
    """LTXVideoTransformer3DModel's forward pass over the layers of the stock model, written for compilers.

    Differs from the stock one in form, not in result: latents are packed inside, rotary coordinates follow from the
    shapes, and normalisation, rotation and attention are one operator each.

    Args:
        stock: used as it is, and not changed.
        factors: video frames and pixels per latent frame and pixel.
        causal: frames at the times of LTXConditionPipeline (the first one spans one video frame), not LTXPipeline.
    """

    frequencies: torch.Tensor

    def __init__(self, stock: LTXVideoTransformer3DModel, factors: tuple[int, int], *, causal: bool) -> None:
        super().__init__()
        self.stock = stock
        self.factors = factors
        self.causal = causal
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
    ) -> Tensors:
        """Velocity, fp32, like ``latents``."""
        stock, dtype = self.stock, self.stock.proj_in.weight.dtype
        batch, _, frames, height, width = latents.shape
        hidden = stock.proj_in(latents.to(dtype).flatten(2).transpose(1, 2))
        modulation, embedded = stock.time_embed(timestep, batch_size=batch, hidden_dtype=dtype)
        context = stock.caption_projection(text.to(dtype))
        # -10000 rather than minus infinity, as the stock model has it.
        bias = ((1 - text_mask.to(dtype)) * -10000.0)[:, None, None, :]
        rotation = self._rotation(frames, height, width, frame_rate)
        for block in stock.transformer_blocks:
            hidden = _block(block, hidden, context, modulation, rotation, bias)
        shift, scale = (stock.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        velocity = stock.proj_out(stock.norm_out(hidden) * (1 + scale) + shift).float()
        return (velocity.transpose(1, 2).reshape(batch, -1, frames, height, width),)

    def _rotation(
        self, frames: int, height: int, width: int, frame_rate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, fp32 [1, tokens, channels / 2].

        LTXVideoRotaryPosEmbed of diffusers transformer_ltx.py, with the coordinates of the two pipelines: one table
        per axis, spread over the tokens, since the angle of a channel depends on one axis only.
        """
        temporal, spatial = self.factors
        rope = self.stock.rope
        index = torch.arange(frames, dtype=torch.float32)
        if self.causal:
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
