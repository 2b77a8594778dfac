"""A bundle whose manifest is of the first format, from its folder to its latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flowblending.contracts.manifest import FORMAT, MANIFEST
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.engine.bundle.calibration import add_calibration
from tests.conftest import Build
from tests.engine.build.fp8.test_builder import final_latents

pytestmark = pytest.mark.slow


def as_format_1(bundle: Bundle) -> str:
    """The manifest as it was before bundles had several sizes."""
    manifest = bundle.manifest
    content = json.loads(manifest.model_dump_json())
    tokens = manifest.pipeline.tokens(manifest.geometry.latent_shape)
    (profile,) = content.pop("profiles")
    for name, component in content["components"].items():
        flops = manifest.components[name].flops
        if flops is not None:
            component["flops"] = {"linear": flops.linear_at(tokens), "attention": flops.attention_at(tokens)}
    return json.dumps(content | {"format": 1, "geometry": profile["opt"]}, indent=2)


def test_an_old_bundle_gives_the_same_and_is_left_alone(build: Build, tmp_path: Path) -> None:
    bundle = build("wan")
    old = Path(shutil.copytree(bundle.folder, tmp_path / "old"))
    (old / MANIFEST).write_text(as_format_1(bundle))
    before = (old / MANIFEST).read_bytes()
    opened = open_bundle(old)
    opened.verify(recompute=True)
    np.testing.assert_array_equal(final_latents(opened), final_latents(bundle))
    assert (old / MANIFEST).read_bytes() == before
    tokens = bundle.manifest.pipeline.tokens(bundle.manifest.geometry.latent_shape)
    for name in ("large", "small"):
        ours, theirs = opened.manifest.components[name].flops, bundle.manifest.components[name].flops
        assert ours is not None
        assert theirs is not None
        assert ours.at(tokens) == theirs.at(tokens)
        # Attention grows as it does, and not as if it were a constant.
        assert ours.attention == theirs.attention
    # What adds to a bundle writes the present format.
    add_calibration(opened, {"why": "a test"}, runs="L1 S1")
    assert json.loads((old / MANIFEST).read_text())["format"] == FORMAT
    assert open_bundle(old).manifest.components == opened.manifest.components
