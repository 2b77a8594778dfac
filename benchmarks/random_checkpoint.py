"""Models of published configurations with random weights, written as sharded safetensors, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

SHARD = 5_000_000_000
HOLLOW = 1 << 20
"""Bytes from which on a weight is a hole in a hollow checkpoint: what the exporter leaves in its file, too."""
_POOL = 3 * 5 * 7 * 9973


@dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer or text encoder: its class, and what of its configuration differs from the class's defaults.

    Attributes:
        kind: of diffusers or transformers.
        settings: of its configuration.
    """

    kind: str
    settings: Mapping[str, Any]

    @property
    def encodes_text(self) -> bool:
        """Whether it is a text encoder, which transformers has, and no transformer of diffusers."""
        return self.kind.endswith("EncoderModel")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return int(self.settings["num_layers"])

    def cut(self, layers: int | None) -> Model:
        """The same with so many layers; None leaves it as it is."""
        return self if layers is None else dataclasses.replace(self, settings={**self.settings, "num_layers": layers})


def _wan(layers: int, heads: int, ffn: int) -> Model:
    settings = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn}
    return Model(kind="WanTransformer3DModel", settings=settings | {"text_dim": 4096, "rope_max_seq_len": 1024})


MODELS: Mapping[str, Model] = {
    "wan-1.3b": _wan(30, 12, 8960),
    "wan-14b": _wan(40, 40, 13824),
    "ltx-13b": Model(
        kind="LTXVideoTransformer3DModel",
        settings={"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
    ),
    "ltx-2b": Model(
        kind="LTXVideoTransformer3DModel",
        settings={"num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048},
    ),
    "t5-xxl": Model(
        kind="T5EncoderModel",
        settings={
            "vocab_size": 32128,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "umt5-xxl": Model(
        kind="UMT5EncoderModel",
        settings={
            "vocab_size": 256384,
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
}


def write_model(model: Model, folder: Path, *, dtype: npt.DTypeLike = ml_dtypes.bfloat16, hollow: bool = False) -> None:
    """Write ``config.json``, the shards and their index into ``folder``, with one tensor in memory.

    Args:
        model: what to write.
        folder: made if need be.
        dtype: of the weights: bfloat16, float16 or float32.
        hollow: large weights are holes in the files, which take no room on most disks and read as zeros.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module, kind = _empty(model), np.dtype(dtype)
    prefix = "model" if model.encodes_text else "diffusion_pytorch_model"
    if model.encodes_text:
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in _shapes(module).items():
        nbytes = math.prod(shape) * kind.itemsize
        if shards[-1] and size + nbytes > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += nbytes
    pools = _pools(kind)
    names = [f"{prefix}-{index:05}-of-{len(shards):05}.safetensors" for index in range(1, len(shards) + 1)]
    for name, shapes in zip(names, shards, strict=True):
        _write_shard(folder / name, shapes, kind, pools, hollow=hollow)
    weight_map = {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))


def element_count(model: Model) -> int:
    """How many weights it has."""
    return sum(element_counts(model).values())


def element_counts(model: Model) -> dict[str, int]:
    """How many numbers each of its tensors has, by its name."""
    return {name: math.prod(shape) for name, shape in _shapes(_empty(model)).items()}


def _empty(model: Model) -> Any:
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if model.encodes_text:
            kind = getattr(transformers, model.kind)
            return kind(kind.config_class(**model.settings))
        return getattr(diffusers, model.kind)(**model.settings)


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name; of a table that has two names, under the one that transformers writes it with."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def _write_shard(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    kind: np.dtype[Any],
    pools: Mapping[str, npt.NDArray[np.uint8]],
    *,
    hollow: bool,
) -> None:
    header: dict[str, Any] = {}
    end = 0
    code = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[kind.name]
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * kind.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            nbytes = math.prod(shape) * kind.itemsize
            if hollow and nbytes >= HOLLOW:
                file.seek(nbytes, os.SEEK_CUR)
                continue
            for piece in _pieces(name, nbytes, pools[_role(name)]):
                file.write(piece)
        file.truncate()


def _role(name: str) -> str:
    if name == "latents_std" or ((".norm" in name or "layer_norm." in name) and name.endswith("weight")):
        return "norm"
    return "query" if name.endswith("SelfAttention.q.weight") else "other"


def _pools(kind: np.dtype[Any]) -> dict[str, npt.NDArray[np.uint8]]:
    """Random numbers by role, as bytes. T5's scores are not scaled, so that its queries are (arXiv 1910.10683)."""
    generator = np.random.default_rng(0)
    roles = {"norm": (1.0, 0.1), "query": (0.0, 0.002), "other": (0.0, 0.02)}
    return {
        role: (mean + spread * generator.standard_normal(_POOL, np.float32)).astype(kind).view(np.uint8)
        for role, (mean, spread) in roles.items()
    }


def _pieces(name: str, nbytes: int, pool: npt.NDArray[np.uint8]) -> Iterator[memoryview]:
    """A tensor's bytes: the pool again and again, from a place of its own on, so that no two tensors are equal."""
    start = int(np.random.default_rng(list(name.encode())).integers(_POOL)) * (pool.size // _POOL)
    while nbytes:
        piece = pool[start : start + nbytes]
        yield piece.data
        nbytes -= piece.size
        start = 0
