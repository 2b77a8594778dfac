"""Small checkpoints with random weights, as `benchmarks.checkpoints`, of pipelines that look at images through CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import SkyReelsV2ImageToVideoPipeline, SkyReelsV2Transformer3DModel, WanImageToVideoPipeline
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.checkpoints import spread, wan_pipeline, wan_transformer

WIDTH = 24
TOKENS = 17
SIZE = 28
"""Of `clip_vision`: the width of a token, tokens of an image, and the pixels of an image's edge."""


def skyreels_transformer(seed: int, **settings: Any) -> SkyReelsV2Transformer3DModel:
    """As `wan_transformer`, of SkyReels-V2's class."""
    plain = {name: value for name, value in wan_transformer(seed, **settings).config.items() if name[0] != "_"}
    torch.manual_seed(seed)
    return spread(SkyReelsV2Transformer3DModel(**plain), seed)


def clip_vision(seed: int, kind: type[CLIPVisionModel] = CLIPVisionModel) -> CLIPVisionModel:
    """A tiny vision encoder of CLIP: 17 tokens of width 24 for an image of 28x28 pixels."""
    torch.manual_seed(seed)
    settings = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=7,
        hidden_act="gelu",
    )
    return spread(kind(settings), seed)


def clip_parts(seed: int, kind: type[CLIPVisionModel] = CLIPVisionModel) -> dict[str, Any]:
    """The two components of a pipeline that looks at images through CLIP."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return {"image_encoder": clip_vision(seed, kind), "image_processor": processor}


def _clip_image(heads: int, **settings: Any) -> dict[str, Any]:
    """Settings of a transformer that looks at an image through `clip_vision`."""
    return {"in_channels": 36, "image_dim": WIDTH, "heads": heads, "added_kv_proj_dim": 16 * heads, **settings}


def wan_clip_pair(folder: Path, **settings: Any) -> None:
    """As Wan 2.1 I2V: ``folder``/large (a whole pipeline with CLIP) and ``folder``/small (a transformer alone)."""
    plain = wan_pipeline(1, wan_transformer(1))
    parts = {name: part for name, part in plain.components.items() if name not in ("transformer", "transformer_2")}
    large = wan_transformer(1, layers=3, ffn=128, **_clip_image(4, **settings))
    WanImageToVideoPipeline(**parts, **clip_parts(1), transformer=large).save_pretrained(folder / "large")
    wan_transformer(2, layers=1, ffn=96, **_clip_image(2, **settings)).save_pretrained(folder / "small")


def wan_ends_pair(folder: Path) -> None:
    """As Wan 2.1 FLF2V, for a first and a last frame: `wan_clip_pair` with positions for two images' tokens."""
    wan_clip_pair(folder, pos_embed_seq_len=2 * TOKENS)


def skyreels_pair(folder: Path) -> None:
    """As SkyReels-V2 I2V: ``folder``/large and ``folder``/small, both whole pipelines."""
    plain = wan_pipeline(1, wan_transformer(1), shift=5.0)
    parts = {name: part for name, part in plain.components.items() if name not in ("transformer", "transformer_2")}
    parts |= clip_parts(1, CLIPVisionModelWithProjection)
    for name, seed, layers, heads in (("large", 1, 3, 4), ("small", 2, 1, 2)):
        model = skyreels_transformer(seed, layers=layers, ffn=96, **_clip_image(heads))
        SkyReelsV2ImageToVideoPipeline(**parts, transformer=model).save_pretrained(folder / name)


PAIRS: Mapping[str, Callable[[Path], None]] = {
    "wan-clip": wan_clip_pair,
    "wan-ends": wan_ends_pair,
    "skyreels": skyreels_pair,
}
