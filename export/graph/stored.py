"""Large weights that stay in their safetensors files: a module of any size takes no memory until it computes.

Where a module is traced, a large weight is a single zero that looks like the whole tensor. Where it is written, and
where the module computes, it is read from its file, one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.model_files import stored_tensors
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.graph.decoded import Decoded

STREAMED_BYTES = 1 << 20
"""Bytes in its file from which on a weight stays there. The smaller ones of a 14B model are 20 MB together."""

_READ = 1 << 24
_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Readable(Protocol):
    """A tensor that is read when it is needed; what `Stored`, `Decoded` and `flowblending.export.graph.fused` have."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In memory."""
        ...

    @property
    def held(self) -> torch.dtype:
        """Its type in the file."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type that it is read as."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        ...

    def as_type(self, dtype: torch.dtype) -> Readable:
        """The same tensor, read as another type."""
        ...

    def read(self) -> torch.Tensor:
        """The whole tensor."""
        ...

    def pieces(self) -> Iterator[torch.Tensor]:
        """The whole tensor, flat, in pieces that take little memory."""
        ...

    def rows(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Some rows of a matrix."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a safetensors file.

    Attributes:
        path: of the file.
        offset: of its first byte.
        shape: in the file and in memory.
        held: its type in the file.
        dtype: the type that it is read as.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    held: torch.dtype
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.held.itemsize

    def as_type(self, dtype: torch.dtype) -> Stored:
        """The same tensor, read as another type."""
        return dataclasses.replace(self, dtype=dtype)

    def read(self) -> torch.Tensor:
        """Read it; where its type changes, piece by piece, so that there is no second tensor of its size.

        Raises:
            FlowBlendingError: the file has changed since it was opened.
        """
        values = torch.empty(self.shape, dtype=self.dtype)
        flat, step = values.view(-1), _READ // self.held.itemsize
        with self._opened() as file:
            for start in range(0, len(flat), step):
                self._fill(file, flat[start : start + step])
        return values

    def pieces(self) -> Iterator[torch.Tensor]:
        """Read it from its first number to its last, some of them at a time; raises as `read` does."""
        step = _READ // self.held.itemsize
        with self._opened() as file:
            for start in range(0, math.prod(self.shape), step):
                piece = torch.empty(min(step, math.prod(self.shape) - start), dtype=self.dtype)
                self._fill(file, piece)
                yield piece

    def rows(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Read rows of a matrix: [numbers, columns]; raises as `read` does.

        Args:
            numbers: of rows that there are.
        """
        rows = torch.empty((len(numbers), *self.shape[1:]), dtype=self.dtype)
        width = math.prod(self.shape[1:]) * self.held.itemsize
        with self._opened() as file:
            for row, number in zip(rows, numbers.tolist(), strict=True):
                file.seek(self.offset + number * width)
                self._fill(file, row.view(-1))
        return rows

    def numbers(self, start: int, stop: int) -> torch.Tensor:
        """Read those from ``start`` to ``stop``, [stop - start], counted through all rows; raises as `read` does."""
        offset = self.offset + start * self.held.itemsize
        return dataclasses.replace(self, offset=offset, shape=(stop - start,)).read()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                yield file
        except (OSError, EOFError) as error:
            raise FlowBlendingError(f"Cannot read {self.path} ({error}); download it again.") from None

    def _fill(self, file: IO[bytes], values: torch.Tensor) -> None:
        """Read as many numbers as there is room for, [n], from where the file stands."""
        target = values if self.held == self.dtype else torch.empty(len(values), dtype=self.held)
        _fill(file, target)
        if target is not values:
            values.copy_(target)


def find_stored(folder: Path) -> dict[str, Readable]:
    """Every tensor of the model in a folder that has a type of torch's, by name, in that type.

    Raises:
        FlowBlendingError: a file is missing or cut short.
    """
    return {
        name: stored_at(tensor)
        for name, tensor in stored_tensors(folder).items()
        if tensor.decoded or tensor.kind in _TYPES
    }


def stored_at(place: TensorPlace) -> Readable:
    """The tensor at a place, in the type that it has there, which is one of torch's, or as it is decoded."""
    return Decoded(place=place) if place.decoded else plain_at(place)


def plain_at(place: TensorPlace) -> Stored:
    """The tensor at a place where it is stored as it is."""
    kind = _TYPES[place.kind]
    return Stored(path=place.path, offset=place.offset, shape=place.shape, held=kind, dtype=kind)


def leave_in_file(parameter: torch.nn.Parameter, stored: Readable) -> None:
    """Make a parameter stand for a tensor that is not read yet."""
    parameter.stored = stored  # type: ignore[attr-defined] # torch keeps what a user adds to a tensor
    parameter.data = _stand_in(stored)


def stored_of(parameter: torch.Tensor) -> Readable | None:
    """The tensor that a parameter stands for; None for one that is in memory."""
    return getattr(parameter, "stored", None)


@contextmanager
def weights_on_demand(*modules: torch.nn.Module) -> Iterator[None]:
    """Inside, a layer's large weights are in memory while that layer computes, and no longer.

    They must be used by the module that owns them, called as one. Not for tracing, which would see the reading.
    """
    owners = {each: None for module in modules for each in module.modules() if any(stored_of(p) for p in _own(each))}
    handles = [
        handle
        for owner in owners
        for handle in (
            owner.register_forward_pre_hook(_fetch, prepend=True),
            owner.register_forward_hook(lambda owner, _inputs, _output: _release(owner), always_call=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """What ONNX calls a type of torch's."""
    return ir.DataType.from_numpy(_as_numpy(torch.empty(0, dtype=dtype)).dtype)


class StoredTensor(ir.LazyTensor):  # type: ignore[misc] # onnx_ir is Any to mypy
    """A stored tensor as a graph's initializer, read whenever it is asked for."""

    def __init__(self, stored: Readable, name: str) -> None:
        super().__init__(
            lambda: ir.Tensor(_as_numpy(stored.read()), name=name),
            onnx_type(stored.dtype),
            ir.Shape(stored.shape),
            name=name,
        )
        self.stored = stored

    def rows(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Some of its rows: [numbers, columns]."""
        return _as_numpy(self.stored.rows(numbers))

    def tofile(self, file: IO[bytes]) -> None:
        """Write it, a piece at a time: a table of token embeddings may be larger than what else is in memory."""
        for piece in self.stored.pieces():
            file.write(piece.view(torch.uint8).numpy().data)


def _own(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return module.parameters(recurse=False)


def _fetch(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if type(module) is torch.nn.Embedding and (stored := stored_of(module.weight)) is not None:
        # The rows that are asked for, and where they now are: the whole table may be larger than memory.
        numbers, places = torch.unique(inputs[0], return_inverse=True)
        module.weight.data = stored.rows(numbers.numpy())
        return (places, *inputs[1:])
    for parameter in _own(module):
        if (stored := stored_of(parameter)) is not None:
            parameter.data = stored.read()
    return inputs


def _release(module: torch.nn.Module) -> None:
    for parameter in _own(module):
        if (stored := stored_of(parameter)) is not None:
            parameter.data = _stand_in(stored)


def _stand_in(stored: Readable) -> torch.Tensor:
    return torch.zeros((), dtype=stored.dtype).expand(stored.shape)


def _fill(file: Any, target: torch.Tensor) -> None:
    view = target.view(torch.uint8).numpy().data
    while view:
        count = file.readinto(view)
        if not count:
            raise EOFError("it ends too early")
        view = view[count:]


def _as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Without a copy; numpy has no bfloat16 of its own."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    array: npt.NDArray[Any] = tensor.numpy()
    return array
