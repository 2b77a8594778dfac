"""Tiles as options say them, what a decoder is compiled for, and which tiles a bundle takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.tiling import Tiling
from flowblending.engine.backends.protocol import Range
from flowblending.engine.bundle.bundle import bundle_id, open_bundle
from flowblending.engine.bundle.geometry import plan_profiles, shape_profiles
from flowblending.engine.bundle.vae_tiling import choose_tiling, read_tiling
from tests.support import manifests
from tests.support.manifests import PIPELINE

TILES = Tiling(width=32, height=32, overlap=16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    manifests.write(folder)
    return open_bundle(folder).manifest


def compiled(manifest: Manifest, sizes: str, tiling: Tiling | None) -> Manifest:
    """The manifest of a bundle of TensorRT plans for some sizes."""
    components = {
        name: component.model_copy(update={"backend": "tensorrt"}) for name, component in manifest.components.items()
    }
    profiles = plan_profiles(manifest.pipeline, sizes, 9)
    return manifest.model_copy(update={"components": components, "profiles": profiles, "vae_tiling": tiling})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256x256+64", "256x256+64"),
        (" 512X256 ", "512x256+64"),
        ("64x64", "64x64+32"),
        ("40x64", "40x64+16"),
        ("32x32+0", "32x32+0"),
    ],
)
def test_what_is_read(text: str, expected: str) -> None:
    assert str(read_tiling(text, PIPELINE)) == expected
    assert read_tiling(expected, PIPELINE) == read_tiling(text, PIPELINE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big", "The VAE tiling 'big' was given, but WIDTHxHEIGHT of a tile"),
        ("256", "was given, but WIDTHxHEIGHT"),
        ("256x256-8", "was given, but WIDTHxHEIGHT"),
        ("250x256+64", r"wan needs multiples of 8, .*; try 248x256\+64\."),
        ("256x256+60", r"an overlap of 60 .*; try 256x256\+64\."),
        ("64x64+40", r"at most half of a tile; try 64x64\+32\."),
        ("0x64", r"try 16x64\+0\."),
    ],
)
def test_what_is_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_tiling(text, PIPELINE)


def test_a_decoder_is_compiled_for_its_tiles_and_nothing_else_is() -> None:
    profiles = plan_profiles(PIPELINE, "1280x720,96x64", 9)
    tiling = Tiling(width=256, height=256, overlap=64)
    small, large = shape_profiles("vae_next", PIPELINE, profiles, tiling=tiling)
    # 96x64 pixels are one whole tile of 8x12, and 90 rows end with a tile of 18.
    assert small.symbols == {"height": Range.fixed(8), "width": Range.fixed(12)}
    assert large.symbols == {"height": Range(min=18, opt=32, max=32), "width": Range(min=16, opt=32, max=32)}
    for name in ("large", "text_encoder"):
        assert shape_profiles(name, PIPELINE, profiles, tiling=tiling) == shape_profiles(name, PIPELINE, profiles)
    (whole,) = shape_profiles("vae", PIPELINE, profiles[:1], tiling=tiling)
    assert whole.symbols["frames"] == Range.fixed(3)
    (ranged,) = shape_profiles("vae_first", PIPELINE, plan_profiles(PIPELINE, "240x240..272x272", 9), tiling=tiling)
    assert ranged.symbols["height"] == Range(min=6, opt=32, max=32)


def test_engines_that_take_every_size_take_all_tiles(plain: Manifest) -> None:
    assert choose_tiling(plain, "auto") is None
    assert choose_tiling(plain, "off") is None
    assert choose_tiling(plain, "32x32+16") == TILES
    built = plain.model_copy(update={"vae_tiling": TILES})
    assert choose_tiling(built, "auto") == TILES
    assert choose_tiling(built, "OFF") is None
    assert choose_tiling(built, "64x64") == Tiling(width=64, height=64, overlap=32)


def test_plans_take_what_they_were_compiled_for(plain: Manifest) -> None:
    whole, tiled = (compiled(plain, "64x48", each) for each in (None, TILES))
    assert choose_tiling(whole, "off") is None
    assert choose_tiling(tiled, "auto") == choose_tiling(tiled, "32x32+16") == TILES
    with pytest.raises(
        UsageError, match=r"^Tiles of 32x32\+16 were .* compiled for whole frames; .* --vae-tiling 32x32"
    ):
        choose_tiling(whole, "32x32+16")
    with pytest.raises(UsageError, match=r"^No tiles were asked for, .* tiles of 32x32\+16; .* --vae-tiling off\.$"):
        choose_tiling(tiled, "off")
    # Rows begin elsewhere with another overlap, and the sizes are among those of the plan all the same.
    assert str(choose_tiling(compiled(plain, "64x64", TILES), "32x32+0")) == "32x32+0"
    # A bundle for a range of videos has engines for a range of tiles.
    assert str(choose_tiling(compiled(plain, "16x16..64x64", None), "32x32")) == "32x32+16"


def test_a_bundles_id_tells_of_its_tiles(plain: Manifest) -> None:
    def identity(tiling: Tiling | None) -> str:
        about = plain.pipeline, plain.profiles, plain.components, b"{}", plain.models
        return bundle_id(*about, tiling=tiling)

    assert len({identity(each) for each in (None, TILES, Tiling(width=32, height=32, overlap=8))}) == 3
    assert identity(None) == plain.id


def test_a_manifest_keeps_them_and_need_not(plain: Manifest, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(plain.model_copy(update={"vae_tiling": TILES}).model_dump_json())
    assert open_bundle(tmp_path).manifest.vae_tiling == TILES
    (tmp_path / "manifest.json").write_text(plain.model_dump_json(exclude={"vae_tiling"}))
    assert open_bundle(tmp_path).manifest.vae_tiling is None
