"""The family Wan (2.1, 2.2 A14B, SkyReels-V2 I2V), as diffusers' pipelines run it (wan and skyreels_v2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel, WanVACETransformer3DModel

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import (
    Condition,
    Source,
    control_conditions,
    start_from,
    text_conditions,
)
from flowblending.contracts.graph import WAN_T2V_1_3B, WAN_T2V_14B, PipelineSpec, SigmaGrid
from flowblending.export.checkpoint.checkpoint import (
    TRANSFORMER,
    Checkpoint,
    model_files,
    positive,
    read_json,
    vae_statistics,
)
from flowblending.export.checkpoint.experts import expert_boundary
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.clip import image_encoder_part
from flowblending.export.families.t5 import text_encoder_part
from flowblending.export.families.wan import vace
from flowblending.export.families.wan.authors import authors_sampling
from flowblending.export.families.wan.image import (
    channels_beside,
    check_whole_attention,
    image_conditions,
    latent_channels,
    seen_images,
)
from flowblending.export.families.wan.names import authors_name
from flowblending.export.families.wan.row import IMAGE_TO_VIDEO, SKYREELS, WAN
from flowblending.export.families.wan.transformer import REVISION, load_signal, load_transformer
from flowblending.export.families.wan.vae import check_decoder, decoder_parts
from flowblending.export.families.wan.vae_encoder import encoder_parts
from flowblending.export.graph.exportable import Part
from flowblending.export.graph.load import ModelClass, check_model, parameter_shapes
from flowblending.export.lora.file import LoraFile
from flowblending.export.lora.fit import Lora, fit_lora

TEXT_LENGTH = 512
"""Tokens of a prompt: the default of WanPipeline, which pads every prompt to it and masks none in the transformer."""

_ARCHITECTURES: Mapping[tuple[object, ...], str] = {(30, 12, 128): WAN_T2V_1_3B, (40, 40, 128): WAN_T2V_14B}
"""By number of layers, number of heads, and width of a head."""

_VIDEO = 832, 480, 81, 16.0
_VIDEOS = {SKYREELS: (960, 544, 97, 24.0)}
"""Width, height, frames and frames per second: the classes' defaults, and what their examples write videos with."""

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_PLAIN = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_MULTISTEP = {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False}


@dataclass(frozen=True, kw_only=True)
class _Scheduler:
    """A scheduler class, and the settings with which it is one of the runtime's solvers.

    Attributes:
        solver: what it is called in a bundle.
        shift: its setting for the shift of the noise levels.
        needs: settings that differ from the class's defaults, with the value each must have.
        keeps: settings that must be left at the class's defaults, which are these.
    """

    solver: str
    shift: str
    needs: Mapping[str, object]
    keeps: Mapping[str, object]


_SCHEDULERS = {
    "UniPCMultistepScheduler": _Scheduler(
        solver="unipc",
        shift="flow_shift",
        needs=_FLOW,
        keeps={**_PLAIN, **_MULTISTEP, "solver_type": "bh2", "predict_x0": True, "disable_corrector": []},
    ),
    "DPMSolverMultistepScheduler": _Scheduler(
        solver="dpm++",
        shift="flow_shift",
        needs=_FLOW,
        keeps={
            **_PLAIN,
            **_MULTISTEP,
            "solver_type": "midpoint",
            "algorithm_type": "dpmsolver++",
            "use_lu_lambdas": False,
        },
    ),
    "FlowMatchEulerDiscreteScheduler": _Scheduler(
        solver="euler", shift="shift", needs={}, keeps={**_PLAIN, "invert_sigmas": False, "stochastic_sampling": False}
    ),
}


class Wan:
    """Which checkpoints are Wan text-to-video, and what they consist of."""

    def advise(self, checkpoint: Checkpoint) -> str | None:  # noqa: ARG002 - Family
        """Nothing: there is one class."""
        return None

    def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
        """The constants of WanPipeline and of this checkpoint.

        Raises:
            FlowBlendingError: a VAE or a scheduler of another kind.
        """
        transformer = checkpoint.config(TRANSFORMER)
        if checkpoint.timestep_per_token:
            raise FlowBlendingError(
                f"{shown(checkpoint.folder)} is told a timestep for every token (it sets expand_timesteps) and has "
                f"{transformer.get('in_channels')} latent channels, as Wan 2.2 TI2V-5B does, which is not supported; "
                "give a text-to-video checkpoint of Wan 2.1, or Wan 2.2 T2V A14B."
            )
        check_decoder(checkpoint)
        solver, grid = _sampler(checkpoint)
        temporal, spatial = WAN.vae_factors(checkpoint.config("vae"))
        mean, std = vae_statistics(checkpoint)
        patch_frames, patch_height, patch_width = transformer["patch_size"]
        width, height, frames, frame_rate = _VIDEOS.get(checkpoint.pipeline, _VIDEO)
        return PipelineSpec(
            family=WAN.name,
            pipeline=checkpoint.pipeline,
            latent_channels=latent_channels(checkpoint, transformer),
            temporal_factor=temporal,
            spatial_factor=spatial,
            patch=(patch_frames, patch_height, patch_width),
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
            frame_rate=frame_rate,
            width=width,
            height=height,
            frames=frames,
            # FlowBlending (arXiv 2512.24724), ablation of the two boundaries on Wan.
            early=0.4,
            late=0.2,
            conditions=(
                *text_conditions(TEXT_LENGTH, transformer.get("text_dim", 4096), mask=False),
                *_conditions(checkpoint, transformer),
            ),
            authors=authors_sampling(_architecture(transformer), experts=expert_boundary(checkpoint) is not None),
        )

    def transformer(self, checkpoint: Checkpoint, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """The graph: latents fp32 [B, C, F, H, W], timestep fp32 [B], text fp32 [B, L, D] -> velocity like latents.

        Raises:
            FlowBlendingError: a transformer that this pipeline does not run, or missing files.
        """
        config, kind = read_json(folder / "config.json"), _kind(folder)
        image = seen_images(checkpoint, folder, config)
        check_whole_attention(folder, config)
        if _has_control(folder):
            load, revision = vace.load_transformer, f"wan vace transformer {vace.REVISION}.{REVISION}"
        else:
            load, revision = partial(load_transformer, image=image, kind=kind), f"wan transformer {REVISION}"
        return Part(
            name=name,
            sources=model_files(folder),
            load=lambda precision: load(folder, name, TEXT_LENGTH, precision, loras),
            revision=revision,
            check=lambda: check_model(kind, folder),
            architecture=_architecture(config),
            loras=tuple(loras),
        )

    def fit_lora(self, folder: Path, file: LoraFile, strength: float) -> Lora:
        """What a LoRA file changes in a transformer; raises a UsageError where it was made for another one."""
        return fit_lora(file, parameter_shapes(_kind(folder), folder), authors_name, strength)

    def signal(self, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """The timestep's embedding, of which every block's modulation is made: timestep fp32 [B] -> signal [B, 6 D].

        Raises:
            UsageError: a transformer of VACE or of image to video, for which nobody has published constants.
        """
        if _has_control(folder) or channels_beside(read_json(folder / "config.json")):
            raise UsageError(
                f"--teacache was given, but {shown(folder)} is a transformer that is shown images or a control, for "
                "which there is none; leave it out, and choose another cache."
            )
        return Part(
            name=name,
            sources=model_files(folder),
            load=lambda _: load_signal(folder, name, loras),
            revision=f"wan transformer {REVISION}",
            loras=tuple(loras),
        )

    def parts(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """The text encoder, the two graphs of the VAE decoder, two of its encoder where images are taken, and CLIP."""
        text = text_encoder_part(checkpoint, TEXT_LENGTH, zero_padding=True)
        encoders: tuple[Part, ...] = self.vae_encoder(checkpoint) if checkpoint.takes else ()
        if seen_images(checkpoint, checkpoint.place(TRANSFORMER), checkpoint.config(TRANSFORMER)) is not None:
            encoders = (*encoders, image_encoder_part(checkpoint))
        return (text, *decoder_parts(checkpoint), *encoders)

    def vae_encoder(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """Its first step and every further one."""
        return encoder_parts(checkpoint)


_KINDS: Mapping[object, Any] = {
    each.__name__: each for each in (WanTransformer3DModel, WanVACETransformer3DModel, SkyReelsV2Transformer3DModel)
}


def _kind(folder: Path) -> ModelClass[Any]:
    """The class of a transformer."""
    found: ModelClass[Any] = _KINDS.get(read_json(folder / "config.json").get("_class_name"), WanTransformer3DModel)
    return found


def _has_control(folder: Path) -> bool:
    named: object = read_json(folder / "config.json").get("_class_name")
    return named == "WanVACETransformer3DModel"


def _conditions(checkpoint: Checkpoint, transformer: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What is taken beside text."""
    if checkpoint.pipeline == "WanVACEPipeline":
        return control_conditions(transformer.get("vace_in_channels", 96))
    if checkpoint.pipeline in IMAGE_TO_VIDEO:
        return image_conditions(checkpoint, transformer)
    return (start_from(transformer["in_channels"]),) if Source.VIDEO in checkpoint.takes else ()


def _architecture(config: Mapping[str, Any]) -> str | None:
    if config.get("vace_layers") is not None or channels_beside(config):
        return None
    return _ARCHITECTURES.get(
        (config.get("num_layers"), config.get("num_attention_heads"), config.get("attention_head_dim"))
    )


def _sampler(checkpoint: Checkpoint) -> tuple[str, SigmaGrid]:
    config = checkpoint.config("scheduler")
    kind = config.get("_class_name")
    if kind not in _SCHEDULERS:
        raise FlowBlendingError(
            f"{shown(checkpoint.folder)} samples with {kind}, but {', '.join(_SCHEDULERS)} are supported; "
            "give a checkpoint with one of these schedulers."
        )
    scheduler = _SCHEDULERS[kind]
    # WanPipeline passes no mu, without which diffusers cannot shift dynamically either.
    keeps = {**scheduler.keeps, "use_dynamic_shifting": False}
    found = {field: config.get(field) for field in scheduler.needs} | {
        field: config.get(field, value) for field, value in keeps.items()
    }
    for field, value in {**scheduler.needs, **keeps}.items():
        if found[field] != value:
            raise FlowBlendingError(
                f"The {kind} of {shown(checkpoint.folder)} has {field} = {found[field]}, but {value} was expected; "
                "give a Wan 2.1 T2V checkpoint with the scheduler it was published with."
            )
    folder = checkpoint.folder / "scheduler"
    return scheduler.solver, SigmaGrid(
        kind="shifted",
        shift=float(positive(config, scheduler.shift, 1.0, folder)),
        shift_terminal=config.get("shift_terminal"),
        train_timesteps=int(positive(config, "num_train_timesteps", 1000, folder)),
    )
