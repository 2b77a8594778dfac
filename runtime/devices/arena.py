"""Scratch memory of all engines of a device: one, of the size that the largest of their calls takes.

Calls on one stream follow one another, and none finds anything there that another has left.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device

_BYTES: Final = np.dtype(np.uint8)


class Arena:
    """See the module; a `flowblending.engine.backends.protocol.Scratch`. It grows, and never shrinks but to nothing.

    Args:
        device: whose memory it is, and on whose stream the engines run.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: Tensor | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return 0 if self._memory is None else self._memory.nbytes

    def at_least(self, size: int) -> Tensor:
        """So many bytes or more.

        Raises:
            OutOfMemoryError: there is not so much.
        """
        if self._memory is None or self._memory.nbytes < size:
            self._memory = None  # freed before, not beside, what takes its place
            self._memory = self._device.empty((size,), _BYTES)
        return self._memory

    def release(self) -> None:
        """Free the memory, in the stream's order. It comes again when it is asked for."""
        self._memory = None
