"""Where tensors are stored; and folders that stand for weights whose files call them otherwise.

Such a folder holds ``config.json``, links to the files of weights, and ``tensors.json``: by a tensor's name in the
model, where it is in which file. Everything that reads a model's folder takes it for one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending.export.checkpoint.naming import STAND_INS

PLACES = "tensors.json"


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor is stored.

    Attributes:
        path: of the file.
        offset: of its first byte.
        shape: of the tensor.
        kind: its type as safetensors names it (``BF16``), or GGML's name of what packs it (``Q4_K``).
        key: its name in the file; empty where that is its name in the model.
        decoded: whether its numbers are made of what is stored: of fp8, of packed blocks, or with a scale.
        scale: what they are multiplied by: one number, or one for each row.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    kind: str
    key: str = ""
    decoded: bool = False
    scale: TensorPlace | None = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def write_places(
    source: Path,
    config: Mapping[str, Any],
    files: Sequence[Path],
    tensors: Mapping[str, TensorPlace],
    scratch: Path,
) -> Path:
    """A folder that stands for a model.

    Args:
        source: what messages name it by.
        config: of the model.
        files: that hold it, of different names.
        tensors: by their names in the model.
        scratch: for as long as the model is looked at.
    """
    folder = scratch / STAND_INS / source.absolute().relative_to("/")
    folder.mkdir(parents=True)
    for path in files:
        (folder / path.name).symlink_to(path.absolute())
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    places = {name: _written(place) for name, place in tensors.items()}
    (folder / PLACES).write_text(json.dumps({"files": [path.name for path in files], "tensors": places}))
    return folder


def read_places(folder: Path) -> dict[str, TensorPlace]:
    """What `write_places` was told of the tensors, their files being the links in the folder."""
    tensors = json.loads((folder / PLACES).read_text())["tensors"]
    return {name: _read(place, folder) for name, place in tensors.items()}


def placed_files(folder: Path) -> tuple[Path, ...]:
    """The links in such a folder to the files that hold the model."""
    return tuple(folder / name for name in json.loads((folder / PLACES).read_text())["files"])


def _written(place: TensorPlace) -> dict[str, Any]:
    written = {
        "file": place.path.name,
        "offset": place.offset,
        "shape": place.shape,
        "kind": place.kind,
        "key": place.key,
        "decoded": place.decoded,
    }
    return written if place.scale is None else {**written, "scale": _written(place.scale)}


def _read(place: Mapping[str, Any], folder: Path) -> TensorPlace:
    return TensorPlace(
        path=folder / place["file"],
        offset=place["offset"],
        shape=tuple(place["shape"]),
        kind=place["kind"],
        key=place["key"],
        decoded=place["decoded"],
        scale=_read(place["scale"], folder) if "scale" in place else None,
    )
