"""From latents to frames: one engine for the whole clip, or one step per latent frame with a cache between.

Which of the two follows from the components that the bundle has. Frames leave as soon as they are decoded, as pictures
of 8 bits that the device has made of them, while it decodes the next ones; those of a video that is decoded in tiles,
or at once, when all are there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT
from flowblending.contracts.tiling import Tile
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.pictures import HEADER, pictures_bytes
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.assemble_tiles import assembled
from flowblending.runtime.media.decode_engines import Calls, Stepwise, WholeClip, pixels_per_latent
from flowblending.runtime.media.noise import Normal
from flowblending.runtime.media.read_ahead import Chunk, Part, read_ahead

PIECE = 8
"""Frames that leave at once where all have been decoded together."""

_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes latents [1, C, F, H, W] fp32, normalised as the transformer sees them.

    Attributes:
        engines: ``vae``, or ``vae_first`` and ``vae_next``.
        device: where the engines and the latents are.
        conditioning: of a timestep-conditioned decoder, and the tiles.
    """

    engines: Mapping[str, Engine]
    device: Device
    conditioning: DecodeConditioning

    def decode(self, latents: Tensor, noise: Normal, *, floats: bool = False) -> Generator[Chunk, None, None]:
        """Chunks of frames, in order.

        Args:
            latents: the sampler's result.
            noise: the generator that the initial latents were drawn from; a timestep-conditioned
                decoder draws its own noise next, as the reference pipeline does.
            floats: whether float32 frames are wanted beside the pictures.

        Raises:
            FlowBlendingError: a pixel is not finite, or an engine failed.
        """
        tiles = self._tiles(latents)
        calls: Calls
        if VAE in self.engines:
            engine, told = self.engines[VAE], self.conditioning
            calls = WholeClip(engine, self.device, latents, tiles, conditioning=told, noise=noise)
        else:
            calls = Stepwise(self.engines[VAE_FIRST], self.engines[VAE_NEXT], self.device, latents, tiles)
        tiling = self.conditioning.tiling
        if len(tiles) > 1 and tiling is not None:
            yield from self._pieces(calls, assembled(self.device, calls, tiles, tiling), floats)
        elif VAE in self.engines:
            (frames,) = calls.frames(0)
            yield from self._pieces(calls, frames, floats)
        else:
            yield from self._as_they_come(calls, floats)

    def _tiles(self, latents: Tensor) -> Sequence[Tile]:
        """The tiles of a video; one of all of it where it is not divided."""
        height, width = latents.shape[3:]
        tiling = self.conditioning.tiling
        factor = pixels_per_latent(next(iter(self.engines.values())))
        if tiling is None or not tiling.divides(height, width, factor):
            return [Tile(0, 0, 0, 0, height, width)]
        return list(tiling.tiles(height, width, factor))

    def _pieces(self, calls: Calls, frames: Tensor, floats: bool) -> Generator[Chunk, None, None]:
        """The frames [1, 3, F, H, W] of a clip; float32 ones all at once, since they do not lie frame by frame."""
        *_, count, height, width = frames.shape
        pictures = self.device.empty((pictures_bytes(frames.shape),), _UINT8)
        self.device.pictures(frames, pictures)
        at_once, frame = count if floats else PIECE, 3 * height * width

        def parts() -> Generator[Part, None, None]:
            for first in range(0, count, at_once):
                # The word for the whole clip is read with the first of its frames.
                header = 0 if first else HEADER
                size = header + min(at_once, count - first) * frame
                start = HEADER + first * frame - header
                yield Part(
                    pictures=self.device.view(pictures, start, (size,)),
                    header=header > 0,
                    size=(height, width),
                    first=first,
                    precision=calls.precision,
                    frames=frames if floats else None,
                )

        size = HEADER + min(at_once, count) * frame + (frames.nbytes if floats else 0)
        yield from read_ahead(self.device, parts(), size)

    def _as_they_come(self, calls: Calls, floats: bool) -> Generator[Chunk, None, None]:
        """Memory for everything comes first; the loop only enqueues engine calls, conversions and copies."""
        largest = (*calls.shape[:2], calls.at_once, *calls.shape[3:])
        pictures = self.device.empty((pictures_bytes(largest),), _UINT8)

        def parts() -> Generator[Part, None, None]:
            first = 0
            for frames in calls.frames(0):
                *_, count, height, width = frames.shape
                made = self.device.view(pictures, 0, (pictures_bytes(frames.shape),))
                self.device.pictures(frames, made)
                yield Part(
                    pictures=made,
                    header=True,
                    size=(height, width),
                    first=first,
                    precision=calls.precision,
                    frames=frames if floats else None,
                )
                first += count

        bytes_at_once = pictures.nbytes + (4 * (pictures.nbytes - HEADER) if floats else 0)
        yield from read_ahead(self.device, parts(), bytes_at_once)
