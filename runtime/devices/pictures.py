"""Frames become pictures of 8 bits, on the CPU and on an NVIDIA GPU, with the same bits.

Both work on float32 [3, F, H, W], where black is -1 and white 1, and give uint8 [F, H, W, 3], as diffusers does
(image_processor.py, numpy_to_pil): x / 2 + 1/2, clamped to [0, 1], times 255, rounded to the nearest and half to even.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

HEADER: Final = 4
"""Bytes before the pictures: a word that is not 0 where a value is not finite."""

PICTURES_SOURCE: Final = """
extern "C" __global__ void pictures(unsigned char* out, unsigned* bad, unsigned long long count, const float* frames) {
  bool all = true;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x)
    for (unsigned c = 0; c < 3; ++c) {
      float value = frames[c * count + i];
      all &= (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
      out[3 * i + c] = (unsigned char)rintf(fminf(fmaxf(value * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f);
    }
  if (!all) *bad = 1u;
}
"""
"""``count``: pixels of all frames together. ``bad`` is left alone where every value is finite."""


def to_uint8(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pictures of frames that are finite; see the module."""
    scaled = frames * np.float32(0.5)
    scaled += np.float32(0.5)
    np.clip(scaled, 0.0, 1.0, out=scaled)
    scaled *= np.float32(255.0)
    return np.ascontiguousarray(np.rint(scaled, out=scaled).astype(np.uint8).transpose(1, 2, 3, 0))


def pictures_bytes(shape: tuple[int, ...]) -> int:
    """What the pictures of frames [..., 3, F, H, W] take, header included."""
    return HEADER + int(np.prod(shape))
