"""A block of memory with a shape: what engines read and write, on the CPU or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CPU = "cpu"
CUDA = "cuda"

ALIGNMENT = 256
"""Of memory that engines are given on a GPU, in bytes (NvInferRuntime.h, IExecutionContext::setTensorAddress)."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Dense row-major memory.

    Attributes:
        address: of the first element, in host memory (``cpu``) or on the current CUDA device (``cuda``).
        shape: sizes of the dimensions.
        dtype: numpy element type.
        device: ``cpu`` or ``cuda``.
        owner: whatever keeps the memory alive; the memory is valid as long as this object is.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    owner: object

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Tensor:
        """A view of a numpy array, which must be C-contiguous; no copy."""
        if not array.flags.c_contiguous:
            raise ValueError("a tensor must be C-contiguous")
        return cls(address=array.ctypes.data, shape=array.shape, dtype=array.dtype, device=CPU, owner=array)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize

    def numpy(self) -> npt.NDArray[Any]:
        """The numpy array behind a tensor on the CPU; no copy."""
        if self.device != CPU or not isinstance(self.owner, np.ndarray):
            raise ValueError("only a tensor on the CPU is a numpy array")
        return self.owner
