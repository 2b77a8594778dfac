"""An LTX-Video transformer in a file of weights, under its authors' names (github.com/Lightricks/LTX-Video).

Of the shapes, all follows but the number of heads, which is 32 in the models of 2 and of 13 billion weights: it is
taken from the pipeline that the transformer is to run in. The authors' files hold the VAE, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

from flowblending.export.checkpoint.model_files import AUTHORS_STATISTICS
from flowblending.export.families.original import (
    Original,
    Shapes,
    diffusers_names,
    head_width,
    layer_count,
    refuse_parts,
    shape_of,
)

KIND = "LTX-Video transformer"

_DIFFUSERS = "proj_in."
_VAE = "vae."
_PARTS = {r"(audio_|av_ca_|video_embeddings_connector|.+\.audio_)": "an LTX-2 model, which makes sound, too,"}


def read_original(shapes: Shapes, base: Mapping[str, Any]) -> Original:
    """Diffusers' names and configuration; see `flowblending.export.families.model_family.ModelFamily.original`.

    Raises:
        FlowBlendingError: it is no transformer of LTX-Video.
    """
    names = [name for name in shapes if not name.startswith(_VAE)]
    vae = tuple(name for name in shapes if name.startswith(_VAE))
    refuse_parts(names, _PARTS, "an LTX-Video model")
    diffusers = diffusers_names(names, _DIFFUSERS, convert_ltx_transformer_checkpoint_to_diffusers)
    return Original(
        config={**base, **_config({diffusers[name]: shapes[name] for name in names}, base)},
        names=diffusers,
        left_out={"the VAE, which the pipeline has": vae} if vae else {},
        statistics=AUTHORS_STATISTICS if set(AUTHORS_STATISTICS) <= set(vae) else None,
    )


def _config(shapes: Shapes, base: Mapping[str, Any]) -> dict[str, Any]:
    width, channels = shape_of(shapes, "proj_in.weight", 2, KIND)
    given, _ = shape_of(shapes, "proj_out.weight", 2, KIND)
    _, text = shape_of(shapes, "caption_projection.linear_1.weight", 2, KIND)
    _, context = shape_of(shapes, "transformer_blocks.0.attn2.to_k.weight", 2, KIND)
    heads = int(base.get("num_attention_heads", 32))
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head_width(width, heads, KIND),
        "in_channels": channels,
        "out_channels": given,
        "caption_channels": text,
        "cross_attention_dim": context,
        "num_layers": layer_count(shapes, "transformer_blocks"),
    }
