"""Small diffusers checkpoints with random weights, made on the fly: the real classes at toy sizes.

For tests and benchmarks, where real checkpoints would be tens of gigabytes. Each folder loads
with the unmodified diffusers pipeline class. Weights are random, so videos are abstract; latents, shapes,
switches and timings are as with real ones.

    python -m benchmarks.checkpoints --family wan --out DIR      # DIR/large and DIR/small
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

CORPUS = [
    "A cat walks on the grass, realistic style.",
    "a red ball rolls over a wooden floor; the camera follows it slowly to the left",
    "worst quality, inconsistent motion, blurry, jittery, distorted, low quality, static",
    "一只猫在草地上行走，写实风格。",
    'Two dogs play chess in the rain at night & laugh <loudly> "hello" 0123456789',
]
TEXT_DIM = 32


def tokenizer(max_length: int) -> T5Tokenizer:
    """A unigram tokenizer of T5's kind, trained on the few sentences above."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.Nmt()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    # The trainer's scores are not readable; a score by rank keeps the frequent pieces first.
    vocabulary = [(piece, -0.1 * rank) for piece, rank in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)


def _text_config() -> dict[str, Any]:
    return {
        "vocab_size": 256,
        "d_model": TEXT_DIM,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 8,
    }


def spread(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random values everywhere, also where the class starts with zeros or ones: a term that is lost then shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def wan_transformer(
    seed: int, *, layers: int = 2, heads: int = 2, head_dim: int = 16, ffn: int = 64, **overrides: Any
) -> WanTransformer3DModel:
    """A tiny Wan transformer; ``head_dim`` must be even and at least 6."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": ffn,
        "num_layers": layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 64,
    }
    return spread(WanTransformer3DModel(**settings | overrides), seed)


def wan_vace_transformer(
    seed: int, *, layers: int = 2, control: tuple[int, ...] = (0,), **overrides: Any
) -> WanVACETransformer3DModel:
    """As `wan_transformer`, with hints for the layers in ``control``."""
    plain = wan_transformer(seed, layers=layers, **overrides)
    settings = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    settings |= {"vace_layers": list(control), "vace_in_channels": 96}
    torch.manual_seed(seed)
    return spread(WanVACETransformer3DModel(**settings), seed)


def ltx_transformer(
    seed: int, *, layers: int = 2, heads: int = 2, head_dim: int = 16, **overrides: Any
) -> LTXVideoTransformer3DModel:
    """A tiny LTX transformer."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim,
        "num_layers": layers,
        "caption_channels": TEXT_DIM,
    }
    return spread(LTXVideoTransformer3DModel(**settings | overrides), seed)


def wan_vae(seed: int, **overrides: Any) -> AutoencoderKLWan:
    """A tiny causal Wan VAE with the real compression factors (4 frames, 8x8 pixels)."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    return spread(AutoencoderKLWan(**settings | overrides), seed)


def ltx_vae(seed: int, version: str) -> AutoencoderKLLTXVideo:
    """A tiny LTX VAE as of a release: 0.9.0 (plain), 0.9.1 (timestep, injected noise), 0.9.5 (timestep)."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"latent_channels": 8, "patch_size": 4, "patch_size_t": 1}
    plain: dict[str, Any] = {
        "block_out_channels": (4, 8, 8, 8),
        "decoder_block_out_channels": (4, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "decoder_inject_noise": (False, False, False, False, False),
    }
    conditioned: dict[str, Any] = plain | {
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    }
    if version == "0.9.0":
        settings |= plain
    elif version == "0.9.1":
        settings |= conditioned | {"decoder_inject_noise": (False, True, True, True)}
    else:
        settings |= conditioned | {
            "decoder_inject_noise": (False, False, False, False),
            "block_out_channels": (4, 8, 8, 8, 16),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "layers_per_block": (1, 1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, True, True),
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        }
    vae = spread(AutoencoderKLLTXVideo(**settings), seed)
    generator = torch.Generator().manual_seed(seed)
    # The statistics are buffers of the class, filled from the checkpoint; no configuration sets them.
    vae.register_buffer("latents_mean", 0.3 * torch.randn(8, generator=generator))
    vae.register_buffer("latents_std", 0.5 + torch.rand(8, generator=generator))
    return vae


def wan_pipeline(seed: int, transformer: WanTransformer3DModel, shift: float = 3.0) -> WanPipeline:
    """A Wan 2.1 text-to-video pipeline around a transformer."""
    torch.manual_seed(seed)
    return WanPipeline(
        tokenizer=tokenizer(512),
        text_encoder=spread(UMT5EncoderModel(UMT5Config(**_text_config())), seed),
        transformer=transformer,
        vae=wan_vae(seed),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        ),
    )


def ltx_pipeline(seed: int, transformer: LTXVideoTransformer3DModel, version: str = "0.9.1") -> DiffusionPipeline:
    """An LTX-Video text-to-video pipeline: 0.9.0 and 0.9.1 are LTXPipeline, 0.9.5 is LTXConditionPipeline."""
    torch.manual_seed(seed)
    dynamic = {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "shift_terminal": 0.1,
    }
    static = version == "0.9.5"
    return (LTXConditionPipeline if static else LTXPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**{} if static else dynamic),
        vae=ltx_vae(seed, version),
        text_encoder=spread(T5EncoderModel(T5Config(**_text_config())), seed),
        tokenizer=tokenizer(128),
        transformer=transformer,
    )


def wan_pair(folder: Path) -> None:
    """``folder``/large (a whole Wan pipeline) and ``folder``/small (a transformer alone)."""
    wan_pipeline(1, wan_transformer(1, layers=4, heads=4, ffn=256)).save_pretrained(folder / "large")
    wan_transformer(2, layers=2, heads=2, ffn=96).save_pretrained(folder / "small")


def ltx_pair(folder: Path, version: str = "0.9.1") -> None:
    """``folder``/large (a whole LTX pipeline) and ``folder``/small (a transformer alone)."""
    ltx_pipeline(1, ltx_transformer(1, layers=4, heads=4), version).save_pretrained(folder / "large")
    ltx_transformer(2).save_pretrained(folder / "small")


def wan_other_pair(folder: Path) -> None:
    """A Wan pair of other widths, depths, rotary splits and flow shift, whose small model is a whole pipeline."""
    large = wan_transformer(5, layers=3, heads=3, head_dim=24, ffn=100)
    wan_pipeline(7, large, shift=5.0).save_pretrained(folder / "large")
    wan_pipeline(7, wan_transformer(6, layers=1, heads=1, head_dim=12), shift=5.0).save_pretrained(folder / "small")


def wan_experts(folder: Path) -> None:
    """As Wan 2.2 A14B: ``folder``/large with two experts, of which the first is that of `wan_pair`; and two others."""
    wan_pair(folder)
    pipe = WanPipeline.from_pretrained(folder / "large")
    pipe.register_modules(transformer_2=wan_transformer(3, layers=4, heads=4, ffn=256))
    pipe.register_to_config(boundary_ratio=0.875)
    pipe.save_pretrained(folder / "large")
    wan_transformer(4, layers=1, heads=2, ffn=64).save_pretrained(folder / "draft")


def wan_vace_pair(folder: Path) -> None:
    """``folder``/large (a whole VACE pipeline) and ``folder``/small, whose control has another number of hints."""
    plain = wan_pipeline(1, wan_transformer(1))
    parts = {name: part for name, part in plain.components.items() if name not in ("transformer", "transformer_2")}
    large = wan_vace_transformer(1, layers=4, control=(0, 2, 3), heads=4, ffn=256)
    WanVACEPipeline(**parts, transformer=large).save_pretrained(folder / "large")
    wan_vace_transformer(2, layers=2, control=(0,), heads=2, ffn=96).save_pretrained(folder / "small")


def wan_image_pair(folder: Path) -> None:
    """As Wan 2.2 I2V A14B: ``folder``/large with two experts that take an image's channels; and ``folder``/small."""
    plain = wan_pipeline(1, wan_transformer(1))
    parts = {name: part for name, part in plain.components.items() if name not in ("transformer", "transformer_2")}
    high, low = (wan_transformer(seed, layers=2, heads=4, ffn=128, in_channels=36) for seed in (1, 3))
    pipe = WanImageToVideoPipeline(**parts, transformer=high, transformer_2=low, boundary_ratio=0.9)
    pipe.save_pretrained(folder / "large")
    wan_transformer(2, layers=1, heads=2, ffn=96, in_channels=36).save_pretrained(folder / "small")


def _with_clip(name: str, folder: Path) -> None:
    from benchmarks import clip_checkpoints

    clip_checkpoints.PAIRS[name](folder)


PAIRS: Mapping[str, Callable[[Path], None]] = {
    "wan": wan_pair,
    "ltx": ltx_pair,
    "wan-experts": wan_experts,
    "wan-other": wan_other_pair,
    "wan-vace": wan_vace_pair,
    "wan-image": wan_image_pair,
    **{name: partial(_with_clip, name) for name in ("wan-clip", "wan-ends", "skyreels")},
    "ltx-0.9.0": lambda folder: ltx_pair(folder, "0.9.0"),
    "ltx-condition": lambda folder: ltx_pair(folder, "0.9.5"),
}


def main() -> None:
    """Write a pair."""
    parser = argparse.ArgumentParser(description="Write a small random large/small pair of diffusers checkpoints.")
    parser.add_argument("--family", choices=list(PAIRS), default="wan")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    PAIRS[arguments.family](arguments.out)


if __name__ == "__main__":
    main()
