from __future__ import annotations

import dataclasses

import pytest

from flowblending import UsageError
from flowblending.engine.geometry import plan_geometry
from tests.manifests import PIPELINE

LTX = dataclasses.replace(PIPELINE, family="ltx", temporal_factor=8, spatial_factor=32, patch=(1, 1, 1))


def test_latent_shape() -> None:
    assert plan_geometry(PIPELINE, None, None).latent_shape == (16, 21, 60, 104)
    assert plan_geometry(LTX, "704x512", 161).latent_shape == (16, 21, 16, 22)
    assert plan_geometry(PIPELINE, "16X32", 1).latent_shape == (16, 1, 4, 2)


@pytest.mark.parametrize(
    ("pipeline", "size", "frames", "message"),
    [
        (PIPELINE, "100x64", 9, "Size 100x64 was given, but wan needs a width divisible by 16.*try --size 96x64"),
        (PIPELINE, "64x8", 9, "height divisible by 16; try --size 64x16"),
        (LTX, "64x48", 9, "divisible by 32; try --size 64x64"),
        (PIPELINE, "0x64", 9, "try --size 16x64"),
        (PIPELINE, "64", 9, "Size '64' was given, but WIDTHxHEIGHT"),
        (PIPELINE, "64x64", 80, "80 frames were given, but wan makes 4k.1 frames; try --frames 81"),
        (LTX, "64x64", 20, "ltx makes 8k.1 frames; try --frames 17"),
        (PIPELINE, "64x64", 0, "0 frames were given.*try --frames 1"),
        (PIPELINE, "64x64", -7, "try --frames 1"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    pipeline: object, size: str, frames: int, message: str
) -> None:
    assert isinstance(pipeline, type(PIPELINE))
    with pytest.raises(UsageError, match=message):
        plan_geometry(pipeline, size, frames)
