"""The pairs that are measured: published configurations with random weights, and tiny ones of the same classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import MODELS, Model, write_model

WAN, LTX = "wan", "ltx"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A large and a small model, and what they share.

    Attributes:
        name: for stages.
        title: for people.
        family: ``wan`` or ``ltx``.
        large, small, text, vae: the networks.
        experts: whether the large model is two of these, one for high noise and one for low.
        size, frames: of the video.
    """

    name: str
    title: str
    family: str
    large: Model
    small: Model
    text: Model
    vae: Model
    experts: bool = False
    size: str
    frames: int


_WAN_VAE = Model(kind="AutoencoderKLWan", settings={"base_dim": 96, "z_dim": 16})
_LTX_VAE = Model(
    kind="AutoencoderKLLTXVideo",
    settings={
        "latent_channels": 128,
        "block_out_channels": (128, 256, 512, 1024, 2048),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "decoder_block_out_channels": (256, 512, 1024),
        "layers_per_block": (4, 6, 6, 2, 2),
        "decoder_layers_per_block": (5, 5, 5, 5),
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
        "patch_size": 4,
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
)

_WAN_PAIR = Pair(
    name="wan-480p",
    title="Wan 14B / 1.3B, 832x480, 81 frames",
    family=WAN,
    large=MODELS["wan-14b"],
    small=MODELS["wan-1.3b"],
    text=MODELS["umt5-xxl"],
    vae=_WAN_VAE,
    size="832x480",
    frames=81,
)
_LTX_PAIR = Pair(
    name="ltx-704p",
    title="LTX 13B / 2B, 1216x704, 121 frames",
    family=LTX,
    large=MODELS["ltx-13b"],
    small=MODELS["ltx-2b"],
    text=MODELS["t5-xxl"],
    vae=_LTX_VAE,
    size="1216x704",
    frames=121,
)


def _at_720p(pair: Pair) -> Pair:
    name, title = pair.name.replace("480p", "720p"), pair.title.replace("832x480", "1280x720")
    return dataclasses.replace(pair, size="1280x720", name=name, title=title)


def _a14b(pair: Pair) -> Pair:
    name, title = pair.name.replace("wan", "a14b"), pair.title.replace("Wan 14B", "Wan A14B")
    return dataclasses.replace(pair, experts=True, name=name, title=title)


PAIRS: Mapping[str, Pair] = {
    pair.name: pair
    for pair in (
        _WAN_PAIR,
        _at_720p(_WAN_PAIR),
        _a14b(_WAN_PAIR),
        _at_720p(_a14b(_WAN_PAIR)),
        _LTX_PAIR,
        dataclasses.replace(_LTX_PAIR, name="ltx-512p", title="LTX 13B / 2B, 704x512, 121 frames", size="704x512"),
    )
}

_TINY_TEXT = {
    "vocab_size": 256,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
_TINY_SIZES = {WAN: ("32x32", 5), LTX: ("64x64", 9)}


def tiny(pair: Pair) -> Pair:
    """The same classes with a few layers, of which one weight is large enough to be treated as large ones are."""
    text = {**_TINY_TEXT, "d_model": 64}
    wan = pair.family == WAN

    def cut(model: Model, heads: int) -> Model:
        settings: dict[str, Any] = {"num_layers": 3, "num_attention_heads": heads, "attention_head_dim": 64}
        more = (
            {"ffn_dim": 2048, "text_dim": 64, "freq_dim": 32, "rope_max_seq_len": 64}
            if wan
            else {"cross_attention_dim": 64 * heads, "caption_channels": 64, "in_channels": 8, "out_channels": 8}
        )
        return dataclasses.replace(model, settings=settings | more)

    vae: dict[str, Any] = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    if not wan:
        vae = {
            **_LTX_VAE.settings,
            "latent_channels": 8,
            "block_out_channels": (4, 8, 8, 8, 16),
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 4,
        }
    size, frames = _TINY_SIZES[pair.family]
    return dataclasses.replace(
        pair,
        large=cut(pair.large, 4),
        small=cut(pair.small, 2),
        text=dataclasses.replace(pair.text, settings=text),
        vae=dataclasses.replace(pair.vae, settings=vae),
        size=size,
        frames=frames,
    )


def write_pair(pair: Pair, folder: Path) -> None:
    """Write ``folder``/large, a pipeline, and ``folder``/small, a transformer.

    Weights of 1 MiB and more are holes in their files: they take no room on the disk and read as zeros. Who needs
    numbers in their place makes some (`flowblending` reads these weights only when it writes or runs a graph).
    """
    import diffusers

    from benchmarks.checkpoints import tokenizer

    large, wan = folder / "large", pair.family == WAN
    write_model(pair.large, large / "transformer", hollow=True)
    if pair.experts:
        write_model(pair.large, large / "transformer_2", hollow=True)
    write_model(pair.text, large / "text_encoder", hollow=True)
    write_model(pair.vae, large / "vae")
    write_model(pair.small, folder / "small", hollow=True)
    tokenizer(512 if wan else 256).save_pretrained(large / "tokenizer")
    scheduler: Any = (
        diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        )
        if wan
        else diffusers.FlowMatchEulerDiscreteScheduler()
    )
    scheduler.save_pretrained(large / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "WanPipeline" if wan else "LTXConditionPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", pair.text.kind],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", pair.large.kind],
        "vae": ["diffusers", pair.vae.kind],
    }
    if pair.experts:
        index |= {"transformer_2": ["diffusers", pair.large.kind], "boundary_ratio": 0.875}
    (large / "model_index.json").write_text(json.dumps(index, indent=2))
