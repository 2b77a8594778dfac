"""Guidance rescale on an NVIDIA GPU: two kernels, and nothing that the host waits for.

The first leaves partial sums of both tensors, one of each block; every block of the second adds them up in the same
order, so that all arrive at one factor, and the result is the same every time.
"""

from __future__ import annotations

from typing import Final

RESCALE_BLOCKS: Final = 256
"""Blocks of the first kernel, and so partial sums of each number."""

MOMENTS: Final = 4
"""Numbers of a block: sum and sum of squares of either tensor's distances to its first element, float64."""

RESCALE_SOURCE: Final = """
__device__ double block_sum(double value) {
  __shared__ double part[256];
  part[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  double total = part[0];
  __syncthreads();
  return total;
}

extern "C" __global__ void moments(double* sums, unsigned long long count, const float* a, const float* b) {
  double s[4] = {0.0, 0.0, 0.0, 0.0};
  double a0 = a[0], b0 = b[0];
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x) {
    double x = a[i] - a0, y = b[i] - b0;
    s[0] += x; s[1] += x * x; s[2] += y; s[3] += y * y;
  }
  for (int k = 0; k < 4; ++k) {
    double total = block_sum(s[k]);
    if (threadIdx.x == 0) sums[4 * blockIdx.x + k] = total;
  }
}

extern "C" __global__ void rescale(float* out, unsigned long long count, const double* sums, double share) {
  double total[4];
  for (int k = 0; k < 4; ++k) total[k] = block_sum(sums[4 * threadIdx.x + k]);
  double spread = total[1] - total[0] * total[0] / count;
  double wanted = total[3] - total[2] * total[2] / count;
  if (!(spread > 0.0)) return;
  float factor = (float)(share * sqrt((wanted > 0.0 ? wanted : 0.0) / spread) + 1.0 - share);
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    out[i] = factor * out[i];
}
"""
"""For blocks of 256 threads, as many as there are partial sums."""
