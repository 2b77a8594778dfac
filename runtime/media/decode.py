"""From latents to frames: one engine for the whole clip, or one step per latent frame with a cache between.

Which of the two follows from the components that the bundle has. Frames leave as soon as they are decoded, as pictures
of 8 bits that the device has made of them, while it decodes the next ones.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import ALIGNMENT, Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.pictures import HEADER, pictures_bytes
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.noise import Normal
from flowblending.runtime.media.read_ahead import Chunk, Part, read_ahead

LATENTS = "latents"
FRAMES = "frames"

PIECE = 8
"""Frames that leave at once where all have been decoded together."""

_NEXT = "_next"
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes latents [1, C, F, H, W] fp32, normalised as the transformer sees them.

    Attributes:
        engines: ``vae``, or ``vae_first`` and ``vae_next``.
        device: where the engines and the latents are.
        conditioning: of a timestep-conditioned decoder.
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
        if VAE in self.engines:
            frames = self._whole(latents, noise)
            yield from self._pieces(frames, floats)
        else:
            yield from self._stepwise(latents, floats)

    def _whole(self, latents: Tensor, noise: Normal) -> Tensor:
        """Enqueue the whole clip's decoding, whose frames [1, 3, F, H, W] it returns."""
        engine = self.engines[VAE]
        sizes = dict(zip(("frames", "height", "width"), latents.shape[2:], strict=True))
        scalars = {"timestep": self.conditioning.timestep, "noise_scale": self.conditioning.noise_scale}
        tensors = {LATENTS: latents}
        for spec in engine.spec.inputs:
            if spec.name in scalars:
                value = np.full(spec.resolve(sizes), scalars[spec.name], np.float32)
                tensors[spec.name] = self.device.upload(value)
            elif spec.name != LATENTS:
                # Every other input of a decoder is standard normal noise.
                tensors[spec.name] = self.device.upload(noise.normal(spec.resolve(sizes)))
        tensors |= self._outputs(engine, {name: each.shape for name, each in tensors.items()})
        with self.device.current():
            engine.run(tensors, self.device.stream)
        return tensors[FRAMES]

    def _pieces(self, frames: Tensor, floats: bool) -> Generator[Chunk, None, None]:
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
                    precision=self.engines[VAE].spec.precision,
                    frames=frames if floats else None,
                )

        size = HEADER + min(at_once, count) * frame + (frames.nbytes if floats else 0)
        yield from read_ahead(self.device, parts(), size)

    def _stepwise(self, latents: Tensor, floats: bool) -> Generator[Chunk, None, None]:
        """Memory for everything comes first; the loop only enqueues engine calls, conversions and copies."""
        slices = self._slices(latents)
        calls = self._calls(slices[0].shape, len(slices))
        largest = max(calls, key=lambda call: call.frames.nbytes).frames
        pictures = self.device.empty((pictures_bytes(largest.shape),), _UINT8)

        def parts() -> Generator[Part, None, None]:
            first = 0
            for index, each in enumerate(slices):
                call = calls[index if index < 2 else 2 - index % 2]
                with self.device.current():
                    call.engine.run({**call.tensors, LATENTS: each}, self.device.stream)
                made = self.device.view(pictures, 0, (pictures_bytes(call.frames.shape),))
                self.device.pictures(call.frames, made)
                *_, count, height, width = call.frames.shape
                yield Part(
                    pictures=made,
                    header=True,
                    size=(height, width),
                    first=first,
                    precision=call.engine.spec.precision,
                    frames=call.frames if floats else None,
                )
                first += count

        yield from read_ahead(self.device, parts(), pictures.nbytes + (largest.nbytes if floats else 0))

    def _slices(self, latents: Tensor) -> list[Tensor]:
        """Every latent frame [1, C, 1, H, W] for itself, all in one block, where engines can take each."""
        clip = self.device.download(latents)[0]
        channels, count, height, width = clip.shape
        size = math.prod((channels, height, width))
        row = -(-size * clip.itemsize // ALIGNMENT) * ALIGNMENT // clip.itemsize
        rows = np.zeros((count, row), clip.dtype)
        rows[:, :size] = clip.swapaxes(0, 1).reshape(count, size)
        block = self.device.upload(rows)
        return [self.device.view(block, index * row, (1, channels, 1, height, width)) for index in range(count)]

    def _calls(self, shape: tuple[int, ...], count: int) -> list[_Call]:
        """The first step; and, if there are later ones, those that read one set of caches and write the other.

        Args:
            shape: of a latent frame.
            count: of the latent frames.
        """
        first, following = self.engines[VAE_FIRST], self.engines[VAE_NEXT]
        outputs = self._outputs(first, {LATENTS: shape})
        calls = [_Call(first, outputs)]
        if count > 1:
            before = _caches(outputs)
            outputs = self._outputs(following, {LATENTS: shape} | {name: each.shape for name, each in before.items()})
            after = _caches(outputs)
            written_back = {f"{name}{_NEXT}": tensor for name, tensor in before.items()}
            calls.append(_Call(following, {**before, **outputs}))
            calls.append(_Call(following, {**after, FRAMES: outputs[FRAMES], **written_back}))
        return calls

    def _outputs(self, engine: Engine, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Memory for what an engine gives for inputs of such shapes."""
        sizes = engine.spec.sizes(inputs)
        return {spec.name: self.device.empty(spec.resolve(sizes), np.dtype(spec.dtype)) for spec in engine.spec.outputs}


@dataclass(frozen=True)
class _Call:
    """An engine and all tensors of a call but the latents."""

    engine: Engine
    tensors: Mapping[str, Tensor]

    @property
    def frames(self) -> Tensor:
        """[1, 3, f, H, W]."""
        return self.tensors[FRAMES]


def _caches(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a step hands over to the next one, by the names that it has there."""
    return {name.removesuffix(_NEXT): tensor for name, tensor in outputs.items() if name.endswith(_NEXT)}
