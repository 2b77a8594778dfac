"""Named arrays in one file: the safetensors format, which readers in every language know.

Layout (github.com/huggingface/safetensors, README, "Format"): the header's length as a little-endian 64-bit
number, the header as JSON with type, shape and byte range of every array, then the arrays' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending.system.whole_file import write_whole

_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32"}
_ALIGNMENT = 8


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays of float32, float16, int64 or int32, whole or not at all.

    Raises:
        FlowBlendingError: the file cannot be written.
    """
    header: dict[str, object] = {}
    chunks: list[bytes] = []
    offset = 0
    # Wider types first, so that every array lies at a multiple of its item size.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        chunks.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        end = offset + len(chunks[-1])
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    write_whole(path, b"".join([struct.pack("<Q", len(text)), text, *chunks]))
