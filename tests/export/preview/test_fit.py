"""The map of a VAE that is linear is known; that of the trained one is measured on clips that it has not seen."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.schedules.run import CHECKPOINTS
from benchmarks.shapes import data
from flowblending import FlowBlendingError
from flowblending.contracts.graph import (
    VAE,
    VAE_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    VAE_FIRST,
    VAE_NEXT,
    GraphSpec,
    PipelineSpec,
    Precision,
    TensorSpec,
)
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.registry import family_of
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.preview.fit import averaged, cells, explained, fit_preview
from flowblending.export.preview.pictures import clip
from flowblending.runtime.media.preview import PreviewMap
from tests.support.manifests import PIPELINE

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _all_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowblending.export.preview.pictures.LATENTS", 1536)


def test_a_clip_has_edges_and_moves_and_is_the_same_again() -> None:
    made, again = (clip(np.random.default_rng(3), 5, 64, 96) for _ in range(2))
    np.testing.assert_array_equal(made, again)
    assert made.shape == (3, 5, 64, 96)
    assert made.dtype == np.float32
    several = np.stack([clip(np.random.default_rng(seed), 5, 64, 64) for seed in range(12)])
    assert np.abs(several).max() <= 1
    assert several.std() > 0.3
    assert np.abs(np.diff(several, axis=-1)).max() > 0.8  # an edge
    assert (np.abs(np.diff(several, axis=2)).max(axis=(1, 2, 3, 4)) > 0).sum() > 6  # most of them move


class Linear:
    """A VAE whose latents are a rotation of the means of 8x8 pixels, of 2x2 of them where it compresses 16 times."""

    def __init__(self, factor: int, offset: float = 0.25) -> None:
        self.side, self.factor, self.offset = factor // 8, factor, offset
        count = 3 * self.side**2
        self.rotation, _ = torch.linalg.qr(torch.randn(count, count, generator=torch.Generator().manual_seed(0)))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """A latent frame for frames [1, 3, F, H, W]."""
        means = torch.nn.functional.avg_pool2d(pixels.mean(dim=2), 8)
        cells = torch.nn.functional.pixel_unshuffle(means, self.side)
        return torch.einsum("ij,bjhw->bihw", self.rotation, cells)[:, :, None] - self.offset

    def decode(self, latents: torch.Tensor, frames: int) -> torch.Tensor:
        cells = torch.einsum("ji,bjhw->bihw", self.rotation, latents[:, :, 0] + self.offset)
        means = torch.nn.functional.pixel_shuffle(cells, self.side)
        return means.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, None].repeat(1, 1, frames, 1, 1)

    def call(self, name: str, *given: torch.Tensor) -> Tensors:
        values = given[0]
        if name == VAE_ENCODER:
            return (torch.cat([self.encode(values[:, :, :1]), self.encode(values[:, :, 1:])], dim=2),)
        if name == VAE:
            assert not any(each.any() for each in given[1:]), "no noise"
            return (torch.cat([self.decode(values[:, :, :1], 1), self.decode(values[:, :, 1:], 4)], dim=2),)
        assert (len(given) > (2 if name.startswith("vae_encoder") else 1)) == name.endswith("next"), "caches"
        if name.startswith("vae_encoder"):
            return self.encode(values), torch.zeros(1)
        return self.decode(values, 1 if name == VAE_FIRST else 4), torch.zeros(1)

    def parts(self, *names: str) -> tuple[Part, ...]:
        def load(name: str, precision: Precision) -> Exportable:
            shape = (1, 3 * self.side**2, "frames", "height", "width")
            inputs = [TensorSpec(name=each, dtype="float32", shape=shape) for each in ("latents", "noise")]
            spec = GraphSpec(name=name, precision=precision, inputs=tuple(inputs), outputs=())
            nothing: Any = None
            return Exportable(
                spec=spec,
                module=nothing,
                reference=partial(self.call, name),
                inputs=nothing,
                export_sizes={},
                verify_sizes=(),
            )

        return tuple(Part(name=name, sources=(), load=partial(load, name), revision="1") for name in names)


def pipeline(factor: int) -> PipelineSpec:
    channels = 3 * (factor // 8) ** 2
    return dataclasses.replace(PIPELINE, latent_channels=channels, temporal_factor=4, spatial_factor=factor)


@pytest.mark.parametrize(
    ("factor", "encoder", "decoder"),
    [(8, (VAE_ENCODER_FIRST, VAE_ENCODER_NEXT), (VAE_FIRST, VAE_NEXT)), (16, (VAE_ENCODER,), (VAE,))],
)
def test_of_a_linear_vae_it_is_its_decoder(factor: int, encoder: tuple[str, ...], decoder: tuple[str, ...]) -> None:
    vae = Linear(factor)
    said: list[str] = []
    fit = fit_preview(pipeline(factor), vae.parts(*encoder), vae.parts(*decoder), said.append)
    assert said == ["encoding clips", "decoding clips"]
    assert fit.explained > 0.998
    assert fit.matrix.dtype == np.float32
    assert fit.matrix.shape == (vae.rotation.shape[0] + 1, vae.rotation.shape[0])
    # Its pictures are the means of the clip's pixels.
    pixels = torch.from_numpy(clip(np.random.default_rng(99), 1, 64, 128))[None]
    picture = PreviewMap(fit.matrix).picture(vae.encode(pixels)[0, :, 0].numpy())
    expected = torch.nn.functional.avg_pool2d(pixels[0, :, 0], 8).permute(1, 2, 0).numpy()
    assert np.abs(picture / 127.5 - 1 - expected).max() < 0.04


def test_numbers_that_are_not_finite_make_no_map() -> None:
    with pytest.raises(FlowBlendingError, match="not finite"):
        vae = Linear(8, offset=float("nan"))
        fit_preview(pipeline(8), vae.parts(VAE_ENCODER_FIRST, VAE_ENCODER_NEXT), vae.parts(VAE_FIRST, VAE_NEXT), print)


@pytest.mark.slow
@pytest.mark.long
def test_the_trained_vae_is_linear_enough() -> None:
    checkpoint = open_checkpoint(str(ROOT / CHECKPOINTS / "large"))
    family = family_of(checkpoint)
    spec, encoder = family.describe(checkpoint), family.vae_encoder(checkpoint)
    decoder = tuple(part for part in family.parts(checkpoint) if part.name == VAE)
    fit = fit_preview(spec, encoder, decoder, lambda _: None)
    assert fit.matrix.shape == (33, 12)
    assert 0.5 < fit.explained < 0.9
    # The clips that it was trained on are other pictures, and plainer ones.
    encode, decode = (part.load(Precision.FP32).reference for part in (*encoder, *decoder))
    latents, pixels = [], []
    with torch.no_grad():
        for each in data.clips(data.scenes([19], 16)):
            (found,) = encode(each[None], torch.zeros(1, 32, 4, 4, 4))
            latents.append(found[0].permute(1, 2, 3, 0).flatten(0, 2).numpy())
            pixels.append(averaged(decode(found)[0][0].clamp(-1, 1).numpy(), spec).reshape(-1, 12))
    assert explained(fit.matrix, np.concatenate(latents), np.concatenate(pixels)) > 0.75


def test_a_latent_becomes_as_many_pixels_as_it_stands_for() -> None:
    assert [cells(factor) for factor in (4, 8, 16, 32)] == [1, 1, 2, 4]
    frames = np.random.default_rng(0).random((3, 9, 32, 64))
    pixels = averaged(frames, pipeline(16))
    assert pixels.shape == (3, 2, 4, 12)
    # The green of the second row and first column of a latent's pixels.
    assert pixels[1, 0, 3, 2 * 3 + 1] == pytest.approx(frames[1, 1:5, 8:16, 48:56].mean())
    assert pixels[0, 1, 0, 0] == pytest.approx(frames[0, 0, 16:24, :8].mean())
