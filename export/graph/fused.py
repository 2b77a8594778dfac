"""Weights with LoRA fused: W + scale * up @ down, computed in fp32 while W is read, and rounded once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import shown
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.graph.decoded import join
from flowblending.export.graph.stored import Readable, Stored, plain_at
from flowblending.export.lora.fit import Change, Lora, LowRank, Whole

_BLOCK = 1 << 18
"""Numbers of a product at a time: few enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A stored tensor and what is added to it.

    Attributes:
        base: the tensor in its file.
        changes: to add, in this order.
        dtype: the type that the sum is rounded to.
    """

    base: Readable
    changes: Sequence[Change]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file and in memory."""
        return self.base.shape

    @property
    def held(self) -> torch.dtype:
        """The type of the base in its file."""
        return self.base.held

    @property
    def nbytes(self) -> int:
        """Size of the base in its file."""
        return self.base.nbytes

    def as_type(self, dtype: torch.dtype) -> Fused:
        """The same, rounded to another type."""
        return dataclasses.replace(self, dtype=dtype)

    def read(self) -> torch.Tensor:
        """Read and fuse it, piece by piece, so that there is no second tensor of its size.

        Raises:
            FlowBlendingError: a file has changed since it was opened, or the LoRA holds a number that is not finite.
        """
        return join(self.pieces(), self.shape, self.dtype)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Fuse it from its first number to its last, some of them at a time; raises as `read` does."""
        added = self._added()
        start = 0
        for piece in self.base.as_type(torch.float32).pieces():
            for each in added:
                each.add(piece, start)
            start += len(piece)
            yield piece.to(self.dtype)

    def rows(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """Fuse rows of a matrix: [numbers, columns]; raises as `read` does."""
        rows = self.base.as_type(torch.float32).rows(numbers)
        width = math.prod(self.shape[1:])
        added = self._added()
        for index, number in enumerate(numbers.tolist()):
            for each in added:
                each.add(rows[index].view(-1), number * width)
        return rows.to(self.dtype)

    def _added(self) -> list[_LowRank | _Whole]:
        width = math.prod(self.shape[1:])
        return [_LowRank(each, width) if isinstance(each, LowRank) else _Whole(each) for each in self.changes]


def fuse(stored: Mapping[str, Readable], loras: Sequence[Lora]) -> dict[str, Readable]:
    """Tensors by name, those that a LoRA changes with their changes."""
    changes: dict[str, list[Change]] = {}
    for lora in loras:
        for name, each in lora.changes.items():
            changes.setdefault(name, []).extend(each)
    return {
        name: Fused(base=tensor, changes=tuple(changes[name]), dtype=tensor.dtype) if name in changes else tensor
        for name, tensor in stored.items()
    }


class _LowRank:
    """What a pair of factors adds to a tensor whose rows have ``width`` numbers; they are read once, in fp32."""

    def __init__(self, change: LowRank, width: int) -> None:
        rank = change.down.shape[0]
        self._width = width
        self._up = _finite(_stored(change.up).read(), change.up).view(-1, rank) * change.scale
        self._down = _finite(_stored(change.down).read(), change.down).view(rank, width)

    def add(self, numbers: torch.Tensor, start: int) -> None:
        """Add to the tensor's numbers from ``start`` on, fp32 [n], counted through all rows."""
        stop, width = start + len(numbers), self._width
        step = max(1, _BLOCK // width)
        for row in range(start // width, -(-stop // width), step):
            # The first row and the last may be there in part.
            block = (self._up[row : row + step] @ self._down).view(-1)
            first, last = max(start, row * width), min(stop, row * width + len(block))
            numbers[first - start : last - start] += block[first - row * width : last - row * width]


class _Whole:
    """What a difference adds, read from its file in fp32 as it is needed."""

    def __init__(self, change: Whole) -> None:
        self._change = change

    def add(self, numbers: torch.Tensor, start: int) -> None:
        """As `_LowRank.add`."""
        place = self._change.added
        added = _finite(_stored(place).numbers(start, start + len(numbers)), place)
        numbers.add_(added, alpha=self._change.scale)


def _stored(place: TensorPlace) -> Stored:
    return plain_at(place).as_type(torch.float32)


def _finite(values: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    if not values.isfinite().all():
        raise FlowBlendingError(
            f"A tensor of shape {list(place.shape)} in the LoRA {shown(place.path)} holds numbers that are not finite; "
            "download it again."
        )
    return values
