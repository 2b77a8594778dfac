"""How a video is decoded: what a timestep-conditioned VAE decoder is told, and in which tiles.

It is told a timestep, and how much noise its latents get before.

LTX-Video's decoders from 0.9.1 on do the last denoising step themselves. diffusers' pipelines call it
``decode_timestep`` and ``decode_noise_scale``.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowblending import UsageError
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class DecodeConditioning:
    """Of one video.

    Attributes:
        timestep: in [0, 1].
        noise_scale: s in [0, 1]: the decoder sees (1 - s) * latents + s * noise.
        tiling: the tiles; None for whole frames.
    """

    timestep: float = 0.0
    noise_scale: float = 0.0
    tiling: Tiling | None = None


def decode_conditioning(
    pipeline: PipelineSpec,
    timestep: float | None = None,
    noise_scale: float | None = None,
    *,
    tiling: Tiling | None = None,
) -> DecodeConditioning:
    """What a bundle's decoder is told; of timestep and noise, nothing matters to one that is not conditioned.

    Args:
        pipeline: the bundle's defaults. Where there is a timestep but no noise scale, that is the timestep, as in
            diffusers.
        timestep: in place of the bundle's.
        noise_scale: likewise.
        tiling: see `flowblending.engine.bundle.vae_tiling.choose_tiling`.

    Raises:
        UsageError: one was given for a decoder that takes neither, or lies outside of [0, 1].
    """
    given = {"decode timestep": timestep, "decode noise scale": noise_scale}
    for name, value in given.items():
        if value is None:
            continue
        if pipeline.decode_timestep is None:
            raise UsageError(
                f"A {name} was given, but this bundle's VAE decoder takes neither a timestep nor noise; leave it out."
            )
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"The {name} is {value}, but a number from 0 to 1 was expected; give one such as 0.05.")
    if pipeline.decode_timestep is None:
        return DecodeConditioning(tiling=tiling)
    told = pipeline.decode_timestep if timestep is None else timestep
    scales = (noise_scale, pipeline.decode_noise_scale, told)
    scale = next(each for each in scales if each is not None)
    return DecodeConditioning(timestep=told, noise_scale=scale, tiling=tiling)
