"""The CPU as a device: numpy arrays, and everything done when it returns."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.runtime.devices.pictures import HEADER, to_uint8
from flowblending.runtime.devices.protocol import Mark, Term
from flowblending.runtime.devices.tiles import Place, place_tile

_BLOCK: Final = 1 << 17
"""Elements worked on at a time: few enough to stay in the cache, many enough to make Python's share small."""


class HostDevice:
    """See `Device`. Its tensors are numpy arrays, and mixing allocates nothing."""

    def __init__(self) -> None:
        self._product = np.empty(_BLOCK, np.float32)

    @property
    def kind(self) -> str:
        """``cpu``."""
        return CPU

    @property
    def index(self) -> int:
        """0: there is one CPU."""
        return 0

    @property
    def stream(self) -> int:
        """0: there is none."""
        return 0

    def wait_for(self, stream: int) -> None:
        """Nothing is pending."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """A new array of unspecified content."""
        return Tensor.of(np.empty(shape, dtype))

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of an array."""
        return Tensor.of(np.array(array, order="C"))

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor."""
        return tensor.numpy().copy()

    def rows(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """The view ``tensor[start:stop]``."""
        return Tensor.of(tensor.numpy()[start:stop])

    def view(self, tensor: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """A view by elements."""
        return Tensor.of(tensor.numpy().reshape(-1)[start : start + math.prod(shape)].reshape(shape))

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy one tensor into another of the same size."""
        np.copyto(target.numpy().reshape(-1), source.numpy().reshape(-1))

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        """A linear combination, block by block."""
        target = out.numpy().reshape(-1)
        factors = [(np.float32(factor), tensor.numpy().reshape(-1)) for factor, tensor in terms]
        for start in range(0, target.size, _BLOCK):
            block = target[start : start + _BLOCK]
            product = self._product[: block.size]
            (factor, array), *rest = factors
            np.multiply(array[start : start + _BLOCK], factor, out=block)
            for factor, array in rest:
                np.multiply(array[start : start + _BLOCK], factor, out=product)
                np.add(block, product, out=block)

    def rescale(self, out: Tensor, reference: Tensor, share: float) -> None:
        """Multiply by a ratio of standard deviations, block by block."""
        target = out.numpy().reshape(-1)
        spread = _spread(target)
        if spread > 0.0:
            ratio = math.sqrt(max(_spread(reference.numpy().reshape(-1)), 0.0) / spread)
            np.multiply(target, np.float32(share * ratio + 1.0 - share), out=target)

    def pictures(self, frames: Tensor, out: Tensor) -> None:
        """Pictures of 8 bits."""
        values, target = frames.numpy()[0], out.numpy()
        finite = bool(np.isfinite(values).all())
        target[:HEADER] = 0 if finite else 1
        if finite:
            target[HEADER:] = to_uint8(values).reshape(-1)

    def place(self, canvas: Tensor, tile: Tensor, place: Place) -> None:
        """Blend and copy."""
        place_tile(canvas.numpy()[0], tile.numpy()[0], place)

    def readback(self, size: int) -> HostReadback:  # noqa: ARG002 - what is read takes as much as it has
        """A place that copies at once."""
        return HostReadback()

    @property
    def graphs(self) -> None:
        """None: there is nothing to launch."""
        return

    def hold(self, out: Tensor, source: Tensor, frames: Sequence[int]) -> None:
        """Copy some latent frames."""
        out.numpy()[:, :, list(frames)] = source.numpy()

    def mark(self) -> HostMark:
        """A mark, not yet recorded."""
        return HostMark()

    def seconds(self, start: Mark, stop: Mark) -> float:
        """The time between two marks."""
        assert isinstance(start, HostMark)
        assert isinstance(stop, HostMark)
        return stop.time - start.time

    def watch(self, complaints: Sequence[str]) -> HostWatch:
        """A watch that complains at once."""
        return HostWatch(complaints)

    def probe(self, count: int) -> HostProbe:
        """A probe that measures at once."""
        return HostProbe(count)

    def current(self) -> contextlib.AbstractContextManager[None]:
        """There is one CPU."""
        return contextlib.nullcontext()

    def trim(self) -> None:
        """The system has it back already."""

    def close(self) -> None:
        """Nothing is pending."""


def _spread(values: npt.NDArray[np.float32]) -> float:
    """The sum of squared distances to the mean, in one pass in float64.

    Distances are taken to the first element, which is as near to the mean as the others are; where all are equal, the
    sum is exactly 0.
    """
    total = squares = 0.0
    for start in range(0, values.size, _BLOCK):
        distances = values[start : start + _BLOCK].astype(np.float64) - np.float64(values[0])
        total += float(distances.sum())
        squares += float(distances @ distances)
    return squares - total * total / values.size


class HostMark:
    """A reading of the clock; see `Mark`."""

    def __init__(self) -> None:
        self.time = 0.0

    def record(self) -> None:
        """Read the clock, in seconds."""
        self.time = time.perf_counter()

    def reached(self) -> bool:
        """Always: the CPU does nothing later."""
        return True

    def wait(self) -> None:
        """Nothing is pending."""


class HostReadback:
    """See `Readback`."""

    def __init__(self) -> None:
        self._read: list[npt.NDArray[np.uint8]] = []

    def begin(self, tensors: Sequence[Tensor]) -> None:
        """Copy at once."""
        self._read = [each.numpy().reshape(-1).view(np.uint8).copy() for each in tensors]

    def reached(self) -> bool:
        """Always."""
        return True

    def take(self) -> list[npt.NDArray[np.uint8]]:
        """What was copied."""
        taken, self._read = self._read, []
        return taken


class HostWatch:
    """See `Watch`."""

    def __init__(self, complaints: Sequence[str]) -> None:
        self._complaints = complaints
        self._finite = np.empty(_BLOCK, np.bool_)

    def reset(self) -> None:
        """Nothing is remembered."""

    def check(self, tensor: Tensor, index: int | Tensor) -> None:
        """Complain at once if a value is not finite."""
        assert isinstance(index, int), "numbers in memory are for graphs"
        values = tensor.numpy().reshape(-1)
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            if not np.isfinite(block, out=self._finite[: block.size]).all():
                raise FlowBlendingError(self._complaints[index])

    def raise_if_bad(self) -> None:
        """Every check has complained already."""


class HostProbe:
    """See `Probe`."""

    def __init__(self, count: int) -> None:
        self._means = [0.0] * count
        self._block = np.empty(_BLOCK, np.float32)

    def measure(self, index: int, tensor: Tensor, other: Tensor | None) -> None:
        """Measure block by block."""
        values = tensor.numpy().reshape(-1)
        others = None if other is None else other.numpy().reshape(-1)
        total = 0.0
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK]
            block = self._block[: part.size]
            if others is None:
                np.abs(part, out=block)
            else:
                np.subtract(part, others[start : start + _BLOCK], out=block)
                np.abs(block, out=block)
            total += float(block.sum(dtype=np.float64))
        self._means[index] = total / values.size

    def read(self) -> tuple[float, ...]:
        """What was measured."""
        return tuple(self._means)
