"""What arrays and streams of other libraries have in common with one another; types only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class DLPackArray(Protocol):
    """An array of torch, cupy, numpy, jax, ... that shares its memory through DLPack."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        """A capsule with the memory, which is ready for the consumer's stream."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLDeviceType and index."""
        ...


class CudaArray(Protocol):
    """An array on a GPU that shares its memory as pycuda's and numba's do."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Address, shape, type, strides and stream."""
        ...


class HostArray(Protocol):
    """An array in host memory that shares it as numpy does."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Address, shape, type and strides."""
        ...


class CudaStream(Protocol):
    """A CUDA stream that follows the CUDA stream protocol, as those of cuda.core, torch, cupy and numba do."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol (0) and handle."""
        ...


class CudaHandle(Protocol):
    """A CUDA stream that has its handle as an attribute, as pycuda's does."""

    @property
    def handle(self) -> int:
        """The CUstream as a number."""
        ...


ForeignArray = DLPackArray | CudaArray | HostArray
ForeignStream = int | CudaStream | CudaHandle
