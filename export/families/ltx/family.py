"""LTX-Video text-to-video: LTXPipeline (0.9.0, 0.9.1) and LTXConditionPipeline (0.9.5 and later).

Both run one transformer class. They differ in the times that frames are given, in the noise levels, and in how they
encode a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import LTXVideoTransformer3DModel

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import (
    FRAME_RATE,
    FRAME_TIMES,
    FRAME_TIMESTEPS,
    Condition,
    Entry,
    Source,
    start_from,
    text_conditions,
)
from flowblending.contracts.graph import LTX_2B, VAE, PipelineSpec, SigmaGrid
from flowblending.export.checkpoint.checkpoint import (
    MODEL_INDEX,
    TRANSFORMER,
    Checkpoint,
    model_files,
    positive,
    read_json,
    vae_statistics,
)
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.ltx.names import authors_name
from flowblending.export.families.ltx.row import LTX
from flowblending.export.families.ltx.signal import load_signal
from flowblending.export.families.ltx.transformer import REVISION, load_transformer
from flowblending.export.families.ltx.vae import vae_part
from flowblending.export.families.ltx.vae_encoder import encoder_part
from flowblending.export.families.t5 import text_encoder_part
from flowblending.export.graph.exportable import Part
from flowblending.export.graph.load import check_model, parameter_shapes
from flowblending.export.lora.file import LoraFile
from flowblending.export.lora.fit import Lora, fit_lora

CONDITION = "LTXConditionPipeline"
TEXT_LENGTH = {"LTXPipeline": 128, "LTXImageToVideoPipeline": 128, CONDITION: 256}

DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
"""What the authors run a timestep-conditioned decoder with, and the examples of diffusers' documentation (0.9.1 and
later). The pipelines' own defaults, 0.0 and None, leave the decoder's last denoising step out."""

_ROOM = 4
"""Latent frames that images and clips of later frames may take: one each for images, two for clips."""

_ARCHITECTURES: Mapping[tuple[object, ...], str] = {(28, 32, 64): LTX_2B}
"""By number of layers, number of heads, and width of a head."""


class Ltx:
    """The family ``ltx``; see ``flowblending.export.graph.exportable.Family``."""

    def advise(self, checkpoint: Checkpoint) -> str | None:
        """That an LTXPipeline with a conditioned decoder and a scheduler without shift is probably LTX-Video 0.9.5.

        diffusers' script convert_ltx_to_diffusers.py writes that version so, but its authors and diffusers' examples
        run it with LTXConditionPipeline. 0.9.1 has a dynamic shift.
        """
        scheduler = checkpoint.config("scheduler")
        shifting = scheduler.get("use_dynamic_shifting", False) or scheduler.get("shift", 1.0) != 1.0
        conditioned = checkpoint.config(VAE).get("timestep_conditioning", False)
        if checkpoint.published is not None or checkpoint.pipeline == CONDITION or shifting or not conditioned:
            return None
        return (
            f"{shown(checkpoint.folder)} is published as {checkpoint.pipeline}, but its scheduler has no shift, like "
            f"that of LTX-Video 0.9.5, which is meant for {CONDITION}; if it is that version, give "
            f"--pipeline {CONDITION}."
        )

    def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
        """The defaults of the pipeline's ``__call__``, and what its components' configurations say.

        What the decoder is told is the authors' choice and not the class's; see `DECODE_TIMESTEP`.
        """
        transformer, vae = checkpoint.config(TRANSFORMER), checkpoint.config(VAE)
        mean, std = vae_statistics(checkpoint)
        scaling = vae.get("scaling_factor", 1.0)
        temporal, spatial = LTX.vae_factors(checkpoint.config("vae"))
        conditioned = vae.get("timestep_conditioning", False)
        length, width = TEXT_LENGTH[checkpoint.pipeline], transformer.get("caption_channels", 4096)
        return PipelineSpec(
            family=LTX.name,
            pipeline=checkpoint.pipeline,
            latent_channels=transformer["in_channels"],
            temporal_factor=temporal,
            spatial_factor=spatial,
            patch=(1, 1, 1),
            latents_mean=mean,
            latents_std=tuple(value / scaling for value in std),
            text_length=length,
            clean_prompt=False,
            decode_noise_scale=DECODE_NOISE_SCALE if conditioned else None,
            decode_timestep=DECODE_TIMESTEP if conditioned else None,
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
            # FlowBlending (arXiv 2512.24724) gives half of LTX's steps to the small model. How it splits the other half
            # is not published; two to one is its split for Wan.
            early=1 / 3,
            late=1 / 6,
            conditions=(*text_conditions(length, width, mask=True), FRAME_RATE, *_held(checkpoint)),
        )

    def transformer(self, checkpoint: Checkpoint, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """The graph of a transformer: latents [batch, C, frames, height, width] -> velocity, all fp32."""
        config = read_json(folder / "config.json")
        for field in ("patch_size", "patch_size_t"):
            if config.get(field, 1) != 1:
                raise FlowBlendingError(
                    f"{shown(folder)} has {field} {config[field]}, but the LTX pipelines of diffusers run 1 only; "
                    "give a transformer with patches of one latent pixel."
                )
        return Part(
            name=name,
            # The VAE's compression and the pipeline's class are in the rotary coordinates.
            sources=(
                *model_files(folder),
                checkpoint.folder / VAE / "config.json",
                checkpoint.folder / MODEL_INDEX,
            ),
            load=lambda precision: load_transformer(
                folder,
                name,
                precision,
                text_length=TEXT_LENGTH[checkpoint.pipeline],
                factors=LTX.vae_factors(checkpoint.config("vae")),
                causal=checkpoint.pipeline == CONDITION,
                held=bool(checkpoint.takes),
                loras=loras,
            ),
            revision=f"ltx transformer {REVISION}{', a timestep for every latent frame' if checkpoint.takes else ''}",
            check=lambda: check_model(LTXVideoTransformer3DModel, folder),
            architecture=_ARCHITECTURES.get(
                (config.get("num_layers"), config.get("num_attention_heads"), config.get("attention_head_dim"))
            ),
            loras=tuple(loras),
        )

    def fit_lora(self, folder: Path, file: LoraFile, strength: float) -> Lora:
        """What a LoRA file changes in a transformer; raises a UsageError where it was made for another one."""
        return fit_lora(file, parameter_shapes(LTXVideoTransformer3DModel, folder), authors_name, strength)

    def signal(self, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """What enters the first block's attention: latents [B, C, F, H, W], timestep [B] -> signal [B, D, F, H, W]."""
        return Part(
            name=name,
            sources=model_files(folder),
            load=lambda _: load_signal(folder, name, loras),
            revision=f"ltx transformer {REVISION}",
            loras=tuple(loras),
        )

    def parts(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """Text encoder and VAE decoder, and the VAE's encoder where images are taken."""
        # LTXPipeline gives its text encoder no mask; LTXConditionPipeline does.
        text = text_encoder_part(
            checkpoint,
            TEXT_LENGTH[checkpoint.pipeline],
            zero_padding=False,
            attend_padding=checkpoint.pipeline != CONDITION,
        )
        encoder = self.vae_encoder(checkpoint) if checkpoint.takes else ()
        return (text, vae_part(checkpoint), *encoder)

    def vae_encoder(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """One graph."""
        return (encoder_part(checkpoint),)


def _held(checkpoint: Checkpoint) -> tuple[Condition, ...]:
    """What the classes do with images and clips: their latents are held, and told by lower timesteps.

    All of them also begin from a video's latents, as LTXConditionPipeline does with a ``denoise_strength``.

    LTXConditionPipeline puts those of later frames before the video's own, and tells them apart by their times.
    """
    if not checkpoint.takes:
        return ()
    causal, channels = checkpoint.pipeline == CONDITION, checkpoint.config(TRANSFORMER)["in_channels"]
    held = Condition(
        name="held latents",
        sources=checkpoint.takes if causal else (Source.IMAGE,),
        enters=Entry.HELD,
        shape=(1, channels, "frames", "height", "width"),
        recipe="held-frames" if causal else "held-first",
        room=_ROOM if causal else 0,
    )
    return (held, FRAME_TIMESTEPS, *((FRAME_TIMES,) if causal else ()), start_from(channels))


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
                f"The scheduler of {shown(checkpoint.folder)} has {field} {config[field]}, but {value} was expected "
                f"for {checkpoint.pipeline}; correct scheduler/scheduler_config.json."
            )
    if checkpoint.pipeline == CONDITION:
        return SigmaGrid(kind="linear-quadratic")
    folder = checkpoint.folder / "scheduler"
    train_timesteps = int(positive(config, "num_train_timesteps", 1000, folder))
    terminal = config.get("shift_terminal") or None
    if not config.get("use_dynamic_shifting", False):
        # The dynamic shift is a static one by exp(mu), so the static one is a dynamic one with constant mu.
        mu = math.log(positive(config, "shift", 1.0, folder))
        return SigmaGrid(
            kind="dynamic-shift", base_shift=mu, max_shift=mu, shift_terminal=terminal, train_timesteps=train_timesteps
        )
    return SigmaGrid(
        kind="dynamic-shift",
        base_shift=positive(config, "base_shift", 0.5, folder),
        max_shift=positive(config, "max_shift", 1.15, folder),
        base_tokens=int(positive(config, "base_image_seq_len", 256, folder)),
        max_tokens=int(positive(config, "max_image_seq_len", 4096, folder)),
        shift_terminal=terminal,
        train_timesteps=train_timesteps,
    )
