"""Which sizes a component's engine takes: what its build has kept, else what builds before that compiled for."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending.contracts.manifest import CompiledProfile, Manifest
from flowblending.engine.backends.backend import PlanInfo
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.bundle.geometry import shape_profiles


def compiled_profiles(profiles: Sequence[ShapeProfile], plan: PlanInfo | None) -> tuple[CompiledProfile, ...]:
    """What a manifest keeps of a plan's profiles; none of an engine that is no plan."""
    if plan is None:
        return ()
    scratch = plan.profile_scratch or (None,) * len(profiles)
    return tuple(
        CompiledProfile(
            sizes={name: (size.min, size.opt, size.max) for name, size in each.symbols.items()}, scratch_bytes=taken
        )
        for each, taken in zip(profiles, scratch, strict=True)
    )


def component_profiles(manifest: Manifest, name: str) -> tuple[ShapeProfile, ...]:
    """The sizes that a component of a bundle was built for."""
    kept = manifest.components[name].profiles
    if not kept:
        tiling = manifest.vae_tiling
        return shape_profiles(name, manifest.pipeline, manifest.profiles, any_size=True, tiling=tiling)
    return tuple(
        ShapeProfile({symbol: Range(min=low, opt=usual, max=high) for symbol, (low, usual, high) in each.sizes.items()})
        for each in kept
    )


def most_latents(manifest: Manifest, name: str) -> int:
    """How many latents one call of a transformer takes."""
    return max(each.symbols["batch"].max for each in component_profiles(manifest, name))
