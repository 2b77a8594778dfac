"""From frames to latents: one engine for the whole clip, or one step per latent frame with a cache between.

Which of the two follows from the components that the bundle has. It is the decoder's way back
(`flowblending.runtime.media.decode`), and neither's memory grows with the clip where it goes step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.graph import VAE_ENCODER, VAE_ENCODER_FIRST, VAE_ENCODER_NEXT
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.clip import pixels

PIXELS = "pixels"
NOISE = "noise"
LATENTS = "latents"

_NEXT = "_next"

Floats = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8] | Floats


@dataclass(frozen=True, kw_only=True)
class VaeEncoder:
    """Encodes frames to latents [1, C, F, H, W] fp32, normalised as the transformer sees them.

    Attributes:
        engines: ``vae_encoder``, or ``vae_encoder_first`` and ``vae_encoder_next``.
        device: where the engines are.
        factors: video frames per latent frame, and pixels per latent pixel.
        channels: of the latents.
    """

    engines: Mapping[str, Engine]
    device: Device
    factors: tuple[int, int]
    channels: int

    def encode(self, frames: Frames, noise: Floats | None = None) -> Floats:
        """The latents of a clip.

        Args:
            frames: uint8 [F, H, W, 3], or fp32 [1, 3, F, H, W] in [-1, 1] as `pixels` gives them, of which the first is
                a latent frame by itself: F - 1 is a multiple of the frames per latent frame.
            noise: standard normal, like the latents, for a draw from the encoder's distribution; None for its mode.

        Raises:
            FlowBlendingError: a number that is not finite, or an engine failed.
            ValueError: there are other numbers of frames or pixels.
        """
        shape = self._shape(frames)
        drawn = np.zeros(shape, np.float32) if noise is None else noise
        if drawn.shape != shape:
            raise ValueError(f"noise of {drawn.shape} for latents of {shape}")
        latents = self._whole(frames, drawn) if VAE_ENCODER in self.engines else self._stepwise(frames, drawn)
        if not np.isfinite(latents).all():
            raise FlowBlendingError(
                "The VAE encoder gave a number that is not finite; build the bundle with --precision vae_encoder=fp32."
            )
        return latents

    def _shape(self, frames: Frames) -> tuple[int, int, int, int, int]:
        count, height, width = frames.shape[:3] if frames.dtype == np.uint8 else frames.shape[2:]
        time, space = self.factors
        if (count - 1) % time or height % space or width % space:
            raise ValueError(f"{count} frames of {width}x{height} do not make whole latents")
        return 1, self.channels, (count - 1) // time + 1, height // space, width // space

    def _whole(self, frames: Frames, noise: Floats) -> Floats:
        engine = self.engines[VAE_ENCODER]
        tensors = {PIXELS: self.device.upload(_pixels(frames)), NOISE: self.device.upload(noise)}
        return self._called(engine, tensors)[0]

    def _stepwise(self, frames: Frames, noise: Floats) -> Floats:
        """The caches that one step gives are what the next one takes; pixels go up step by step."""
        time = self.factors[0]
        found: list[Floats] = []
        caches: dict[str, Tensor] = {}
        for index in range(noise.shape[2]):
            engine = self.engines[VAE_ENCODER_NEXT if index else VAE_ENCODER_FIRST]
            first = (index - 1) * time + 1 if index else 0
            taken = slice(first, first + (time if index else 1))
            inputs = {
                PIXELS: self.device.upload(_pixels(frames, taken)),
                NOISE: self.device.upload(np.ascontiguousarray(noise[:, :, index : index + 1])),
                **caches,
            }
            latents, caches = self._called(engine, inputs)
            found.append(latents)
        return np.concatenate(found, axis=2)

    def _called(self, engine: Engine, inputs: Mapping[str, Tensor]) -> tuple[Floats, dict[str, Tensor]]:
        """What an engine makes of its inputs: latents, and the caches by the names that the next step has for them."""
        sizes = engine.spec.sizes({name: tensor.shape for name, tensor in inputs.items()})
        outputs = {
            spec.name: self.device.empty(spec.resolve(sizes), np.dtype(spec.dtype)) for spec in engine.spec.outputs
        }
        with self.device.current():
            engine.run({**inputs, **outputs}, self.device.stream)
        latents: npt.NDArray[Any] = self.device.download(outputs[LATENTS])
        caches = {name.removesuffix(_NEXT): each for name, each in outputs.items() if name.endswith(_NEXT)}
        return latents, caches


def _pixels(frames: Frames, taken: slice = slice(None)) -> Floats:
    """Some of the frames, fp32 [1, 3, F, H, W] in [-1, 1]."""
    if frames.dtype == np.uint8:
        return pixels(np.asarray(frames[taken], np.uint8))
    return np.ascontiguousarray(frames[:, :, taken], np.float32)
