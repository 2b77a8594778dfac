"""What a graph is, in two figures that no machine rounds otherwise: its structure to the bit, and its numbers roughly.

The weights of tiny checkpoints are replaced by numbers in closed form, so that they are the same everywhere. What torch
computes while it exports (angles, tables) may differ in its last bit from one processor to another.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file

_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT8E4M3FN,
}
TOLERANCE = 1e-4


def plain_weights(folder: Path) -> None:
    """Replace every weight of the checkpoints under ``folder`` by one that is the same on every machine.

    They are within 0.1 of zero, and standard deviations of one.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: _plain(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata)


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    start = zlib.crc32(name.encode()) % 9973
    steps = (torch.arange(tensor.numel()) * 7919 + start) % 2003 - 1001
    # A standard deviation is above zero.
    least = 1.0 if name.endswith("latents_std") else 0.0
    return (least + steps.double() / 10010).reshape(tensor.shape).to(tensor.dtype)


def structure_and_values(path: Path) -> tuple[str, float]:
    """A digest of all that an ONNX file says but for its fractional numbers, and one number for those.

    The second changes by 1e-4 and more when a tensor changes by that, measured by its norm.
    """
    model = onnx.load(path, load_external_data=False)
    total = 0.0
    for index, tensor in enumerate(_tensors(model.graph)):
        if tensor.data_type in _FLOATS:
            # Of equal tensors at other places the sum would be the same.
            total += (1 + index % 7 / 7) * _mark(_read(tensor, path.parent))
            if not tensor.external_data:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return digest, total


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _read(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[np.float64]:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    if copy.external_data:
        onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
    values: npt.NDArray[Any] = numpy_helper.to_array(copy)
    return np.clip(values.astype(np.float64).ravel(), -1e38, 1e38)


def _mark(values: npt.NDArray[np.float64]) -> float:
    """One number for a tensor: its size and its direction."""
    norm = float(np.linalg.norm(values))
    if norm == 0:
        return 0.0
    return math.log(norm) + float(values @ np.cos(np.arange(values.size))) * math.sqrt(2) / norm
