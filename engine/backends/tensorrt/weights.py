"""The weights that an ONNX file keeps in other files: which, where, and whether they are all there.

Compilers say of a missing or cut-off weight file that some tensor could not be imported, and name no
file. This reads as much of the ONNX format as it takes to find out first (https://onnx.ai, onnx.proto),
and lets a compiler read the weights from the file's pages instead of from a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_NAME = 8
_TENSOR_EXTERNAL_DATA = 13
_ENTRY_KEY = 1
_ENTRY_VALUE = 2


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor in an external file, mapped into memory.

    Attributes:
        address: of its first byte.
        nbytes: its size.
        owner: keeps the mapping alive.
    """

    name: str
    address: int
    nbytes: int
    owner: npt.NDArray[np.uint8]


def map_weights(onnx: Path, model: bytes) -> tuple[Weight, ...]:
    """Map every external initializer of a model into memory, read-only.

    Args:
        onnx: where the model was read from; external files lie relative to it.
        model: its content.

    Raises:
        FlowBlendingError: this is no ONNX model, or a file of weights is missing or too short.
    """
    files: dict[str, npt.NDArray[np.uint8]] = {}
    weights = []
    for name, location, offset, length in _external(onnx, model):
        path = onnx.parent / location
        if location not in files:
            files[location] = _map(onnx, path)
        available = files[location].size
        end = available if length is None else offset + length
        if max(offset, end) > available:
            raise FlowBlendingError(
                f"{path} is {available} bytes long, but the weight {name} of {onnx.name} ends at byte "
                f"{max(offset, end)}; export it again."
            )
        part = files[location][offset:end]
        weights.append(Weight(name=name, address=part.ctypes.data, nbytes=part.size, owner=part))
    return tuple(weights)


def _map(onnx: Path, path: Path) -> npt.NDArray[np.uint8]:
    try:
        # An empty file cannot be mapped, and an empty array needs no memory.
        return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise FlowBlendingError(
            f"The weights {path} of {onnx.name} cannot be read ({error.strerror}); export it again."
        ) from None


def _external(onnx: Path, model: bytes) -> Iterator[tuple[str, str, int, int | None]]:
    """Name, file, offset and length (None: to the end) of every initializer that lies in another file."""
    try:
        graphs = [value for number, value in _fields(memoryview(model)) if number == _MODEL_GRAPH]
        if not graphs:
            raise ValueError("there is no graph in it")
        for number, tensor in _fields(graphs[0]):
            if number != _GRAPH_INITIALIZER:
                continue
            fields = list(_fields(tensor))
            entries = [dict(_fields(value)) for field, value in fields if field == _TENSOR_EXTERNAL_DATA]
            where = {str(each[_ENTRY_KEY], "utf-8"): str(each[_ENTRY_VALUE], "utf-8") for each in entries}
            if where:
                length = int(where["length"]) if "length" in where else None
                yield str(dict(fields)[_TENSOR_NAME], "utf-8"), where["location"], int(where.get("offset", 0)), length
    except (ValueError, KeyError) as error:
        raise FlowBlendingError(f"{onnx} is not an ONNX model ({error}); export it again.") from None


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every length-delimited field of a protobuf message; other fields are skipped.

    Encoding: https://protobuf.dev/programming-guides/encoding.

    Raises:
        ValueError: the message is damaged.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 2:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("it ends too early")
            yield key >> 3, message[position : position + length]
            position += length
        elif key & 7 == 0:
            _, position = _varint(message, position)
        elif key & 7 in (1, 5):
            position += 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"it has a field of the unknown kind {key & 7}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of variable length, and the position behind it."""
    value = shift = 0
    while True:
        if position >= len(message):
            raise ValueError("it ends too early")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
