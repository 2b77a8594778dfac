"""Where latents live and how time is told there: what the sampler asks of a CPU or a GPU.

Everything is enqueued on one stream and finishes in the order in which it was asked for. Only ``download``,
`Mark.wait`, `Probe.read`, `Readback.take` and `Watch.raise_if_bad` wait; on a CPU everything has finished when it
returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.tiles import Place

Term = tuple[float, Tensor]


class Mark(Protocol):
    """A moment in the order of the stream, to wait for and to measure from. Made by `Device.mark`."""

    def record(self) -> None:
        """Put the mark behind everything that was enqueued so far; it may be recorded again later."""
        ...

    def reached(self) -> bool:
        """Whether everything before the mark has finished; does not wait."""
        ...

    def wait(self) -> None:
        """Return when everything before the mark has finished."""
        ...


class Watch(Protocol):
    """Looks out for non-finite values without holding up the stream. Made by `Device.watch`."""

    def reset(self) -> None:
        """Enqueue: forget what was found so far."""
        ...

    def check(self, tensor: Tensor, index: int | Tensor) -> None:
        """Enqueue a look at a float32 tensor; ``index`` says which complaint a non-finite value calls for.

        It is a number, or, on a device with `Graphs`, one uint32 in its memory, which is read when the look is taken.

        Raises:
            FlowBlendingError: on the CPU, at once.
        """
        ...

    def raise_if_bad(self) -> None:
        """Wait for the stream, and complain about the lowest index that was bad.

        Raises:
            FlowBlendingError: a check found a non-finite value.
        """
        ...


class Probe(Protocol):
    """Means of absolute values, gathered on the device and read in one go. Made by `Device.probe`."""

    def measure(self, index: int, tensor: Tensor, other: Tensor | None) -> None:
        """Enqueue: number ``index`` becomes the mean of |tensor - other|, or of |tensor|; float32 tensors of one size.

        Differences are taken in float32, and summed in float64 in an order that is the same every time.
        """
        ...

    def read(self) -> tuple[float, ...]:
        """All the numbers, after waiting for everything enqueued before; unspecified where none was measured."""
        ...


class Readback(Protocol):
    """A place on the host to read into without holding up the stream. Made by `Device.readback`.

    It holds what was last read until `take`, which has to come before the next `begin`.
    """

    def begin(self, tensors: Sequence[Tensor]) -> None:
        """Enqueue copies of tensors, whose memory may be written again by what is enqueued behind."""
        ...

    def reached(self) -> bool:
        """Whether they have arrived; does not wait."""
        ...

    def take(self) -> list[npt.NDArray[np.uint8]]:
        """The bytes of each, in arrays of their own, after waiting for them."""
        ...


class CaptureError(Exception):
    """A GPU made no graph of what was enqueued. The message is the driver's name for why."""


class Graph(Protocol):
    """Work that is enqueued as one. It keeps none of the memory alive that it uses. Made by `Graphs.capture`."""

    def launch(self, marks: Sequence[tuple[Mark, Mark]]) -> None:
        """Enqueue it.

        Args:
            marks: pairs of a mark that was recorded when the work was captured, and the one that is recorded in its
                place. Such a mark may be measured from when one that was recorded after the launch has been reached;
                until then it tells nothing.
        """
        ...


class Graphs(Protocol):
    """Makes graphs of what a device enqueues, and mixes whose numbers differ from launch to launch."""

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Make a graph of what a function enqueues, which has not run then.

        The function allocates nothing and waits for nothing.

        Raises:
            CaptureError: the GPU's driver makes no graph of it.
            Exception: what the function raises.
        """
        ...

    def numbers(self, factors: Sequence[float]) -> Sequence[float]:
        """What `mix` finds in memory for these factors, so many float32 numbers."""
        ...

    def mix(self, out: Tensor, factors: Tensor, tensors: Sequence[Tensor]) -> None:
        """As `Device.mix`, to the same bits, with factors that are read from memory when it runs: see `numbers`."""
        ...


class Device(Protocol):
    """Memory, copies, linear combinations and time on one stream. Used by one thread at a time.

    On a GPU, every method makes the GPU current for as long as it runs, and the thread's own again afterwards; for
    engines, `current` does.
    """

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``: what `Tensor.device` says of this device's tensors."""
        ...

    @property
    def index(self) -> int:
        """Which GPU, among those that CUDA shows; 0 on the CPU."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the CUDA stream for `Engine.run`; 0 on the CPU."""
        ...

    def wait_for(self, stream: int) -> None:
        """Enqueue: what comes next waits for what another CUDA stream was given so far."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Memory of unspecified content. It is the tensor's: freed, in stream order, with its last view."""
        ...

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of an array on the device. The array may be changed as soon as this returns."""
        ...

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor as a numpy array, after waiting for everything enqueued before."""
        ...

    def rows(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """The view ``tensor[start:stop]``."""
        ...

    def view(self, tensor: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """The view of that shape on the elements from number ``start`` on, counted in row-major order."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy one tensor into another of the same size in bytes."""
        ...

    def mix(self, out: Tensor, terms: Sequence[Term]) -> None:
        """``out = sum(coefficient * tensor)`` in float32, summed in the order given without fused operations.

        CPU and GPU give the same bits. ``out`` may be the first of the terms, but no later one.
        """
        ...

    def rescale(self, out: Tensor, reference: Tensor, share: float) -> None:
        """``out *= share * std(reference) / std(out) + 1 - share``; float32 tensors of one size.

        Standard deviations are of all elements, in float64, summed in an order that is the same every time; the factor
        is rounded to float32 once. ``out`` is left as it is where it does not vary.
        """
        ...

    def pictures(self, frames: Tensor, out: Tensor) -> None:
        """Enqueue: frames float32 [1, 3, F, H, W] become pictures uint8 [F, H, W, 3] (see `pictures`).

        ``out`` is uint8 of one dimension and has `pictures.HEADER` bytes in front, all 0 if every value is finite. CPU
        and GPU give the same bits where it is; what a pixel becomes that is not is unspecified.
        """
        ...

    def place(self, canvas: Tensor, tile: Tensor, place: Place) -> None:
        """Enqueue: a tile's frames float32 [1, 3, f, h, w] become part of a video's, [1, 3, F, H, W]; see `tiles`.

        CPU and GPU give the same bits.
        """
        ...

    def readback(self, size: int) -> Readback:
        """A place on the host for so many bytes at once."""
        ...

    @property
    def graphs(self) -> Graphs | None:
        """What makes graphs; None where there are none."""
        ...

    def hold(self, out: Tensor, source: Tensor, frames: Sequence[int]) -> None:
        """``out[:, :, frames] = source``, for tensors [1, C, F, H, W] of float32; the frames rise."""
        ...

    def mark(self) -> Mark:
        """A mark, not yet recorded."""
        ...

    def seconds(self, start: Mark, stop: Mark) -> float:
        """The time between two marks that have been reached."""
        ...

    def watch(self, complaints: Sequence[str]) -> Watch:
        """A watch with one sentence per index to complain with."""
        ...

    def probe(self, count: int) -> Probe:
        """A probe for ``count`` numbers."""
        ...

    def current(self) -> contextlib.AbstractContextManager[None]:
        """``with device.current():`` the GPU is this thread's current one, as engines want it to be."""
        ...

    def trim(self) -> None:
        """Wait for what was enqueued, and give memory that was freed back to the system: a phase of a run has ended."""
        ...

    def close(self) -> None:
        """Wait for what was enqueued. Tensors outlive the device."""
        ...
