"""Tiles that a VAE decoder takes a video in, where the whole of a frame does not fit.

Where they lie is what ``enable_tiling`` of diffusers' AutoencoderKLWan and AutoencoderKLLTXVideo makes of the same
numbers (``tiled_decode`` in models/autoencoders): tiles begin every ``tile - overlap`` pixels, and the last ones in
either direction are as small as the video leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Span(NamedTuple):
    """Where a tile lies in one direction."""

    start: int
    length: int


class Tile(NamedTuple):
    """A tile in latent pixels; row and column count from 0 on."""

    row: int
    column: int
    top: int
    left: int
    height: int
    width: int


class Tiling(BaseModel):
    """Tiles of a video.

    Attributes:
        width, height: of a tile, in pixels of the video.
        overlap: pixels that neighbours share, in which one turns into the other; at most half of a tile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    overlap: int = Field(ge=0)

    def __str__(self) -> str:
        """As options say it: ``256x256+64``."""
        return f"{self.width}x{self.height}+{self.overlap}"

    @model_validator(mode="after")
    def _overlap_at_most_half(self) -> Self:
        if 2 * self.overlap > min(self.width, self.height):
            raise ValueError("an overlap is at most half of a tile")
        return self

    def divides(self, height: int, width: int, factor: int) -> bool:
        """Whether a video is decoded in tiles at all: one that is no larger than a tile is not.

        Args:
            height, width: of its latents.
            factor: pixels per latent pixel.
        """
        return height > self.height // factor or width > self.width // factor

    def tiles(self, height: int, width: int, factor: int) -> Iterator[Tile]:
        """The tiles of a video, row by row; arguments as of `divides`."""
        for row, (top, high) in enumerate(self.rows(height, factor)):
            for column, (left, wide) in enumerate(self.columns(width, factor)):
                yield Tile(row, column, top, left, high, wide)

    def rows(self, height: int, factor: int) -> list[Span]:
        """Where the rows of tiles lie in latents of such a height."""
        return _spans(height, self.height // factor, self.overlap // factor)

    def columns(self, width: int, factor: int) -> list[Span]:
        """Where the columns of tiles lie in latents of such a width."""
        return _spans(width, self.width // factor, self.overlap // factor)


def _spans(size: int, tile: int, overlap: int) -> list[Span]:
    return [Span(start, min(tile, size - start)) for start in range(0, size, tile - overlap)]
