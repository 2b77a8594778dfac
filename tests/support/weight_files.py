"""Files of weights as people have them, each made from one tiny transformer: every format has the same reference.

Formats: under their authors' names with and without a prefix, in shards with an index, with a VAE beside,
in fp8, plain or with scales in either spelling.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
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


def make_reference(family: str, folder: Path, *, wide: bool = False) -> Reference:
    """Write a pipeline, and a transformer of another depth and width beside it.

    Args:
        wide: enough for blocks of 256 numbers in a row.
    """
    head = 128 if wide else 16
    if family == "wan":
        wan_pipeline(1, wan_transformer(1, head_dim=head)).save_pretrained(folder / "base")
        model = wan_transformer(2, layers=3, heads=2 if wide else 3, head_dim=head, ffn=256 if wide else 96).bfloat16()
    else:
        ltx_pipeline(1, ltx_transformer(1)).save_pretrained(folder / "base")
        model = ltx_transformer(2, layers=3, head_dim=128 if wide else 24).bfloat16()
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


PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types of GGUF that are packed in blocks, of those that Wan and LTX-Video files come in."""

_K_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where fp16 scales stand in a block."""


def gguf(tensors: Tensors, kinds: Sequence[str], path: Path, *, arch: str, apart: bool = False) -> Path:
    """A GGUF file: matrices of blocks packed, others in F16 or BF16, the rest in F32.

    Where the package does not pack a type, blocks of random bits with scales of a usual size stand for it.

    Args:
        kinds: of `PACKED`, one after the other for matrices of blocks; none, and all matrices are in BF16.
        apart: keep tensors of five axes in a file beside it.
    """
    writer = GGUFWriter(path, arch)
    aside: Tensors = {}
    following = itertools.cycle(kinds)
    for name, tensor in tensors.items():
        array = tensor.float().numpy()
        if array.ndim > 4 and apart:
            aside[name] = tensor
        elif kinds and is_linear(name, tensor):
            kind = GGMLQuantizationType[next(following)]
            writer.add_tensor(name, packed(array, kind), raw_dtype=kind)
        elif array.ndim > 1 and not kinds:
            bf16 = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, bf16, raw_dtype=GGMLQuantizationType.BF16)
        elif array.ndim > 1:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if aside:
        save(aside, path.with_name(f"fix_5d_tensors_{arch}.safetensors"))
    return path


def packed(array: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Rows of blocks."""
    try:
        return np.asarray(quantize(array, kind), np.uint8)
    except NotImplementedError:
        numbers, size = GGML_QUANT_SIZES[kind]
        generator = np.random.default_rng(0)
        blocks = generator.integers(0, 256, (len(array), array.shape[1] // numbers, size), np.uint8)
        for place in _K_SCALES[kind.name]:
            scales = generator.uniform(0.001, 0.002, blocks.shape[:2]).astype(np.float16)
            blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
        return blocks.reshape(len(array), -1)


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
