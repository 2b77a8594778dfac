"""The calls of a decoder's engines, for a whole video or for each of its tiles.

Everything that engines read is on the device before the first call, in one block; what they write lies in memory that
all tiles use one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import Precision
from flowblending.contracts.tiling import Tile
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import ALIGNMENT, Tensor
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.media.noise import Normal

LATENTS = "latents"
FRAMES = "frames"

_NEXT = "_next"
_FLOAT32 = np.dtype(np.float32)


class Blocks:
    """Memory by name, for tensors of which the largest that goes by a name comes first."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any] = _FLOAT32) -> Tensor:
        """A tensor over the memory of that name, which is taken if there is none, or too little."""
        size = math.prod(shape)
        block = self._blocks.get(name)
        if block is None or block.nbytes < size * dtype.itemsize:
            block = self._blocks[name] = self._device.empty((size,), dtype)
        return self._device.view(block, 0, shape)


class Calls(Protocol):
    """What decodes a video or a tile of it.

    Attributes:
        shape: of the whole video's frames, [1, 3, F, H, W].
        at_once: the most frames that come together.
        precision: that the engines were built in.
    """

    shape: tuple[int, ...]
    at_once: int
    precision: Precision

    def frames(self, tile: int) -> Iterator[Tensor]:
        """Enqueue a tile's decoding; frames float32 [1, 3, f, h, w] in order, each behind the calls that write it.

        They are to be used before the next ones are asked for, whose memory is the same.
        """
        ...


class WholeClip:
    """One engine for all latent frames.

    Args:
        latents: [1, C, F, H, W].
        tiles: of the video; one of the latents' size is all of it.
        conditioning, noise: see `Decoder`.
    """

    def __init__(
        self,
        engine: Engine,
        device: Device,
        latents: Tensor,
        tiles: Sequence[Tile],
        *,
        conditioning: DecodeConditioning,
        noise: Normal,
    ) -> None:
        self._engine = engine
        self._device = device
        self._blocks = Blocks(device)
        count, height, width = latents.shape[2:]
        self.shape = _frames_shape(engine, {"frames": count, "height": height, "width": width})
        self.precision = engine.spec.precision
        self.at_once = self.shape[2]
        whole = _is_whole(tiles, latents)
        clip = None if whole else device.download(latents)
        self._inputs: list[dict[str, Tensor]] = [{} for _ in tiles]
        scalars = {"timestep": conditioning.timestep, "noise_scale": conditioning.noise_scale}
        (shape,) = (spec.shape for spec in engine.spec.inputs if spec.name == LATENTS)
        for spec in engine.spec.inputs:
            if spec.name == LATENTS and clip is None:
                given = [latents]
            elif spec.name == LATENTS and clip is not None:
                given = packed(device, [_part(clip, tile) for tile in tiles])
            elif spec.name in scalars:
                given = [device.upload(np.full(spec.resolve({}), scalars[spec.name], np.float32))] * len(tiles)
            elif spec.shape == shape:
                # Every other input of a decoder is standard normal noise; this one's is of the video, as latents are.
                drawn = noise.normal(latents.shape)
                given = packed(device, [_part(drawn, tile) for tile in tiles])
            else:
                sizes = [{"frames": count, "height": tile.height, "width": tile.width} for tile in tiles]
                given = packed(device, [noise.normal(spec.resolve(each)) for each in sizes])
            for inputs, tensor in zip(self._inputs, given, strict=True):
                inputs[spec.name] = tensor

    def frames(self, tile: int) -> Iterator[Tensor]:
        """One call."""
        inputs, engine = self._inputs[tile], self._engine
        sizes = engine.spec.sizes({name: each.shape for name, each in inputs.items()})
        outputs = {spec.name: self._blocks.tensor(spec.name, spec.resolve(sizes)) for spec in engine.spec.outputs}
        with self._device.current():
            engine.run({**inputs, **outputs}, self._device.stream)
        yield outputs[FRAMES]


class Stepwise:
    """One step per latent frame, with caches between them: two sets that take turns.

    Args:
        first, following: engines of the first latent frame and of all later ones.
        latents: [1, C, F, H, W].
        tiles: of the video.
    """

    def __init__(
        self, first: Engine, following: Engine, device: Device, latents: Tensor, tiles: Sequence[Tile]
    ) -> None:
        self._first = first
        self._following = following
        self._device = device
        self._blocks = Blocks(device)
        clip = device.download(latents)
        self._count = clip.shape[2]
        whole, later = (
            _frames_shape(each, {"height": clip.shape[3], "width": clip.shape[4]}) for each in (first, following)
        )
        self.shape = (*whole[:2], whole[2] + (self._count - 1) * later[2], *whole[3:])
        self.precision = first.spec.precision
        self.at_once = max(whole[2], later[2]) if self._count > 1 else whole[2]
        # Every latent frame of every tile for itself.
        parts = [_part(clip, tile) for tile in tiles]
        slices = packed(device, [part[:, :, [index]] for part in parts for index in range(self._count)])
        self._slices = [slices[start : start + self._count] for start in range(0, len(slices), self._count)]

    def frames(self, tile: int) -> Iterator[Tensor]:
        """A step for each latent frame."""
        slices = self._slices[tile]
        calls = self._calls(slices[0].shape)
        for index, each in enumerate(slices):
            call = calls[index if index < 2 else 2 - index % 2]
            with self._device.current():
                call.engine.run({**call.tensors, LATENTS: each}, self._device.stream)
            yield call.tensors[FRAMES]

    def _calls(self, shape: tuple[int, ...]) -> list[_Call]:
        """The first step; and, if there are later ones, those that read one set of caches and write the other.

        Args:
            shape: of a latent frame.
        """
        outputs = self._outputs(self._first, {LATENTS: shape}, "first", "0")
        calls = [_Call(self._first, outputs)]
        if self._count > 1:
            before = _caches(outputs)
            shapes = {LATENTS: shape} | {name: each.shape for name, each in before.items()}
            outputs = self._outputs(self._following, shapes, "following", "1")
            after = _caches(outputs)
            written_back = {f"{name}{_NEXT}": tensor for name, tensor in before.items()}
            calls.append(_Call(self._following, {**before, **outputs}))
            calls.append(_Call(self._following, {**after, FRAMES: outputs[FRAMES], **written_back}))
        return calls

    def _outputs(
        self, engine: Engine, inputs: Mapping[str, tuple[int, ...]], frames: str, caches: str
    ) -> dict[str, Tensor]:
        """Memory for what an engine gives for inputs of such shapes, by what its frames and its caches are called."""
        sizes = engine.spec.sizes(inputs)
        return {
            spec.name: self._blocks.tensor(
                f"{spec.name} {frames if spec.name == FRAMES else caches}", spec.resolve(sizes), np.dtype(spec.dtype)
            )
            for spec in engine.spec.outputs
        }


@dataclass(frozen=True)
class _Call:
    """An engine and all tensors of a call but the latents."""

    engine: Engine
    tensors: Mapping[str, Tensor]


def packed(device: Device, arrays: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
    """Arrays of one type on the device, in one block, each where engines can take it."""
    size = arrays[0].itemsize
    rows = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT // size for array in arrays]
    starts = np.cumsum([0, *rows])
    block = np.zeros(starts[-1], arrays[0].dtype)
    for start, array in zip(starts, arrays, strict=False):
        block[start : start + array.size] = array.reshape(-1)
    uploaded = device.upload(block)
    return [device.view(uploaded, int(start), array.shape) for start, array in zip(starts[:-1], arrays, strict=True)]


def pixels_per_latent(engine: Engine) -> int:
    """Pixels that a latent pixel becomes in either direction."""
    return _frames_shape(engine, {"frames": 1, "height": 1, "width": 1})[-1]


def _part(clip: npt.NDArray[Any], tile: Tile) -> npt.NDArray[Any]:
    """A tile of latents [1, C, F, H, W], or of what is like them."""
    return clip[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]


def _is_whole(tiles: Sequence[Tile], latents: Tensor) -> bool:
    return len(tiles) == 1 and (tiles[0].height, tiles[0].width) == latents.shape[3:]


def _frames_shape(engine: Engine, sizes: Mapping[str, int]) -> tuple[int, ...]:
    (spec,) = (spec for spec in engine.spec.outputs if spec.name == FRAMES)
    return spec.resolve(sizes)


def _caches(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a step hands over to the next one, by the names that it has there."""
    return {name.removesuffix(_NEXT): tensor for name, tensor in outputs.items() if name.endswith(_NEXT)}
