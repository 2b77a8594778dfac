"""From latents to frames: one engine for the whole clip, or one step per latent frame with a cache between.

Which of the two follows from the components that the bundle has. Frames leave as soon as they are decoded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.refusals import non_finite_pixel

Frames = npt.NDArray[np.float32]

LATENTS = "latents"
FRAMES = "frames"


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

    def decode(self, latents: Tensor, noise: TorchNormal) -> Generator[Frames, None, None]:
        """Chunks of frames, float32 [3, f, height, width] in [-1, 1], in order; all of them are finite.

        Args:
            latents: the sampler's result.
            noise: the generator that the initial latents were drawn from; a timestep-conditioned
                decoder draws its own noise next, as the reference pipeline does.

        Raises:
            FlowBlendingError: a pixel is not finite, or an engine failed.
        """
        if VAE in self.engines:
            yield self._whole(latents, noise)
        else:
            yield from self._stepwise(latents)

    def _whole(self, latents: Tensor, noise: TorchNormal) -> Frames:
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
        tensors |= self._outputs(engine, tensors)
        with self.device.current():
            engine.run(tensors, self.device.stream)
        return self._frames(engine, tensors, 0)

    def _stepwise(self, latents: Tensor) -> Generator[Frames, None, None]:
        clip = self.device.download(latents)
        first = 0
        caches: dict[str, Tensor] = {}
        spare: dict[str, Tensor] = {}
        for index in range(clip.shape[2]):
            engine = self.engines[VAE_NEXT if index else VAE_FIRST]
            tensors = {LATENTS: self.device.upload(np.ascontiguousarray(clip[:, :, index : index + 1])), **caches}
            # Two sets of caches take turns: a step reads one and writes the other.
            outputs = self._outputs(engine, tensors, spare)
            with self.device.current():
                engine.run(tensors | outputs, self.device.stream)
            frames = self._frames(engine, outputs, first)
            first += frames.shape[1]
            yield frames
            spare = {f"{name}_next": tensor for name, tensor in caches.items()}
            caches = {name.removesuffix("_next"): outputs[name] for name in outputs if name.endswith("_next")}

    def _outputs(
        self, engine: Engine, inputs: Mapping[str, Tensor], reuse: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        sizes = engine.spec.sizes({name: tensor.shape for name, tensor in inputs.items()})
        return {
            spec.name: (reuse or {}).get(spec.name) or self.device.empty(spec.resolve(sizes), np.dtype(spec.dtype))
            for spec in engine.spec.outputs
        }

    def _frames(self, engine: Engine, outputs: Mapping[str, Tensor], first: int) -> Frames:
        """The frames that an engine gave, of which the first has this number in the video, from 0 on."""
        frames: Frames = self.device.download(outputs[FRAMES])[0]
        if not np.isfinite(frames).all():
            raise FlowBlendingError(non_finite_pixel(engine.spec.precision, frame=first + 1))
        return frames
