"""Decoding in tiles against ``enable_tiling`` of the stock classes, for every family's way of decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan

from benchmarks.checkpoints import ltx_vae, wan_vae
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.contracts.tiling import Tile, Tiling
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.ltx.vae import vae_part
from flowblending.export.families.wan.vae import decoder_parts
from flowblending.export.graph.exportable import Exportable
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.media.decode import Decoder
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.memory.needs import decoding_bytes

Floats = npt.NDArray[np.float32]
TOLERANCE = 1e-5


class Sizes(FunctionEngine):
    """The stock modules, call by call, as an engine that remembers the latents' sizes."""

    def __init__(self, exportable: Exportable) -> None:
        super().__init__(exportable.spec, self._call)
        self._exportable = exportable
        self.seen: list[tuple[int, int]] = []

    def _call(self, arrays: Arrays) -> Arrays:
        given = [torch.from_numpy(arrays[spec.name].copy()) for spec in self.spec.inputs]
        self.seen.append((given[0].shape[3], given[0].shape[4]))
        with torch.no_grad():
            outputs = self._exportable.reference(*given)
        return {spec.name: each.numpy() for spec, each in zip(self.spec.outputs, outputs, strict=True)}


def wan(folder: Path) -> tuple[dict[str, Sizes], AutoencoderKLWan]:
    vae = wan_vae(3)
    with torch.no_grad():  # far beyond [-1, 1], where it matters whether tiles are blended before they are clamped
        vae.decoder.conv_out.weight *= 4
    vae.save_pretrained(folder / "vae")
    parts = decoder_parts(Checkpoint(folder=folder, pipeline="WanPipeline"))
    return {part.name: Sizes(part.load(Precision.FP32)) for part in parts}, vae


def ltx(version: str) -> Callable[[Path], tuple[dict[str, Sizes], AutoencoderKLLTXVideo]]:
    def make(folder: Path) -> tuple[dict[str, Sizes], AutoencoderKLLTXVideo]:
        vae = ltx_vae(3, version)
        vae.save_pretrained(folder / "vae")
        return {"vae": Sizes(vae_part(Checkpoint(folder=folder, pipeline="LTXPipeline")).load(Precision.FP32))}, vae

    return make


def stock(vae: Any, latents: Floats, tiling: Tiling | None, noise: TorchNormal) -> Floats:
    """What the pipelines do with the class at the end of a run."""
    if tiling is not None:
        vae.enable_tiling(
            tile_sample_min_height=tiling.height,
            tile_sample_min_width=tiling.width,
            tile_sample_stride_height=tiling.height - tiling.overlap,
            tile_sample_stride_width=tiling.width - tiling.overlap,
        )
    given = torch.from_numpy(latents)
    with torch.no_grad():
        if isinstance(vae, AutoencoderKLWan):
            mean, std = (
                torch.tensor(each).reshape(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std)
            )
            clip = vae.decode(given * std + mean, return_dict=False)[0]
        else:
            mean, std = (each.reshape(1, -1, 1, 1, 1) for each in (vae.latents_mean, vae.latents_std))
            given = given * std / vae.config.scaling_factor + mean
            timestep = None
            if vae.config.timestep_conditioning:
                given = (1 - 0.3) * given + 0.3 * torch.from_numpy(noise.normal(latents.shape))
                timestep = torch.tensor([0.05])
            clip = vae.decode(given, timestep, return_dict=False)[0]
    found: Floats = clip[0].numpy()
    return found


@pytest.mark.parametrize(
    ("make", "factor", "sizes"),
    [(wan, 8, (7, 9)), (wan, 8, (4, 9)), (wan, 8, (6, 4)), (ltx("0.9.0"), 32, (5, 6)), (ltx("0.9.5"), 32, (5, 4))],
    ids=["wan", "wan wide", "wan high", "ltx 0.9.0", "ltx 0.9.5"],
)
@pytest.mark.parametrize("overlap", [2, 1, 0])
def test_tiles_equal_diffusers(
    tmp_path: Path, make: Callable[[Path], Any], factor: int, sizes: tuple[int, int], overlap: int
) -> None:
    engines, vae = make(tmp_path)
    tiling = Tiling(width=4 * factor, height=4 * factor, overlap=overlap * factor)
    channels = next(iter(engines.values())).spec.inputs[0].shape[1]
    assert isinstance(channels, int)
    latents = np.random.default_rng(0).standard_normal((1, channels, 3, *sizes)).astype(np.float32)
    expected = stock(vae, latents, tiling, TorchNormal(5))
    conditioning = DecodeConditioning(timestep=0.05, noise_scale=0.3, tiling=tiling)
    decoder = Decoder(engines=engines, device=HostDevice(), conditioning=conditioning)
    (chunk,) = decoder.decode(Tensor.of(latents), TorchNormal(5), floats=True)
    found = chunk.frames.clip(-1, 1) if make is wan else chunk.frames
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * max(1.0, float(np.abs(expected).max()))
    rows, columns = tiling.rows(sizes[0], factor), tiling.columns(sizes[1], factor)
    seen = {size for engine in engines.values() for size in engine.seen}
    assert seen == {(row.length, column.length) for row in rows for column in columns}
    if make is wan and sizes == (7, 9):
        without = stock(AutoencoderKLWan.from_pretrained(tmp_path / "vae"), latents, None, TorchNormal(5))
        assert np.abs(without - expected).max() > 100 * TOLERANCE


def test_a_video_no_larger_than_a_tile_has_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    engines, _ = wan(tmp_path)
    latents = np.random.default_rng(0).standard_normal((1, 16, 2, 4, 5)).astype(np.float32)
    found = []
    for tiling in (None, Tiling(width=40, height=32, overlap=16)):
        decoder = Decoder(engines=engines, device=HostDevice(), conditioning=DecodeConditioning(tiling=tiling))
        found.append([each.images for each in decoder.decode(Tensor.of(latents), TorchNormal(0))])
    assert [len(each) for each in found[1]] == [1, 4]  # as they come
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pixel_that_is_not_finite_is_found_in_any_tile(tmp_path: Path) -> None:
    engines, _ = wan(tmp_path)
    latents = np.zeros((1, 16, 2, 4, 9), np.float32)
    latents[0, 0, 1, 3, 8] = np.nan
    tiling = Tiling(width=32, height=32, overlap=16)
    decoder = Decoder(engines=engines, device=HostDevice(), conditioning=DecodeConditioning(tiling=tiling))
    with np.errstate(invalid="ignore"), pytest.raises(FlowBlendingError, match="non-finite pixel from frame 1 on"):
        next(decoder.decode(Tensor.of(latents), TorchNormal(0)))


class Taken(HostDevice):
    """A CPU that adds up what it is asked for, in blocks as a GPU's memory is."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        return self._counted(super().empty(shape, dtype))

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return self._counted(super().upload(array))

    def _counted(self, tensor: Tensor) -> Tensor:
        self.bytes += -(-tensor.nbytes // 512) * 512
        return tensor


@pytest.mark.parametrize(("make", "factor"), [(wan, 8), (ltx("0.9.5"), 32)], ids=["wan", "ltx"])
@pytest.mark.parametrize("tiling", [None, (4, 2), (4, 0)])
def test_decoding_takes_what_the_memory_plan_says(
    tmp_path: Path, make: Callable[[Path], Any], factor: int, tiling: tuple[int, int] | None
) -> None:
    engines, _ = make(tmp_path)
    size, overlap = tiling or (1, 0)
    asked = Tiling(width=size * factor, height=size * factor, overlap=overlap * factor) if tiling else None
    shape = (next(iter(engines.values())).spec.inputs[0].shape[1], 3, 7, 9)
    device = Taken()
    decoder = Decoder(engines=engines, device=device, conditioning=DecodeConditioning(tiling=asked))
    list(decoder.decode(Tensor.of(np.zeros((1, *shape), np.float32)), TorchNormal(0)))
    temporal = 4 if make is wan else 8
    manifest = SimpleNamespace(
        components={name: SimpleNamespace(spec=engine.spec) for name, engine in engines.items()},
        pipeline=SimpleNamespace(spatial_factor=factor, temporal_factor=temporal),
    )
    tiles = list(asked.tiles(7, 9, factor)) if asked else [Tile(0, 0, 0, 0, 7, 9)]
    planned = decoding_bytes(manifest, list(engines), shape, tiles, asked)  # type: ignore[arg-type] # as much as it reads
    assert 0.9 * planned < device.bytes <= planned


def test_memory_does_not_grow_with_the_tiles(tmp_path: Path) -> None:
    """Engines are given the same memory for every tile, and all caches are one tile's."""
    engines, _ = wan(tmp_path)
    seen: list[Mapping[str, Tensor]] = []
    for engine in engines.values():
        run = engine.run

        def spy(tensors: Mapping[str, Tensor], stream: int, run: Callable[..., None] = run) -> None:
            seen.append(tensors)
            run(tensors, stream)

        engine.run = spy  # type: ignore[method-assign] # what it is given is looked at
    latents = np.zeros((1, 16, 3, 8, 8), np.float32)
    tiling = Tiling(width=32, height=32, overlap=16)
    decoder = Decoder(engines=engines, device=HostDevice(), conditioning=DecodeConditioning(tiling=tiling))
    list(decoder.decode(Tensor.of(latents), TorchNormal(0)))
    addresses = {tensors["cache_00_next"].address for tensors in seen}
    assert len(seen) == 3 * 16
    assert len(addresses) == 2
