"""What a run takes of memory, from a bundle's manifest and the run's program, without opening anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flowblending.contracts.graph import (
    DECODERS,
    ENCODERS,
    TEXT_ENCODER,
    VAE,
    VAE_FIRST,
    VAE_NEXT,
    GraphSpec,
    TensorSpec,
    streams_weights,
)
from flowblending.contracts.manifest import Component, Manifest
from flowblending.contracts.program import Program, Run
from flowblending.contracts.tiling import Tile, Tiling
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.backends.tensor import ALIGNMENT
from flowblending.runtime.devices.pictures import pictures_bytes
from flowblending.runtime.memory.plan import EngineMemory, RunMemory

_BLOCK = 512
"""What device memory is handed out in multiples of."""


def run_memory(
    manifest: Manifest,
    program: Program,
    *,
    texts: int,
    decode: bool,
    tiling: Tiling | None = None,
    frames: bool = False,
) -> RunMemory:
    """What a run takes.

    Args:
        manifest: of the bundle.
        program: of the run.
        texts: that are encoded; embeddings that are given take memory before the run.
        decode: whether frames are wanted.
        tiling: the tiles that they are decoded in; None for whole frames.
        frames: whether images or videos are encoded.
    """
    stages = _stages(program)
    frame_encoders = tuple(name for name in ENCODERS if name in manifest.components) if frames else ()
    encoders = (TEXT_ENCODER,) if texts else ()
    decoders = tuple(name for name in DECODERS if name in manifest.components) if decode else ()
    sizes = dict(zip(("frames", "height", "width"), program.latent_shape[1:], strict=True))
    branches: dict[str, int] = {}
    for each in program.instructions():
        if isinstance(each, Run):
            branches[each.model] = max(branches.get(each.model, 1), len(each.branches))
    tiles = _tiles(manifest, program.latent_shape, tiling)
    tile = {"height": tiles[0].height, "width": tiles[0].width}
    engines = {
        name: _engine(name, component, {**sizes, "batch": branches.get(name, 1), **(tile if name in DECODERS else {})})
        for name, component in manifest.components.items()
    }
    most = max(branches.values(), default=1)
    # Models that take the same condition take the same memory.
    conditions = {
        spec.name: spec for name in stages for spec in manifest.components[name].spec.inputs if spec.name not in _GIVEN
    }.values()
    branch = _bytes((*conditions, *manifest.components[TEXT_ENCODER].spec.inputs), {**sizes, "batch": 1})
    latents = _rounded(math.prod(program.latent_shape) * 4)
    timesteps = 2 * len(program.steps) * _BLOCK
    return RunMemory(
        engines=engines,
        encoders=encoders,
        stages=stages,
        decoders=decoders,
        # Of each text; where several branches run in one call, side by side once more.
        conditions=texts * branch + (_bytes(conditions, {**sizes, "batch": most}) if most > 1 else 0),
        # Beside the slots: the copy that a run starts from, one for each branch of a call, and aligned velocities.
        slots=(len(program.slots()) + 2 * most) * latents + timesteps,
        decoding=latents + decoding_bytes(manifest, decoders, program.latent_shape, tiles, tiling),
        frame_encoders=frame_encoders,
        framing=framing_bytes(manifest, frame_encoders, sizes),
    )


def text_memory(manifest: Manifest) -> RunMemory:
    """What encoding a text takes by itself."""
    component = manifest.components[TEXT_ENCODER]
    spec, one = component.spec, {"batch": 1}
    engines = {name: _engine(name, each, one) for name, each in manifest.components.items()}
    return RunMemory(
        engines=engines,
        encoders=(TEXT_ENCODER,),
        stages=(),
        decoders=(),
        conditions=_bytes((*spec.inputs, *spec.outputs), one),
        slots=0,
        decoding=0,
    )


def decode_memory(manifest: Manifest, latent_shape: Sequence[int], tiling: Tiling | None) -> RunMemory:
    """What decoding latents takes by itself.

    Args:
        latent_shape: [C, F, H, W].
        tiling: the tiles to decode in; None for whole frames.
    """
    decoders = tuple(name for name in DECODERS if name in manifest.components)
    tiles = _tiles(manifest, latent_shape, tiling)
    sizes = {"frames": latent_shape[1], "height": tiles[0].height, "width": tiles[0].width, "batch": 1}
    latents = _rounded(math.prod(latent_shape) * 4)
    return RunMemory(
        engines={name: _engine(name, each, sizes) for name, each in manifest.components.items()},
        encoders=(),
        stages=(),
        decoders=decoders,
        conditions=0,
        slots=0,
        decoding=latents + decoding_bytes(manifest, decoders, latent_shape, tiles, tiling),
    )


_GIVEN = frozenset({"latents", "timestep"})


def _stages(program: Program) -> tuple[str, ...]:
    """The model of every stage: of steps that follow one another with the same."""
    found: list[str] = []
    for step in program.steps:
        if found[-1:] != [step.model]:
            found.append(step.model)
    return tuple(found)


def _engine(name: str, component: Component, sizes: Mapping[str, int]) -> EngineMemory:
    """What an engine takes; of scratch memory what its narrowest profile does that holds a call of these sizes."""
    weights = component.engine_bytes if component.weights_bytes is None else component.weights_bytes
    stated = [each.scratch_bytes for each in component.profiles if each.holds(sizes)]
    known = [each for each in stated if each is not None]
    scratch = min(known) if stated and len(known) == len(stated) else None
    if "batch" in sizes and sizes["batch"] > 1 and scratch is not None:
        single = [each.scratch_bytes or 0 for each in component.profiles if each.holds({**sizes, "batch": 1})]
        scratch = max(scratch, min(single, default=0))
    able = BACKENDS.get(component.backend).weight_streaming and streams_weights(name)
    return EngineMemory(
        name=name, weights=weights, scratch=scratch, streams=component.weight_streaming if able else None
    )


def _tiles(manifest: Manifest, latent_shape: Sequence[int], tiling: Tiling | None) -> list[Tile]:
    """The tiles of a video, the largest first; one of all of it where it is not divided."""
    _, _, height, width = latent_shape
    factor = manifest.pipeline.spatial_factor
    if tiling is None or not tiling.divides(height, width, factor):
        return [Tile(0, 0, 0, 0, height, width)]
    return list(tiling.tiles(height, width, factor))


def decoding_bytes(
    manifest: Manifest,
    decoders: Sequence[str],
    latent_shape: Sequence[int],
    tiles: Sequence[Tile],
    tiling: Tiling | None,
) -> int:
    """What decoders take and give, pictures among it."""
    channels, frames, _, _ = latent_shape
    specs = {name: manifest.components[name].spec for name in decoders}
    sizes = [{"frames": frames, "height": tile.height, "width": tile.width, "batch": 1} for tile in tiles]
    largest = sizes[0]
    if VAE in specs:
        spec = specs[VAE]
        total = sum(_bytes(spec.inputs, each) for each in sizes) + _bytes(spec.outputs, largest)
        pictures = _pictures(spec, largest)
    elif VAE_FIRST in specs:
        rows = sum(-(-channels * tile.height * tile.width * 4 // ALIGNMENT) * ALIGNMENT for tile in tiles)
        called = [specs[name] for name in (VAE_FIRST, VAE_NEXT)[: min(frames, 2)]]
        total = _rounded(frames * rows) + sum(_bytes(spec.outputs, largest) for spec in called)
        pictures = sum(_pictures(spec, largest) for spec in called)
    else:
        return 0
    return total + (
        pictures if tiling is None or len(tiles) == 1 else _assembled(manifest, latent_shape, tiles, tiling)
    )


def framing_bytes(manifest: Manifest, encoders: Sequence[str], sizes: Mapping[str, int]) -> int:
    """What encoders of frames take and give; where they go step by step, of the largest step.

    Args:
        sizes: of the video's latents.
    """
    steps = [manifest.components[name].spec for name in encoders]
    return max((_bytes((*spec.inputs, *spec.outputs), {**sizes, "batch": 1}) for spec in steps), default=0)


def _assembled(manifest: Manifest, latent_shape: Sequence[int], tiles: Sequence[Tile], tiling: Tiling) -> int:
    """The video in float32 and its pictures, and what tiles share with those of two rows and with two neighbours."""
    factor = manifest.pipeline.spatial_factor
    _, frames, height, width = latent_shape
    count = (frames - 1) * manifest.pipeline.temporal_factor + 1
    video = 3 * count * height * width * factor**2
    row = sum(tile.width for tile in tiles if tile.row == 0) * factor
    shared = 2 * 3 * count * tiling.overlap * (row + tiles[0].height * factor) * 4
    return 4 * video + pictures_bytes((video,)) + shared + (2 * len(tiles) + 4) * _BLOCK


def _pictures(spec: GraphSpec, sizes: Mapping[str, int]) -> int:
    """Of the frames, which are the only output without a cache's name."""
    frames = [each for each in spec.outputs if each.name == "frames"]
    return sum(_rounded(pictures_bytes(each.resolve(sizes))) for each in frames)


def _bytes(specs: Iterable[TensorSpec], sizes: Mapping[str, int]) -> int:
    return sum(_rounded(math.prod(each.resolve(sizes)) * np.dtype(each.dtype).itemsize) for each in specs)


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
