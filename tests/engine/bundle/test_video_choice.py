"""Which of a bundle's videos a run makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.tensor import CPU
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.engine.bundle.video_choice import check_latent_shape, choose_geometry
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from tests.support import manifests


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifests.write(tmp_path_factory.mktemp("choice") / "bundle")


def bundle(plain: Manifest, sizes: str, frames: str) -> Manifest:
    return plain.model_copy(update={"profiles": plan_profiles(plain.pipeline, sizes, frames)})


SEVERAL = ("832x480,480x832,1280x720", "81,49")
RANGE = ("480x288..832x480", "17..81")


@pytest.mark.parametrize(
    ("built", "size", "frames", "expected"),
    [
        (SEVERAL, None, None, "832x480, 81 frames"),
        (SEVERAL, "480x832", None, "480x832, 81 frames"),
        (SEVERAL, None, 49, "832x480, 49 frames"),
        (SEVERAL, "1280X720", 49, "1280x720, 49 frames"),
        (RANGE, None, None, "832x480, 81 frames"),
        (RANGE, "640x352", None, "640x352, 81 frames"),
        (RANGE, None, 21, "832x480, 21 frames"),
        (("64x64..128x128..192x192", "9"), None, None, "128x128, 9 frames"),
        # What is not asked for is taken from what there is.
        (("64x64", "9..17..33"), "64x64", None, "64x64, 17 frames"),
    ],
)
def test_what_was_built_is_made(
    plain: Manifest, built: tuple[str, str], size: str | None, frames: int | None, expected: str
) -> None:
    manifest = bundle(plain, *built)
    assert str(choose_geometry(manifest, size, frames)) == expected
    program = compile_job(Job(prompt="x", size=size, frames=frames, steps=2), manifest)
    assert program.latent_shape == choose_geometry(manifest, size, frames).latent_shape


def test_only_some_pairs_of_sizes_and_frames(plain: Manifest) -> None:
    """A manifest may hold less than every size with every number of frames."""
    profiles = (*plan_profiles(plain.pipeline, "64x64", "9"), *plan_profiles(plain.pipeline, "96x64", "17"))
    manifest = plain.model_copy(update={"profiles": profiles})
    assert str(choose_geometry(manifest, "96x64", None)) == "96x64, 17 frames"
    assert str(choose_geometry(manifest, None, 17)) == "96x64, 17 frames"
    with pytest.raises(UsageError, match=r"64x64 with 9 frames or 96x64 with 17 frames; .* --size 64x64 --frames 9"):
        choose_geometry(manifest, "64x64", 13)


@pytest.mark.parametrize(
    ("built", "size", "frames", "message"),
    [
        (
            SEVERAL,
            "640x480",
            None,
            "^Size 640x480 was asked for, .* makes 832x480 or 480x832 or 1280x720 with 81 or 49 frames; .* 832x480 -",
        ),
        (SEVERAL, "480x800", 53, "Size 480x800 and 53 frames .* nearest is --size 480x832 --frames 49"),
        (SEVERAL, None, 5, r"^5 frames were asked for, .* nearest is --size 832x480 --frames 49\.$"),
        (SEVERAL, None, 0, "nearest is --size 832x480 --frames 49"),
        (SEVERAL, "2000x1000", None, "nearest is --size 1280x720 --frames 81"),
        (RANGE, "1280x720", 121, "makes 480x288 to 832x480 with 17 to 81 frames, .* --size 832x480 --frames 81"),
        (RANGE, "650x350", 22, "in steps of 16x16 pixels and 4 frames; the nearest is --size 656x352 --frames 21"),
        (RANGE, "300x500", 16, "nearest is --size 480x480 --frames 17"),
        (RANGE, "large", None, "Size 'large' was given, but WIDTHxHEIGHT"),
        (RANGE, "9" * 5000 + "x64", None, r"^Size '9{37}\.\.\.' was given, .* each below 100000; try --size 832x480"),
        (RANGE, None, 10**400, "nearest is --size 832x480 --frames 81"),
        # As far as anything can be from a single frame.
        (("64x64", "1"), None, 0, r"^0 frames were asked for, .* nearest is --size 64x64 --frames 1\.$"),
        (("64x64", "1"), None, -3, "^-3 frames were asked for, .* --frames 1"),
    ],
)
def test_the_nearest_is_named(
    plain: Manifest, built: tuple[str, str], size: str | None, frames: int | None, message: str
) -> None:
    manifest = bundle(plain, *built)
    with pytest.raises(UsageError, match=message) as refusal:
        choose_geometry(manifest, size, frames)
    if "nearest" in str(refusal.value):
        words = str(refusal.value).rstrip(".").split()
        near = choose_geometry(manifest, words[-3], int(words[-1]))
        assert (near.size, near.frames) == (words[-3], int(words[-1]))


def test_latents_tell_their_video(plain: Manifest) -> None:
    manifest = bundle(plain, *RANGE)
    assert str(check_latent_shape(manifest, (16, 6, 40, 70))) == "560x320, 21 frames"
    with pytest.raises(UsageError, match=r"\[16, 5, 36, 60\] to \[16, 21, 60, 104\]; give such latents"):
        check_latent_shape(manifest, (16, 22, 40, 70))
    # Within the range, but of no size that is a multiple of the transformer's patches.
    with pytest.raises(UsageError, match=r"in steps of 16x16 pixels .*; give such latents"):
        check_latent_shape(manifest, (16, 6, 40, 71))
    with pytest.raises(UsageError, match="give such latents"):
        check_latent_shape(manifest, (16, 0, 40, 70))


def test_latents_of_another_video_name_its_options(plain: Manifest) -> None:
    """Those of a video that the bundle makes; others are told what was expected and no more."""
    manifest = bundle(plain, *RANGE)
    pipeline = Pipeline(bundle=Bundle(folder=Path("none"), manifest=manifest), device=open_device(CPU, manifest))
    other, foreign = np.zeros((1, 16, 6, 40, 70), np.float32), np.zeros((1, 16, 6, 40, 71), np.float32)
    for given, ending in (
        (other, r"to --noise, or make their video with --size 560x320 --frames 21\.$"),
        (foreign, r"to --noise\.$"),
        (other[0], r"to --noise\.$"),
    ):
        with pytest.raises(UsageError, match=ending):
            pipeline.check_latents(given, (16, 21, 60, 104))
    with pytest.raises(UsageError, match=r"type int8 .* to --noise\.$"):
        pipeline.check_latents(other.astype(np.int8), (16, 6, 40, 70))
    assert np.array_equal(pipeline.check_latents(other, (16, 6, 40, 70)), other)


@pytest.mark.parametrize(("size", "frames"), [((64, 32), None), (None, "9"), (None, True), (None, 9.0)])
def test_what_is_neither_a_text_nor_a_number(plain: Manifest, size: object, frames: object) -> None:
    job = Job(prompt="x", size=size, frames=frames)  # type: ignore[arg-type] # as a caller without types may
    with pytest.raises(UsageError, match=r"but a text such as '832x480' and a number were expected"):
        compile_job(job, plain)


def test_one_frame_is_one(plain: Manifest) -> None:
    manifest = bundle(plain, "64x64", "1")
    assert str(choose_geometry(manifest, None, 1)) == "64x64, 1 frame"
    with pytest.raises(UsageError, match="5 frames were asked for, but this bundle makes 64x64 with 1 frame;"):
        choose_geometry(manifest, None, 5)
