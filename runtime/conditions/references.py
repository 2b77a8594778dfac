"""Reference images as latent frames before the video's own, which are made with it and cut off: Wan VACE's.

Source: ``__call__`` of diffusers' pipeline_wan_vace.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from flowblending.contracts.program import Program
from flowblending.runtime.conditions.held import Encode, Floats
from flowblending.runtime.media.noise import Normal


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """What reference images make of a program.

    Attributes:
        program: with a latent frame for each.
    """

    program: Program

    @property
    def extra(self) -> int:
        """How many there are."""
        return self.program.extra

    @property
    def times(self) -> None:
        """Such models are told no times of latent frames."""
        return

    def make(self, given: Floats | None, noise: Normal, encode: Encode) -> tuple[Floats, dict[str, Floats]]:  # noqa: ARG002 - Held
        """Initial latents [1, C, F, H, W] of the program; it has no given slots.

        Args:
            given: the noise of the video's own latent frames; None draws it, and that of the others before it.
            noise: to draw from.
            encode: not needed: what is encoded of reference images is an input.
        """
        channels, frames, height, width = self.program.latent_shape
        if given is None:
            return noise.normal((1, channels, frames, height, width)), {}
        before = noise.normal((1, channels, self.extra, height, width))
        return np.concatenate([before, given], axis=2), {}

    def own(self, latents: Floats) -> Floats:
        """The video's latent frames of a result."""
        return np.ascontiguousarray(latents[:, :, self.extra :])


def with_references(program: Program, count: int) -> Program:
    """A program with so many latent frames before the video's own."""
    channels, frames, height, width = program.latent_shape
    return dataclasses.replace(program, latent_shape=(channels, frames + count, height, width), extra=count)
