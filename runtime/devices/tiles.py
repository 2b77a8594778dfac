"""Tiles are put together to frames, on the CPU and on an NVIDIA GPU, with the same bits.

As ``blend_v`` and ``blend_h`` of diffusers' autoencoders do: over an overlap of e rows, row y of a tile becomes
(1 - y/e) a + (y/e) b, where b is its own and a that of the tile above, and then columns likewise with the tile to the
left. The neighbours' values are those that they came to themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from flowblending.engine.backends.tensor import Tensor

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tile's frames go, and what they share with other tiles. Tensors are float32.

    Attributes:
        first: frame of the canvas.
        top, left: of the canvas, in pixels.
        above: [f, 3, rows, w], what the tile above has of this one's first rows.
        before: [f, 3, h, columns], what the tile to the left has of this one's first columns.
        below, after: likewise, written: this tile's last rows and columns, which belong to others. What is not
            wanted is None.
        height, width: what of the tile belongs to the canvas.
    """

    first: int
    top: int
    left: int
    height: int
    width: int
    above: Tensor | None = None
    before: Tensor | None = None
    below: Tensor | None = None
    after: Tensor | None = None

    @property
    def shared(self) -> tuple[int, int]:
        """Rows and columns that the tiles above and to the left have, too."""
        rows = 0 if self.above is None else self.above.shape[2]
        return rows, 0 if self.before is None else self.before.shape[3]


TILES_SOURCE: Final = """
extern "C" __global__ void place(float* canvas, unsigned long long count, const float* tile, const float* above,
                                 const float* before, float* below, float* after, unsigned frames, unsigned height,
                                 unsigned width, unsigned all_frames, unsigned all_height, unsigned all_width,
                                 unsigned first, unsigned top, unsigned left, unsigned rows, unsigned columns,
                                 unsigned keep_height, unsigned keep_width) {
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (unsigned long long)blockDim.x) {
    unsigned x = i % width, y = i / width % height;
    unsigned long long t = i / width / height % frames, c = i / width / height / frames, line = t * 3 + c;
    float value = tile[i];
    if (above && y < rows) {
      double share = (double)y / rows;
      value = above[(line * rows + y) * width + x] * (float)(1.0 - share) + value * (float)share;
    }
    if (before && x < columns) {
      double share = (double)x / columns;
      value = before[(line * height + y) * columns + x] * (float)(1.0 - share) + value * (float)share;
    }
    if (below && y >= keep_height) below[(line * (height - keep_height) + y - keep_height) * width + x] = value;
    if (after && x >= keep_width) after[(line * height + y) * (width - keep_width) + x - keep_width] = value;
    if (y < keep_height && x < keep_width)
      canvas[((c * all_frames + first + t) * all_height + top + y) * all_width + left + x] = value;
  }
}
"""
"""``count``: values of the tile [3, frames, height, width]. Neighbours that are not there are null."""


def place_tile(canvas: Floats, tile: Floats, place: Place) -> None:
    """The same with arrays: canvas [3, F, H, W] and tile [3, f, h, w]."""
    values = tile.copy()
    if place.above is not None:
        above = place.above.numpy().transpose(1, 0, 2, 3)
        here = values[:, :, : above.shape[2]]
        here[...] = _turned(above, here, axis=2)
    if place.before is not None:
        before = place.before.numpy().transpose(1, 0, 2, 3)
        here = values[:, :, :, : before.shape[3]]
        here[...] = _turned(before, here, axis=3)
    if place.below is not None:
        place.below.numpy()[...] = values[:, :, place.height :].transpose(1, 0, 2, 3)
    if place.after is not None:
        place.after.numpy()[...] = values[:, :, :, place.width :].transpose(1, 0, 2, 3)
    last = place.first + tile.shape[1]
    rows, columns = (slice(place.top, place.top + place.height), slice(place.left, place.left + place.width))
    canvas[:, place.first : last, rows, columns] = values[:, :, : place.height, : place.width]


def _turned(a: Floats, b: Floats, *, axis: int) -> Floats:
    """From a into b along an axis."""
    extent = b.shape[axis]
    share = np.expand_dims(np.arange(extent) / extent, tuple(range(1, b.ndim - axis)))
    turned: Floats = a * (1.0 - share).astype(np.float32) + b * share.astype(np.float32)
    return turned
