"""GGUF files, by the package ``gguf``: what their headers say, and the numbers in their blocks.

GGUF packs a matrix row by row in blocks of 32 or 256 numbers, each with scales of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import listed, shown
from flowblending.export.checkpoint.places import TensorPlace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIX = ".gguf"
HEADER_BYTES = 4_000_000
"""More than any transformer's header; text encoders have vocabularies in theirs."""

_PLAIN = ("F64", "F32", "F16", "BF16")
"""Types that safetensors files have, too."""

_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Begins the name of a field with the shape of a tensor that was stored in another one (ComfyUI-GGUF, loader.py)."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """How many numbers are packed together, and in how many bytes."""

    numbers: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself: its tensors by name, and what its converter calls the kind of model."""

    tensors: Mapping[str, TensorPlace]
    architecture: str


def read_gguf(path: Path) -> Header:
    """The header of a file.

    Raises:
        FlowBlendingError: it is no whole GGUF file, or has a tensor of a type that is not known.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        if reader.byte_order != "I":
            raise ValueError("its numbers have the bytes in the other order")
        field = reader.fields.get("general.architecture")
        found = {tensor.name: _place(path, tensor, reader.fields) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError, OSError, MemoryError) as error:
        unknown = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error))
        if unknown is not None:
            raise FlowBlendingError(
                f"{shown(path)} holds a tensor of type {unknown[1]}, which the package gguf does not know; give a file "
                "of another type, or install a later gguf."
            ) from None
        size = path.stat().st_size
        reason = str(error).partition("\n")[0]
        raise FlowBlendingError(
            f"{shown(path)} ({size} bytes) is no whole GGUF file ({reason}); download it again."
        ) from None
    _check_types(path, found)
    return Header(tensors=found, architecture="" if field is None else str(field.contents()))


def block(kind: str) -> Block:
    """The blocks of a type, by GGML's name."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return Block(numbers=numbers, bytes=size)


def decode(packed: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    """The numbers of whole blocks, fp32 [n].

    Args:
        packed: [bytes].
        kind: GGML's name of the type.
    """
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = dequantize(packed.reshape(-1, block(kind).bytes), GGMLQuantizationType[kind])
    return np.ascontiguousarray(found, np.float32).reshape(-1)


def _place(path: Path, tensor: Any, fields: Mapping[str, Any]) -> TensorPlace:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    field = fields.get(_ORIGINAL_SHAPE + tensor.name)
    if field is not None:
        original = tuple(int(field.parts[index][0]) for index in field.data)
        if math.prod(original) != math.prod(shape):
            raise ValueError(f"{tensor.name} of shape {shape} is said to have been {original}")
        shape = original
    kind = tensor.tensor_type.name
    return TensorPlace(
        path=path, offset=int(tensor.data_offset), shape=shape, kind=kind, key=tensor.name, decoded=kind not in _PLAIN
    )


def _check_types(path: Path, tensors: Mapping[str, TensorPlace]) -> None:
    """Refuse types that hold no weights, or that the package cannot decode."""
    import numpy as np

    for kind in {place.kind for place in tensors.values() if place.decoded}:
        try:
            decode(np.zeros(block(kind).bytes, np.uint8), kind)
        except NotImplementedError:
            names = [name for name, place in tensors.items() if place.kind == kind]
            raise FlowBlendingError(
                f"{shown(path)} holds {listed(names)} in {kind}, which the package gguf does not decode; give a file "
                "of another type, such as Q8_0, Q6_K or Q4_K."
            ) from None
