"""Which files make a model, and reading small things from them, without a machine-learning library."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import listed, shown
from flowblending.export.checkpoint.places import PLACES, TensorPlace, placed_files, read_places

_WEIGHTS = (
    # Where both exist, the one that the library itself reads stands first.
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_)?model\.(?:(?P<one>[\w-]+)\.safetensors|safetensors\.index\.(?P<index>[\w-]+)\.json)"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_PREFERRED = ("bf16", "fp16", "fp32")
"""Of the variants that a folder without plain weights has: the range of fp32 in the size of fp16 comes first."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".msgpack", ".onnx")
DEVIATION = "latents_std"
STATISTICS = ("latents_mean", DEVIATION)
"""Tensors of a VAE that are read beside its headers."""
AUTHORS_STATISTICS = ("vae.per_channel_statistics.mean-of-means", "vae.per_channel_statistics.std-of-means")
"""What the authors of LTX-Video call them."""


def model_files(folder: Path) -> tuple[Path, ...]:
    """The files that determine the model in a folder: ``config.json``, the index of sharded weights, the weights.

    Raises:
        FlowBlendingError: one of them is missing or cut short.
    """
    config = folder / "config.json"
    check_there(config)
    if (folder / PLACES).is_file():
        return config, folder / PLACES, *placed_files(folder)
    return config, *weight_files(folder)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Those of `model_files` beside the configuration; raises likewise."""
    names = {path.name for path in folder.iterdir()}
    found = weights_listing(names)
    if found is None:
        others = listed(sorted(name for name in names if name.endswith(WEIGHT_SUFFIXES))) or "none"
        raise FlowBlendingError(
            f"{shown(folder)} has no {_WEIGHTS[1]} or {_WEIGHTS[2]}, nor one variant (weight files there: {others}); "
            "give a complete diffusers checkpoint with safetensors weights."
        )
    listing = folder / found
    check_there(listing)
    if listing.suffix == ".safetensors":
        _header(listing)
        return (listing,)
    shards = tuple(folder / name for name in sorted(set(weight_map(listing).values())))
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FlowBlendingError(
            f"{shown(folder)} lacks {listed(shard.name for shard in missing)}, though {listing.name} names "
            f"{'it' if len(missing) == 1 else 'them'}{_broken(missing)}; download {shown(folder)} again."
        )
    for shard in shards:
        _header(shard)
    return listing, *shards


def weights_listing(names: Collection[str]) -> str | None:
    """The file among these names that holds the weights, or the index of sharded ones.

    It is the one that the library itself would read; where there is none, that of a variant, which users of the library
    have to name: ``model.fp16.safetensors``, ``model.safetensors.index.fp16.json``. Of several whose names tell no
    type, none is taken.
    """
    plain = next((name for name in _WEIGHTS if name in names), None)
    if plain is not None:
        return plain
    found = {variant: name for name in sorted(names) if (variant := _variant(name)) is not None}
    best = next((variant for variant in _PREFERRED if variant in found), None)
    if best is None and len(found) == 1:
        best = next(iter(found))
    return None if best is None else found[best]


def _variant(name: str) -> str | None:
    """The variant that a file of weights or an index belongs to; None for others, and for shards."""
    match = _VARIANT.fullmatch(name)
    return None if match is None or _SHARD.search(name) else match["one"] or match["index"]


def check_there(path: Path) -> None:
    """Refuse a file that is missing, or a link to nothing.

    Raises:
        FlowBlendingError: likewise.
    """
    if not path.is_file():
        raise FlowBlendingError(f"{shown(path)} is missing{_broken([path])}; give a complete diffusers checkpoint.")


def _broken(paths: Sequence[Path]) -> str:
    return " (a link to nothing)" if any(path.is_symlink() for path in paths) else ""


def stored_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Every tensor of the model in a folder, by name; read from the headers of its files.

    Raises:
        FlowBlendingError: as `model_files`.
    """
    return tensors_in(model_files(folder))


def tensors_in(files: Sequence[Path]) -> dict[str, TensorPlace]:
    """Every tensor of these files, by name; those that are not safetensors are passed over."""
    places = next((path for path in files if path.name == PLACES), None)
    if places is not None:
        return read_places(places.parent)
    found = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors, start = _header(path)
            for name, tensor in tensors.items():
                found[name] = TensorPlace(
                    path=path,
                    offset=start + tensor["data_offsets"][0],
                    shape=tuple(tensor["shape"]),
                    kind=tensor["dtype"],
                )
    return found


Progress = Callable[[int], None]


def weights_sha256(
    files: Sequence[Path],
    progress: Progress | None = None,
    *,
    checksum: Callable[[Path, Progress | None], str] | None = None,
) -> str:
    """SHA-256 over names, sizes and checksums, in the order given.

    Args:
        files: read once, a few megabytes at a time.
        progress: called with the number of bytes just read.
        checksum: the SHA-256 of a file's contents, for who remembers it; told ``progress``. Default: reads the file.
    """
    digest = hashlib.sha256()
    for path in files:
        content = (checksum or _sha256)(path, progress)
        digest.update(f"{path.name}\0{path.stat().st_size}\0{content}\0".encode())
    return digest.hexdigest()


def _sha256(path: Path, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def read_tensor(files: Sequence[Path], name: str) -> tuple[float, ...] | None:
    """A small tensor of floating-point numbers from safetensors files; None where none of them has it."""
    place = next((found[name] for path in files if name in (found := tensors_in([path]))), None)
    return None if place is None else read_place(place)


def read_place(place: TensorPlace) -> tuple[float, ...]:
    """The numbers of a small tensor, floating-point or integers with sign; by hand: numpy has no bfloat16."""
    letter = {"F64": "d", "F16": "e", "BF16": "e", "I64": "q", "I32": "i"}.get(place.kind, "f")
    with place.path.open("rb") as file:
        file.seek(place.offset)
        raw = file.read(place.elements * struct.calcsize(letter))
    if place.kind == "BF16":
        # bfloat16 is the upper half of float32.
        raw, letter = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2)), "f"
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FlowBlendingError: the file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FlowBlendingError(
            f"Cannot read {shown(path)} ({_reason(error)}); give a complete diffusers checkpoint."
        ) from None
    if not isinstance(content, dict):
        raise FlowBlendingError(f"{shown(path)} holds no JSON object; give a complete diffusers checkpoint.")
    return content


def _reason(error: OSError | ValueError | RecursionError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, from the index of sharded weights.

    Raises:
        FlowBlendingError: it is no such index.
    """
    found = read_json(index).get("weight_map")
    plain = isinstance(found, dict) and all(isinstance(name, str) and "/" not in name for name in found.values())
    if not found or not plain:
        raise FlowBlendingError(f"{shown(index)} names no weight files; give a complete diffusers checkpoint.")
    return dict(found)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Every tensor that a safetensors file describes, and where its data begin; the file is whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(start - 8)) if start <= size else {}
        tensors.pop("__metadata__", None)
        whole = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0) == size
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise FlowBlendingError(f"{shown(path)} ({size} bytes) is no whole safetensors file; download it again.")
    return tensors, start
