from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from flowblending import UsageError
from flowblending.engine.backends.protocol import Range, ends, largest
from flowblending.engine.bundle.geometry import geometry_of, plan_profiles, shape_profiles
from tests.support import manifests
from tests.support.manifests import PIPELINE

LTX = dataclasses.replace(PIPELINE, family="ltx", temporal_factor=8, spatial_factor=32, patch=(1, 1, 1))
COMPONENTS = ("large", "small", "text_encoder", "vae", "vae_first", "vae_next")


def test_latent_shape() -> None:
    for pipeline, size, frames, shape in (
        (PIPELINE, None, None, (16, 21, 60, 104)),
        (LTX, "704x512", 161, (16, 21, 16, 22)),
        (PIPELINE, "16X32", 1, (16, 1, 4, 2)),
    ):
        (profile,) = plan_profiles(pipeline, size, frames)
        assert profile.min == profile.opt == profile.max
        assert profile.opt.latent_shape == shape
        assert geometry_of(pipeline, shape) == profile.opt


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
        plan_profiles(pipeline, size, frames)


def test_every_size_comes_with_every_number_of_frames() -> None:
    profiles = plan_profiles(PIPELINE, "832x480, 480x832", "81,49")
    assert [str(each) for each in profiles] == [
        "832x480, 81 frames",
        "832x480, 49 frames",
        "480x832, 81 frames",
        "480x832, 49 frames",
    ]
    assert plan_profiles(PIPELINE, "64x64,64X64", 9) == plan_profiles(PIPELINE, "64x64", "9")


def test_a_range_is_one_profile() -> None:
    (profile,) = plan_profiles(PIPELINE, "480x288..832x480", "17..49..81")
    assert str(profile) == "480x288 to 832x480, 17 to 81 frames"
    assert (profile.min.latent_shape, profile.max.latent_shape) == ((16, 5, 36, 60), (16, 21, 60, 104))
    assert (profile.opt.size, profile.opt.frames) == ("832x480", 49)
    for shape, held in (((16, 5, 60, 60), True), ((16, 4, 60, 60), False), ((8, 5, 60, 60), False)):
        assert profile.holds(shape) == held
    assert len(plan_profiles(PIPELINE, "480x288..832x480,480x832", "17..81,5")) == 4


@pytest.mark.parametrize(
    ("sizes", "frames", "message"),
    [
        ("832x480..480x832", "9", "range from 832x480, 9 frames to 480x832, 9 frames .* must not become smaller"),
        ("64x64..128x128..96x96", "9", "range from 128x128, 9 frames to 96x96"),
        ("64x64", "81..17", "from 64x64, 81 frames to 64x64, 17 frames"),
        ("64x64", "9..13..17..21", r"--frames 9..13..17..21 names 4 values, but MIN..MAX or MIN..OPT..MAX"),
        ("64x64..", "9", "Size '' was given, but WIDTHxHEIGHT"),
        ("64x64,", "9", "Size '' was given"),
        ("64x64..100x64", "9", "Size 100x64 was given.*try --size 96x64"),
        ("64x64", "nine", "Frames 'nine' were given, but a whole number"),
    ],
)
def test_ranges_that_are_none(sizes: str, frames: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_profiles(PIPELINE, sizes, frames)


def test_components_are_compiled_for_what_they_depend_on() -> None:
    profiles = plan_profiles(PIPELINE, "64x64,64x128", "9,17")
    counts = {name: len(shape_profiles(name, PIPELINE, profiles)) for name in COMPONENTS}
    assert counts == {"large": 4, "small": 4, "text_encoder": 1, "vae": 4, "vae_first": 2, "vae_next": 2}
    assert shape_profiles("large", PIPELINE, profiles[::-1]) == shape_profiles("large", PIPELINE, profiles)


@pytest.mark.parametrize("any_size", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_the_number_of_latents_is_fixed_in_each_profile_of_a_plan(any_size: bool, batched: bool) -> None:
    pipeline = replace(PIPELINE, batched_guidance=batched)
    profiles = plan_profiles(pipeline, "64x64,64x128", "9,17")
    found = shape_profiles("large", pipeline, profiles, any_size=any_size)
    batches = {each.symbols["batch"] for each in found}
    if any_size:
        assert batches == {Range(min=1, opt=1 + batched, max=2)}
    else:
        assert batches == {Range.fixed(size) for size in (1, 2)[: 1 + batched]}
    both = any_size or batched
    assert len(found) == 4 * len(batches)
    spec = manifests.spec("large")
    small = shape_profiles("large", pipeline, profiles[:1], any_size=any_size)
    assert ends(small, spec) == tuple(
        {"batch": size, "frames": 3, "height": 8, "width": 8} for size in (1, 2)[: 1 + both]
    )
    assert largest(found, spec) == {"batch": 1 + both} | {
        "frames": 5,
        "height": 16,
        "width": 8,
    }
