"""Opening a LoRA file: the places of its tensors, its alphas, and what it says of itself; no other tensor is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowblending import UsageError
from flowblending.export.checkpoint.fit import FLOATS
from flowblending.export.checkpoint.model_files import read_json, read_place, tensors_in
from flowblending.export.checkpoint.naming import listed
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.checkpoint.source import locate
from flowblending.export.checkpoint.weights_file import PICKLES, pickled
from flowblending.system.scratch import scratch

_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""A zip file, as torch writes it, and Python's pickle itself."""

USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and PEFT call the file in a folder of theirs."""

_METADATA = "lora_adapter_metadata"
"""diffusers loaders/lora_base.py, LORA_ADAPTER_METADATA_KEY."""
_CONFIG = "adapter_config.json"

_HUB_FILE = re.compile(r"[\w.-]+(/[\w.-]+){2,}\.safetensors(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """An opened LoRA file.

    Attributes:
        path: of the file.
        tensors: by the names that it gives them.
        alphas: of the tensors ``.alpha``, by their names.
        config: PEFT's configuration of the adapter, from the file's header or a file beside it; empty if there is none.
    """

    path: Path
    tensors: Mapping[str, TensorPlace]
    alphas: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)


def find_lora(given: str) -> Path:
    """The file that a user means: one that is here, the one in a folder of diffusers or PEFT, or one of the hub.

    Args:
        given: a path, or ``ORG/NAME/FILE.safetensors[@REVISION]``, which is fetched.

    Raises:
        UsageError: there is none, or several, or it is a pickle.
        FlowBlendingError: the hub does not give it.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        path = _in_folder(path)
    if path.suffix.lower() in PICKLES:
        raise pickled(str(path))
    if path.is_file():
        return path
    if not _HUB_FILE.fullmatch(given):
        raise UsageError(
            f"There is no LoRA file {given}; give a .safetensors file that is there, or one of the hub as "
            "ORG/NAME/FILE.safetensors."
        )
    with scratch() as looked_at:
        source = locate(given, (), looked_at)
        found = source.fetch(())
        if source.remote is not None and found.name == USUAL[1]:
            source.remote.fetch_beside(_CONFIG)
    return found


def open_lora(path: Path) -> LoraFile:
    """Read the header of a file, and its alphas.

    Raises:
        FlowBlendingError: it is no whole safetensors file.
        UsageError: it is a pickle, is empty, or holds types or alphas that no LoRA has.
    """
    with path.open("rb") as file:
        if file.read(4).startswith(_PICKLE_MAGIC):
            raise pickled(str(path))
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} was given as a LoRA, but a .safetensors file was expected.")
    tensors = tensors_in([path])
    if not tensors:
        raise UsageError(f"{path} holds no tensors; download it again.")
    alphas = {name: _alpha(path, name, place) for name, place in tensors.items() if name.endswith(".alpha")}
    odd = [name for name, place in tensors.items() if name not in alphas and place.kind not in FLOATS]
    if odd:
        raise UsageError(
            f"{path} holds {listed(odd)} in {tensors[odd[0]].kind}, but a LoRA in {', '.join(FLOATS)} was expected; "
            "give the one that it was quantised from."
        )
    return LoraFile(path=path, tensors=tensors, alphas=alphas, config=_config(path))


def _in_folder(folder: Path) -> Path:
    found = [folder / name for name in USUAL if (folder / name).is_file()]
    found = found or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        there = listed(path.name for path in found) or "none"
        raise UsageError(f"{folder} is a folder with several or no LoRA files ({there}); give one of them.")
    return found[0]


def _alpha(path: Path, name: str, place: TensorPlace) -> float:
    numbers = read_place(place) if place.elements == 1 and place.kind in (*FLOATS, "I64", "I32") else ()
    if len(numbers) != 1 or not math.isfinite(numbers[0]):
        found = numbers[0] if numbers else f"a tensor of type {place.kind} and shape {list(place.shape)}"
        raise UsageError(f"{path} has {name} = {found}, but one finite number was expected; download it again.")
    return float(numbers[0])


def _config(path: Path) -> dict[str, Any]:
    """As PEFT names its fields; diffusers puts ``transformer.`` before them, in the header."""
    raw = _header_metadata(path).get(_METADATA)
    if isinstance(raw, str):
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"The header of {path} has a damaged {_METADATA}; save the LoRA again.")
        return {name.removeprefix("transformer."): value for name, value in found.items()}
    beside = path.parent / _CONFIG
    return read_json(beside) if path.name == USUAL[1] and beside.is_file() else {}


def _header_metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__") or {})
