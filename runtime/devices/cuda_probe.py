"""Mean absolute values on an NVIDIA GPU: each block of a kernel leaves one partial sum, and the host adds them up.

No atomic additions: their order, and with it the sum's last bits, would differ from run to run, and a decision that
is a close one would too.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.tensor import Tensor

BLOCKS: Final = 256
"""Partial sums of one number: 2 KiB to read."""

PROBE_SOURCE: Final = """
extern "C" __global__ void probe(double* sums, unsigned long long count, const float* a, const float* b) {
  __shared__ double part[256];
  double sum = 0.0;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    sum += fabsf(b ? a[i] - b[i] : a[i]);
  part[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
"""
"""For blocks of at most 256 threads, a power of two."""


class _Device(Protocol):
    """What a probe asks of the GPU."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Memory."""
        ...

    def rows(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """A view."""
        ...

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy, after waiting for the stream."""
        ...

    def sums(self, out: Tensor, tensor: Tensor, other: Tensor | None) -> None:
        """Enqueue partial sums."""
        ...


class CudaProbe:
    """See `flowblending.runtime.devices.protocol.Probe`."""

    def __init__(self, device: _Device, count: int) -> None:
        self._device = device
        self._sums = device.empty((count, BLOCKS), np.dtype(np.float64))
        self._sizes = [1] * count

    def measure(self, index: int, tensor: Tensor, other: Tensor | None) -> None:
        """Enqueue a measurement."""
        self._sizes[index] = tensor.nbytes // 4
        self._device.sums(self._device.rows(self._sums, index, index + 1), tensor, other)

    def read(self) -> tuple[float, ...]:
        """Read the partial sums, and add them up."""
        totals = self._device.download(self._sums).sum(axis=1)
        return tuple(float(total) / size for total, size in zip(totals, self._sizes, strict=True))
