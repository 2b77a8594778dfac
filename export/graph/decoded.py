"""Tensors whose numbers are made of what a file holds: of fp8, with a scale, or of the blocks of GGUF."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.gguf_file import Block, block, decode
from flowblending.export.checkpoint.model_files import read_place
from flowblending.export.checkpoint.naming import shown
from flowblending.export.checkpoint.places import TensorPlace

_READ_BYTES = 1 << 24
_TYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A tensor that is decoded while it is read: in fp32, and rounded once.

    Attributes:
        place: of what is stored.
        dtype: the type that it is read as.
    """

    place: TensorPlace
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """In memory."""
        return self.place.shape

    @property
    def held(self) -> torch.dtype:
        """The type that its numbers are kept in where they must be in a file."""
        return torch.bfloat16

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self._bytes(self.place.elements)

    def as_type(self, dtype: torch.dtype) -> Decoded:
        """The same tensor, read as another type."""
        return dataclasses.replace(self, dtype=dtype)

    def read(self) -> torch.Tensor:
        """The whole tensor.

        Raises:
            FlowBlendingError: the file has changed since it was opened.
        """
        return join(self.pieces(), self.shape, self.dtype)

    def pieces(self) -> Iterator[torch.Tensor]:
        """The whole tensor, flat, some rows at a time; raises as `read` does."""
        width = math.prod(self.shape[1:])
        step = max(1, _READ_BYTES // max(1, self._bytes(width)))
        if width % self._block.numbers:
            # Rows that begin within a block, of a tensor that was packed in another shape: few and small.
            step = self.shape[0]
        for start in range(0, self.shape[0] if self.shape else 1, step):
            count = min(step, self.shape[0] - start) if self.shape else 1
            yield self._rows(start, count).to(self.dtype).view(-1)

    def rows(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Some rows of a matrix: [numbers, columns]; raises as `read` does."""
        if math.prod(self.shape[1:]) % self._block.numbers:
            return self.read()[numbers]
        return torch.cat([self._rows(number, 1) for number in numbers.tolist()]).to(self.dtype)

    def codes(self) -> torch.Tensor:
        """What is stored for each number of a tensor in fp8: uint8, like the tensor; raises as `read` does."""
        return self._read_bytes(0, self._bytes(self.place.elements)).view(self.shape)

    def scales(self) -> torch.Tensor:
        """What numbers in fp8 are multiplied by: fp32 [1], or one for each row."""
        scale = self._scale()
        return torch.ones(1) if scale is None else scale

    def _rows(self, start: int, count: int) -> torch.Tensor:
        """Rows from one on, fp32 [count, columns]."""
        width = math.prod(self.shape[1:])
        raw = self._read_bytes(self._bytes(start * width), self._bytes(count * width))
        kind = self.place.kind
        values = raw.view(_TYPES[kind]).float() if kind in _TYPES else torch.from_numpy(decode(raw.numpy(), kind))
        numbers = values.view(count, width)
        scale = self._scale()
        if scale is None:
            return numbers
        return numbers * (scale if len(scale) == 1 else scale[start : start + count, None])

    def _read_bytes(self, start: int, count: int) -> torch.Tensor:
        path = self.place.path
        raw = torch.empty(count, dtype=torch.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(self.place.offset + start)
                view = raw.numpy().data
                while view:
                    read = file.readinto(view)
                    if not read:
                        raise EOFError("it ends too early")
                    view = view[read:]
        except (OSError, EOFError) as error:
            raise FlowBlendingError(f"Cannot read {shown(path)} ({error}); download it again.") from None
        return raw

    def _scale(self) -> torch.Tensor | None:
        """Of all, [1], or of each row, [rows]."""
        return None if self.place.scale is None else torch.tensor(read_place(self.place.scale), dtype=torch.float32)

    @property
    def _block(self) -> Block:
        kind = self.place.kind
        return Block(numbers=1, bytes=_TYPES[kind].itemsize) if kind in _TYPES else block(kind)

    def _bytes(self, count: int) -> int:
        """Of so many numbers, which are whole blocks."""
        return count // self._block.numbers * self._block.bytes


def join(pieces: Iterable[torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor from its flat pieces, so that nothing of its size is beside it; raises what they do."""
    values = torch.empty(shape, dtype=dtype)
    flat, start = values.view(-1), 0
    for piece in pieces:
        flat[start : start + len(piece)] = piece
        start += len(piece)
    return values
