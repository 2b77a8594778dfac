"""Where tiles lie: as the loops of diffusers' ``tiled_decode`` go."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from flowblending.contracts.tiling import Tile, Tiling

TILING = Tiling(width=256, height=192, overlap=64)


def test_tiles_go_row_by_row_and_end_with_the_video() -> None:
    # Latents of 1280x720 pixels, in tiles of 32x24 latent pixels that begin every 24x16.
    assert [tuple(span) for span in TILING.rows(90, 8)] == [(0, 24), (16, 24), (32, 24), (48, 24), (64, 24), (80, 10)]
    assert [tuple(span) for span in TILING.columns(160, 8)] == [(24 * i, 32) for i in range(6)] + [(144, 16)]
    tiles = list(TILING.tiles(90, 160, 8))
    assert len(tiles) == 6 * 7
    assert tiles[0] == Tile(0, 0, 0, 0, 24, 32)
    assert tiles[8] == Tile(1, 1, 16, 24, 24, 32)
    assert tiles[-1] == Tile(5, 6, 80, 144, 10, 16)


def test_a_video_no_larger_than_a_tile_is_not_divided() -> None:
    assert not TILING.divides(24, 32, 8)
    assert TILING.divides(25, 32, 8)
    assert TILING.divides(24, 33, 8)


def test_every_pixel_is_in_a_tile_and_neighbours_meet_the_overlap() -> None:
    for size in range(1, 200):
        spans = TILING.columns(size, 8)
        assert {pixel for span in spans for pixel in range(span.start, span.start + span.length)} == {*range(size)}
        for one, other in itertools.pairwise(spans):
            shared = one.start + one.length - other.start
            assert shared == min(8, other.length)


@pytest.mark.parametrize(("width", "height", "overlap"), [(64, 64, 33), (64, 32, 17), (0, 64, 0), (64, 64, -1)])
def test_what_is_no_tile(width: int, height: int, overlap: int) -> None:
    with pytest.raises(ValidationError):
        Tiling(width=width, height=height, overlap=overlap)
