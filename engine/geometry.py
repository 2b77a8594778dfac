"""From pixels and frames to latents: which sizes a family can make, and the nearest ones when it cannot."""

from __future__ import annotations

import re

from flowblending import UsageError
from flowblending.engine.manifest import Geometry
from flowblending.engine.protocol import Range, ShapeProfile
from flowblending.export.spec import LARGE, SMALL, PipelineSpec


def plan_geometry(pipeline: PipelineSpec, size: str | None, frames: int | None) -> Geometry:
    """The geometry for a requested size (``WIDTHxHEIGHT``) and frame count; None takes the family's default.

    Raises:
        UsageError: a size that the VAE and the transformer's patches do not divide, or frames other
            than ``temporal_factor * k + 1``. The message names the nearest sizes that work.
    """
    width, height = (pipeline.width, pipeline.height) if size is None else _parse_size(size)
    frames = pipeline.frames if frames is None else frames
    steps = (pipeline.spatial_factor * pipeline.patch[2], pipeline.spatial_factor * pipeline.patch[1])
    if width < 1 or height < 1 or width % steps[0] or height % steps[1]:
        near = f"{_nearest(width, steps[0])}x{_nearest(height, steps[1])}"
        raise UsageError(
            f"Size {width}x{height} was given, but {pipeline.family} needs a width divisible by {steps[0]} "
            f"and a height divisible by {steps[1]}; try --size {near}."
        )
    factor = pipeline.temporal_factor
    if frames < 1 or (frames - 1) % factor:
        raise UsageError(
            f"{frames} frames were given, but {pipeline.family} makes {factor}k+1 frames; "
            f"try --frames {max(0, round((frames - 1) / factor)) * factor + 1}."
        )
    return Geometry(
        width=width,
        height=height,
        frames=frames,
        latent_shape=(
            pipeline.latent_channels,
            (frames - 1) // factor + 1,
            height // pipeline.spatial_factor,
            width // pipeline.spatial_factor,
        ),
    )


def profile_of(component: str, pipeline: PipelineSpec, geometry: Geometry) -> ShapeProfile:
    """The sizes a component is compiled for: one geometry; transformers take one latent or both guidance branches."""
    one = Range.fixed(1)
    pair = Range(min=1, opt=2 if pipeline.batched_guidance else 1, max=2)
    _, frames, height, width = geometry.latent_shape
    sizes = {"frames": Range.fixed(frames), "height": Range.fixed(height), "width": Range.fixed(width)}
    return ShapeProfile({"batch": pair if component in (LARGE, SMALL) else one} | sizes)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise UsageError(f"Size {text!r} was given, but WIDTHxHEIGHT in pixels was expected; try --size 832x480.")
    return int(match[1]), int(match[2])


def _nearest(value: int, step: int) -> int:
    return max(1, round(value / step)) * step
