"""Files of weights as people download them: one of safetensors, the index of sharded ones, a folder of the authors'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flowblending import FlowBlendingError, UsageError
from flowblending.export.checkpoint.gguf_file import SUFFIX as GGUF
from flowblending.export.checkpoint.gguf_file import read_gguf
from flowblending.export.checkpoint.model_files import check_there, read_json, tensors_in, weight_files, weight_map
from flowblending.export.checkpoint.naming import listed, shown
from flowblending.export.checkpoint.places import TensorPlace

INDEX = ".safetensors.index.json"
SUFFIXES = (".safetensors", INDEX, GGUF)
"""Endings of the names of files that are read."""

AUTHORS_CLASSES = ("WanModel", "VaceWanModel")
"""What the authors of a model call its transformer in a config.json of their own."""

_GGUF_AXES = 4

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""In front of a transformer's names, in files that hold other models beside it or once did."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What is in a file, or in the files that an index or a folder names.

    Attributes:
        source: what the user gave: a file or a folder.
        files: that hold the tensors.
        tensors: by their names in the files, without what some programs put in front of a transformer's.
    """

    source: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorPlace]


def check_suffix(name: str) -> None:
    """Refuse a file of a kind that is not read, by its name.

    Raises:
        UsageError: likewise; says how a pickle is converted.
    """
    if name.endswith(PICKLES):
        raise pickled(name)
    if not name.endswith(SUFFIXES):
        raise UsageError(
            f"{name} is a file, but a diffusers folder, a hub id, or a file that ends in {' or '.join(SUFFIXES)} was "
            "expected; give one."
        )


def pickled(name: str) -> UsageError:
    """The refusal of a pickle, with the command that converts it."""
    stem = Path(name).stem
    return UsageError(
        f"{name} is a pickle, which can run code when it is opened, so it is never read; convert it where you "
        f"trust it: python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{Path(name).name}', "
        f"map_location='cpu', weights_only=True), '{stem}.safetensors')\", and give {stem}.safetensors."
    )


def is_weights(source: Path) -> bool:
    """Whether something is weights of a transformer and no more: a file, or a folder under its authors' names."""
    if not source.is_dir():
        return True
    config = source / "config.json"
    authors = config.is_file() and read_json(config).get("_class_name") in AUTHORS_CLASSES
    return authors and not (source / "model_index.json").is_file()


def read_weights(source: Path) -> WeightsFile:
    """Read the headers of a file, of those that an index names, or of those in a folder.

    Raises:
        FlowBlendingError: a file is missing, cut short or of another kind, or two tensors have one name.
    """
    if source.is_dir():
        files = weight_files(source)
    elif source.name.endswith(INDEX):
        files = (source, *(source.parent / name for name in sorted(set(weight_map(source).values()))))
    else:
        files = (source,)
    for path in files:
        check_there(path)
    tensors: dict[str, TensorPlace] = {}
    files, found = _gguf(source) if source.suffix == GGUF else (files, [tensors_in([path]) for path in files])
    for each in found:
        for key, place in each.items():
            name = _without_prefix(key)
            if name in tensors:
                raise FlowBlendingError(f"{shown(source)} holds two tensors of the name {name}; give a whole file.")
            tensors[name] = replace(place, key=key)
    if not tensors:
        raise FlowBlendingError(
            f"{shown(source)} holds no tensors ({listed(path.name for path in files)}); give another."
        )
    return WeightsFile(source=source, files=files, tensors=tensors)


def _gguf(source: Path) -> tuple[tuple[Path, ...], list[Mapping[str, TensorPlace]]]:
    """A GGUF file, and the file beside it with what its converter kept apart, if it has not been put back.

    GGUF has four axes at most, so the patch embedding of a video model comes in ``fix_5d_tensors_wan.safetensors``
    (ComfyUI-GGUF, tools/convert.py and tools/fix_5d_tensors.py).
    """
    header = read_gguf(source)
    apart = source.with_name(f"fix_5d_tensors_{header.architecture}.safetensors")
    if not apart.is_file() or any(len(place.shape) > _GGUF_AXES for place in header.tensors.values()):
        return (source,), [header.tensors]
    return (source, apart), [header.tensors, tensors_in([apart])]


def _without_prefix(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
