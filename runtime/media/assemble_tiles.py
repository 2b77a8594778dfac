"""Tiles are decoded one after the other, each through all of its frames, and blended into one video on the device.

That order is what saves memory: a decoder that goes from latent frame to latent frame has one tile's caches, and not
all of them. The price is that no frame is whole before the last tile is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowblending.contracts.tiling import Tile, Tiling
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.devices.tiles import Place
from flowblending.runtime.media.decode_engines import Blocks, Calls


def assembled(device: Device, calls: Calls, tiles: Sequence[Tile], tiling: Tiling) -> Tensor:
    """Enqueue the decoding of all tiles, and what makes one video of them: float32 [1, 3, F, H, W].

    Args:
        calls: that decode each.
        tiles: of the video, row by row.
        tiling: that they are of.
    """
    canvas = device.empty(calls.shape, np.dtype(np.float32))
    count = calls.shape[2]
    factor = calls.shape[3] // max(tile.top + tile.height for tile in tiles)
    steps = tiling.height - tiling.overlap, tiling.width - tiling.overlap
    last = max(tile.row for tile in tiles), max(tile.column for tile in tiles)
    # What a tile leaves to the one below waits for a row of tiles, and what it leaves to the next one for that one.
    blocks = Blocks(device)
    below: dict[tuple[int, int], Tensor] = {}
    after: dict[tuple[int, int], Tensor] = {}
    for index, tile in enumerate(tiles):
        here, (height, width) = (tile.row, tile.column), (tile.height * factor, tile.width * factor)
        kept_height, kept_width = min(height, steps[0]), min(width, steps[1])
        if tile.row < last[0] and height > kept_height:
            shape = (count, 3, height - kept_height, width)
            below[here] = blocks.tensor(f"below {tile.row % 2} {tile.column}", shape)
        if tile.column < last[1] and width > kept_width:
            shape = (count, 3, height, width - kept_width)
            after[here] = blocks.tensor(f"after {tile.column % 2}", shape)
        shared = {
            "above": below.get((tile.row - 1, tile.column)),
            "before": after.get((tile.row, tile.column - 1)),
            "below": below.get(here),
            "after": after.get(here),
        }
        first = 0
        for frames in calls.frames(index):
            end = first + frames.shape[2]
            parts = {name: device.rows(strip, first, end) for name, strip in shared.items() if strip is not None}
            place = Place(
                first=first,
                top=tile.top * factor,
                left=tile.left * factor,
                height=kept_height,
                width=kept_width,
                **parts,
            )
            device.place(canvas, frames, place)
            first = end
    return canvas
