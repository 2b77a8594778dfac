"""From latents to frames: one engine for the whole clip, or one step per latent frame with a cache between.

Which of the two follows from the components that the bundle has. Frames leave as soon as they are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import VAE, VAE_FIRST, VAE_NEXT
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.noise import TorchNormal

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

    def decode(self, latents: Tensor, noise: TorchNormal) -> Iterator[Frames]:
        """Chunks of frames, float32 [3, f, height, width] in [-1, 1], in order.

        Args:
            latents: the sampler's result.
            noise: the generator that the initial latents were drawn from; a timestep-conditioned
                decoder draws its own noise next, as the reference pipeline does.
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
        engine.run(tensors, self.device.stream)
        return self._frames(tensors)

    def _stepwise(self, latents: Tensor) -> Iterator[Frames]:
        clip = self.device.download(latents)
        caches: dict[str, Tensor] = {}
        spare: dict[str, Tensor] = {}
        for index in range(clip.shape[2]):
            engine = self.engines[VAE_NEXT if index else VAE_FIRST]
            tensors = {LATENTS: self.device.upload(np.ascontiguousarray(clip[:, :, index : index + 1])), **caches}
            # Two sets of caches take turns: a step reads one and writes the other.
            outputs = self._outputs(engine, tensors, spare)
            engine.run(tensors | outputs, self.device.stream)
            yield self._frames(outputs)
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

    def _frames(self, tensors: Mapping[str, Tensor]) -> Frames:
        frames: Frames = self.device.download(tensors[FRAMES])[0]
        return frames
