"""Copies from a GPU to the host that hold up neither: into pinned memory, with an event behind them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.cuda_context import CudaContext
from flowblending.runtime.devices.protocol import Mark


class _Device(Protocol):
    """What a readback asks of the GPU."""

    @property
    def stream(self) -> int:
        """Its handle."""
        ...

    def mark(self) -> Mark:
        """An event."""
        ...


class CudaReadback:
    """See `flowblending.runtime.devices.protocol.Readback`.

    Args:
        device: that the tensors are on.
        driver: ``cuda.bindings.driver``.
        context: of the GPU.
        size: of the most that is read at once, in bytes.

    Raises:
        DeviceError: the system does not pin so much memory.
    """

    def __init__(self, device: _Device, driver: Any, context: CudaContext, size: int) -> None:
        self._device = device
        self._driver = driver
        self._context = context
        with context.current():
            address = int(context.check(driver.cuMemHostAlloc(max(size, 1), 0)))
        memory = (ctypes.c_uint8 * size).from_address(address)
        self._memory = np.frombuffer(memoryview(memory), np.uint8)
        self._address = address
        self._sizes: list[int] = []
        self._mark = device.mark()
        weakref.finalize(memory, _free, driver, context, address)

    def begin(self, tensors: Sequence[Tensor]) -> None:
        """Enqueue copies one behind the other, and the event."""
        self._sizes = [each.nbytes for each in tensors]
        start = self._address
        with self._context.current():
            for each in tensors:
                self._context.check(
                    self._driver.cuMemcpyDtoHAsync(start, each.address, each.nbytes, self._device.stream)
                )
                start += each.nbytes
        self._mark.record()

    def reached(self) -> bool:
        """Whether the event has completed."""
        return self._mark.reached()

    def take(self) -> list[npt.NDArray[np.uint8]]:
        """Wait for the event, and copy what was read out of the pinned memory."""
        if not self._mark.reached():
            self._mark.wait()
        ends = np.cumsum(self._sizes)
        return [self._memory[end - size : end].copy() for size, end in zip(self._sizes, ends, strict=True)]


def _free(driver: Any, context: CudaContext, address: int) -> None:
    with context.current():
        driver.cuMemFreeHost(address)
