"""A Wan transformer in a file of weights, under the names of github.com/Wan-Video/Wan2.1, wan/modules/model.py.

Of the shapes, all follows but the width of a head, which is 128 in every Wan model: it is taken from the pipeline that
the transformer is to run in, as are constants such as epsilons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from flowblending.export.families.original import (
    Original,
    Shapes,
    diffusers_names,
    head_width,
    layer_count,
    refuse_parts,
    shape_of,
)

KIND = "Wan transformer"

_DIFFUSERS = "condition_embedder."
_EMBEDDER = "condition_embedder.image_embedder"
_TEXT = "a text-to-video model"
_POSITIONS = "img_emb.emb_pos"
"""Of the tokens of a first and a last image; diffusers' converter has no name for them."""

_IMAGE = {r"img_emb\.|condition_embedder\.image_embedder\.|.+\.k_img\.|.+\.add_k_proj\.": "an image-to-video model"}
_PARTS = {
    r"vace_(blocks|patch_embedding)\.": "a VACE model",
    r"(motion_encoder|face_adapter|face_encoder|pose_patch_embedding)\.": "a Wan-Animate model",
    r"(casual_audio_encoder|audio_injector|cond_encoder)\.": "a speech-to-video model",
    r"(ref_conv|control_adapter)\.": "a Wan-Fun model with control",
    r"fps_(embedding|projection)\.": "a SkyReels model with frame rates",
}


def read_original(shapes: Shapes, base: Mapping[str, Any]) -> Original:
    """Diffusers' names and configuration; see `flowblending.export.families.model_family.ModelFamily.original`.

    One that looks at images is taken where the pipeline that it is to run in has one that does.

    Raises:
        FlowBlendingError: it is no transformer of Wan, or another one than the pipeline runs.
    """
    names = list(shapes)
    image = base.get("image_dim") is not None
    refuse_parts(names, _PARTS if image else {**_IMAGE, **_PARTS}, "an image-to-video model" if image else _TEXT)
    diffusers = diffusers_names(names, _DIFFUSERS, convert_wan_transformer_to_diffusers)
    if _POSITIONS in diffusers:
        diffusers[_POSITIONS] = f"{_EMBEDDER}.pos_embed"
    return Original(
        config={**base, **_config({diffusers[name]: shapes[name] for name in names}, base)}, names=diffusers
    )


def _config(shapes: Shapes, base: Mapping[str, Any]) -> dict[str, Any]:
    width, channels, *patch = shape_of(shapes, "patch_embedding.weight", 5, KIND)
    given, _ = shape_of(shapes, "proj_out.weight", 2, KIND)
    _, text = shape_of(shapes, "condition_embedder.text_embedder.linear_1.weight", 2, KIND)
    _, frequencies = shape_of(shapes, "condition_embedder.time_embedder.linear_1.weight", 2, KIND)
    inner, _ = shape_of(shapes, "blocks.0.ffn.net.0.proj.weight", 2, KIND)
    head = int(base.get("attention_head_dim", 128))
    return {
        "patch_size": patch,
        "num_attention_heads": head_width(width, head, KIND),
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": given // math.prod(patch),
        "text_dim": text,
        "freq_dim": frequencies,
        "ffn_dim": inner,
        "num_layers": layer_count(shapes, "blocks"),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "image_dim": shapes.get(f"{_EMBEDDER}.norm1.weight", (None,))[0],
        "added_kv_proj_dim": shapes.get("blocks.0.attn2.add_k_proj.weight", (None,))[-1],
        "pos_embed_seq_len": shapes.get(f"{_EMBEDDER}.pos_embed", (None, None))[1],
    }
