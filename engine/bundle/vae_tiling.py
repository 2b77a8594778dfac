"""Tiles as options say them, and which of them a bundle's decoder takes."""

from __future__ import annotations

import re
from typing import Final

from flowblending import UsageError
from flowblending.contracts.graph import DECODERS, PipelineSpec
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.protocol import ShapeProfile
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.bundle.geometry import shape_profiles
from flowblending.engine.bundle.plan_profiles import component_profiles

AUTO: Final = "auto"
OFF: Final = "off"
OVERLAP: Final = 64
"""Pixels, unless told otherwise; as in diffusers, of Wan and of LTX-Video."""

_TILES = re.compile(r"([0-9]{1,5})[xX]([0-9]{1,5})(?:\+([0-9]{1,5}))?")
_EXAMPLE = "256x256+64"
_SIZES = (512, 384, 256)
"""Pixels, of tiles that nobody has asked for: the larger, the nearer to whole frames."""


def read_tiling(text: str, pipeline: PipelineSpec) -> Tiling:
    """Read ``256x256+64``, or ``256x256`` for the usual overlap.

    Raises:
        UsageError: it is something else, or no tile of a decoder of this family.
    """
    match = _TILES.fullmatch(text.strip())
    if match is None:
        shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
        raise UsageError(
            f"The VAE tiling {shown} was given, but WIDTHxHEIGHT of a tile in pixels, or WIDTHxHEIGHT+OVERLAP, was "
            f"expected; give {_EXAMPLE}, for example."
        )
    factor = pipeline.spatial_factor
    width, height = int(match[1]), int(match[2])
    most = min(width, height) // 2 // factor * factor
    overlap = min(OVERLAP // factor * factor, most) if match[3] is None else int(match[3])
    if min(width, height) < factor or width % factor or height % factor or overlap % factor or overlap > most:
        near = [max(2 * factor, round(each / factor) * factor) for each in (width, height)]
        shared = min(round(overlap / factor) * factor, min(near) // 2 // factor * factor)
        raise UsageError(
            f"Tiles of {width}x{height} pixels with an overlap of {overlap} were asked for, but {pipeline.family} "
            f"needs multiples of {factor}, and an overlap of at most half of a tile; try {near[0]}x{near[1]}+{shared}."
        )
    return Tiling(width=width, height=height, overlap=overlap)


def choose_tiling(manifest: Manifest, choice: str) -> Tiling | None:
    """The tiles that a bundle's videos are decoded in; None for none.

    Args:
        manifest: of the bundle.
        choice: ``auto`` for what it was built for, ``off``, or tiles.

    Raises:
        UsageError: it is none of these, or the decoder was compiled for other sizes.
    """
    word, built = choice.strip().lower(), manifest.vae_tiling
    if word == AUTO:
        return built
    tiling = None if word == OFF else read_tiling(choice, manifest.pipeline)
    if tiling == built or all(_takes(manifest, name, tiling) for name in DECODERS if name in manifest.components):
        return tiling
    asked = "No tiles" if tiling is None else f"Tiles of {tiling}"
    compiled = "whole frames" if built is None else f"tiles of {built}"
    rebuild = "--vae-tiling off" if tiling is None else f"--vae-tiling {tiling}"
    raise UsageError(
        f"{asked} were asked for, but this bundle's VAE decoder was compiled for {compiled}; leave the option out, or "
        f"build the bundle with {rebuild}."
    )


def other_tilings(manifest: Manifest, choice: str) -> tuple[Tiling, ...]:
    """The tiles to decode in where whole frames do not fit, the largest first.

    Args:
        manifest: of the bundle.
        choice: as in `choose_tiling`; what was chosen stays, and so does what the bundle was built for.
    """
    if choice.strip().lower() != AUTO or manifest.vae_tiling is not None:
        return ()
    tilings = [read_tiling(f"{size}x{size}", manifest.pipeline) for size in _SIZES]
    decoders = [name for name in DECODERS if name in manifest.components]
    return tuple(each for each in tilings if all(_takes(manifest, name, each) for name in decoders))


def _takes(manifest: Manifest, component: str, tiling: Tiling | None) -> bool:
    """Whether a decoder's engine takes such tiles of all videos."""
    if BACKENDS.get(manifest.components[component].backend).any_size:
        return True
    compiled = component_profiles(manifest, component)
    wanted = shape_profiles(component, manifest.pipeline, manifest.profiles, tiling=tiling)
    return all(any(_holds(has, each) for has in compiled) for each in wanted)


def _holds(has: ShapeProfile, wanted: ShapeProfile) -> bool:
    pairs = ((has.symbols[name], each) for name, each in wanted.symbols.items())
    return all(large.min <= small.min and small.max <= large.max for large, small in pairs)
