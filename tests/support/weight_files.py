"""Files of weights as people have them, each made from one tiny transformer: every format has the same reference.

Formats: under their authors' names with and without a prefix, in shards with an index, with a VAE beside,
in fp8, plain or with scales in either spelling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from safetensors.torch import save_file

from benchmarks.checkpoints import ltx_pipeline, ltx_transformer, wan_pipeline, wan_transformer

Tensors = dict[str, torch.Tensor]

LARGEST = 448.0
"""Of E4M3."""

BACK: Mapping[str, tuple[tuple[str, str], ...]] = {
    "wan": (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (".to_out.0.", ".o."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        (".norm2.", ".norm3."),
        ("proj_out", "head.head"),
    ),
    "ltx": (("proj_in", "patchify_proj"), ("time_embed.", "adaln_single."), ("norm_q", "q_norm"), ("norm_k", "k_norm")),
}
CONVERT = {
    "wan": convert_wan_transformer_to_diffusers,
    "ltx": convert_ltx_transformer_checkpoint_to_diffusers,
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A pair: a pipeline, and the small transformer that files are made of.

    Attributes:
        family: ``wan`` or ``ltx``.
        base: folder of the pipeline.
        folder: of the transformer, in diffusers' format and bf16.
        tensors: of it, by diffusers' names.
        original: the same by their authors' names.
    """

    family: str
    base: Path
    folder: Path
    tensors: Tensors
    original: Tensors


def make_reference(family: str, folder: Path) -> Reference:
    """Write a pipeline, and a transformer of another depth and width beside it."""
    if family == "wan":
        wan_pipeline(1, wan_transformer(1)).save_pretrained(folder / "base")
        model = wan_transformer(2, layers=3, heads=3, ffn=96).bfloat16()
    else:
        ltx_pipeline(1, ltx_transformer(1)).save_pretrained(folder / "base")
        model = ltx_transformer(2, layers=3, head_dim=24).bfloat16()
    model.save_pretrained(folder / "transformer")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Reference(
        family=family,
        base=folder / "base",
        folder=folder / "transformer",
        tensors=tensors,
        original={authors_name(family, name): tensor for name, tensor in tensors.items()},
    )


def authors_name(family: str, name: str) -> str:
    """What the authors call a tensor, which diffusers' own converter must turn back into its name."""
    original = name
    for new, old in BACK[family]:
        original = original.replace(new, old)
    if family == "wan":
        original = (
            "head.modulation" if name == "scale_shift_table" else original.replace("scale_shift_table", "modulation")
        )
    assert list(CONVERT[family]({original: name})) == [name]
    return original


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """With something in front of every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def with_vae(reference: Reference) -> Tensors:
    """As the authors of LTX-Video publish it: the transformer under a prefix, and the VAE with its statistics."""
    from safetensors.torch import load_file

    statistics = load_file(reference.base / "vae/diffusion_pytorch_model.safetensors")
    return prefixed(reference.original, "model.diffusion_model.") | {
        "vae.decoder.conv_in.conv.weight": torch.zeros(4, 4),
        "vae.per_channel_statistics.channel": torch.zeros(4),
        "vae.per_channel_statistics.mean-of-means": statistics["latents_mean"].bfloat16(),
        "vae.per_channel_statistics.std-of-means": statistics["latents_std"].bfloat16(),
    }


def sharded(tensors: Tensors, folder: Path) -> Path:
    """Three files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    places: dict[str, str] = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        save_file({name: tensors[name].contiguous() for name in names[number::3]}, folder / file)
        places |= dict.fromkeys(names[number::3], file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def save(tensors: Tensors, path: Path) -> Path:
    """One file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is one that fp8 files hold in fp8: a matrix of a block."""
    return "blocks." in name and name.endswith(".weight") and tensor.ndim == 2


def fp8(tensors: Tensors, kind: torch.dtype = torch.float8_e4m3fn) -> Tensors:
    """Matrices of blocks cast to fp8."""
    return {name: tensor.to(kind) if is_linear(name, tensor) else tensor for name, tensor in tensors.items()}


def scaled(tensors: Tensors, spelling: str, *, by_row: bool = False) -> Tensors:
    """Matrices of blocks in fp8, divided by scales that are kept beside them.

    Args:
        spelling: ``scale_weight`` with one ``scaled_fp8``, or ``weight_scale`` with ``comfy_quant`` of each layer.
        by_row: a scale for each row, and not one for all.
    """
    made: Tensors = {}
    for name, tensor in tensors.items():
        if not is_linear(name, tensor):
            made[name] = tensor
            continue
        layer, values = name.removesuffix(".weight"), tensor.float()
        largest = values.abs().amax(dim=1, keepdim=True) if by_row else values.abs().max()
        scale = largest / LARGEST
        made[name] = (values / scale).to(torch.float8_e4m3fn)
        made[f"{layer}.{spelling}"] = scale
        if spelling == "weight_scale":
            told = json.dumps({"format": "float8_e4m3fn"}).encode()
            made[f"{layer}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
        else:
            made[f"{layer}.scale_input"] = torch.tensor(1.0)
    if spelling == "scale_weight":
        made["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return made


FORMATS: Mapping[str, Callable[[Reference, Path], Path]] = {
    "authors' names": lambda ref, folder: save(ref.original, folder / "x.safetensors"),
    "model.diffusion_model.": lambda ref, folder: save(
        prefixed(ref.original, "model.diffusion_model."), folder / "x.safetensors"
    ),
    "diffusion_model.": lambda ref, folder: save(prefixed(ref.original, "diffusion_model."), folder / "x.safetensors"),
    "diffusers' names": lambda ref, folder: save(ref.tensors, folder / "x.safetensors"),
    "shards": lambda ref, folder: sharded(ref.original, folder),
}
"""Those that hold the reference bit for bit."""
