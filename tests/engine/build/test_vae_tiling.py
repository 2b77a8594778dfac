"""Bundles built for tiles, and runs that choose them: which videos come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowblending.contracts.tiling import Tiling
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.runtime.cli import main
from flowblending.system.console import Console
from tests.conftest import SMALLEST, Build


@pytest.mark.slow
def test_a_bundle_built_for_tiles_decodes_in_them_and_any_other_may(
    build: Build, checkpoints: Callable[[str], Path], engine_cache: Path, tmp_path: Path
) -> None:
    plain, folder, asked = build("wan"), checkpoints("wan"), "32x32+16"
    request = BuildRequest(
        models=named_models(str(folder / "large"), str(folder / "small")),
        out=tmp_path / "tiled",
        size=SMALLEST["wan"].size,
        frames=SMALLEST["wan"].frames,
        precision=None,
        backend="onnxruntime",
        targets=(),
        vae_tiling=asked,
        cache=engine_cache,
    )
    tiled = build_bundle(request, Console(quiet=True))
    assert tiled.manifest.vae_tiling == Tiling(width=32, height=32, overlap=16)
    assert f"--vae-tiling {asked}" in " ".join(tiled.manifest.rebuild)
    assert tiled.manifest.id != plain.manifest.id
    made = {}
    for name, bundle, options in (
        ("whole", plain, []),
        ("chosen", plain, ["--vae-tiling", asked]),
        ("built", tiled, []),
        ("left", tiled, ["--vae-tiling", "off"]),
    ):
        out = tmp_path / f"{name}.npy"
        run = ["--prompt", "a square", "--steps", "2", "--out", str(out), "--threads", "1", "--quiet", *options]
        with pytest.raises(SystemExit, match="0"):
            main([str(bundle.folder), *run])
        made[name] = np.load(out)
    np.testing.assert_array_equal(made["built"], made["chosen"])
    np.testing.assert_array_equal(made["left"], made["whole"])
    assert (made["built"] != made["whole"]).any()
    assert made["built"].shape == made["whole"].shape
