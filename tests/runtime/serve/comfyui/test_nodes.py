"""The nodes on a stand-in for ComfyUI (tests/support/comfy.py): what it reads of them, and what they make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flowblending
from flowblending import FlowBlendingError, FramesEvent, PreviewEvent
from flowblending.runtime.options import options
from flowblending.runtime.serve.comfyui.widgets import DEFAULT, FIRST, job_options, widgets
from tests.conftest import Build
from tests.support import comfy, manifests

ROOT = Path(__file__).parents[4]
KINDS = {"IMAGE", "LATENT", "INT", "FLOAT", "STRING", "FLOWBLENDING_BUNDLE"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> comfy.Host:
    (tmp_path / "models" / "flowblending").mkdir(parents=True)
    return comfy.Host(tmp_path / "models", monkeypatch)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: comfy.Host) -> dict[str, Any]:
    """By their names, loaded through a link in ``custom_nodes``, as docs/serve.md says."""
    assert host.progress == []
    folder = tmp_path / "custom_nodes" / "comfyui-flowblending"
    folder.parent.mkdir()
    folder.symlink_to(ROOT / "runtime" / "serve" / "comfyui")
    found, names = comfy.load_custom_node(folder, monkeypatch)
    assert found.keys() == names.keys()
    return found


def defaults(node: Any) -> dict[str, Any]:
    """What the widgets hold when nobody has touched them."""
    inputs = node.INPUT_TYPES()
    return {
        name: about["default"]
        for group in ("required", "optional")
        for name, (kind, *rest) in inputs[group].items()
        if kind not in ("FLOWBLENDING_BUNDLE", "IMAGE")
        for about in rest
        if "default" in about
    }


def test_what_comfyui_reads_of_a_node(nodes: dict[str, Any]) -> None:
    for node in nodes.values():
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert set(node.RETURN_TYPES) <= KINDS
        assert node.CATEGORY
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        for group in inputs.values():
            for kind, *rest in group.values():
                assert kind in KINDS if isinstance(kind, str) else all(isinstance(each, str) for each in kind)
                for about in rest:
                    default = about.get("default")
                    if kind in ("INT", "FLOAT"):
                        assert about["min"] <= default <= about["max"]
                        assert isinstance(default, int if kind == "INT" else float)
                    if isinstance(kind, list) and default is not None:
                        assert default in kind


def test_every_option_is_a_widget_and_an_untouched_one_says_nothing() -> None:
    shown = {**widgets(first=True), **widgets(first=False)}
    assert list(shown) == [*FIRST, *(each.name for each in options() if each.name not in FIRST)]
    untouched = {name: about["default"] for name, (_, about) in shown.items()}
    read = job_options(untouched)
    told = {each.name: each.default for each in options() if not each.nullable and not each.several}
    assert read == told | {"prompt": ""}
    given = {"steps": 7, "guidance": 0.0, "solver": "euler", "batched_guidance": "false", "size": "32x48"}
    assert job_options(given) == {**given, "batched_guidance": False}
    assert job_options({"image": " cat.png\n\nend.png@16:0.8\n"}) == {"image": ("cat.png", "end.png@16:0.8")}
    assert job_options({"guidance": -1.0, "solver": DEFAULT, "batched_guidance": DEFAULT, "size": "", "steps": 0}) == {}


def test_importing_them_needs_neither_comfyui_nor_torch() -> None:
    code = "import sys, flowblending.runtime.serve.comfyui; print(*sorted({'torch', 'comfy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_which_bundles_there_are(nodes: dict[str, Any], host: comfy.Host, tmp_path: Path) -> None:
    load = nodes["FlowBlendingLoadBundle"]
    assert load.INPUT_TYPES()["required"]["bundle"][0] == [""]
    assert "There is no bundle in models/flowblending" in load.VALIDATE_INPUTS(folder="", bundle="")
    manifests.write(tmp_path / "models" / "flowblending" / "wan")
    manifests.write(tmp_path / "elsewhere" / "ltx")
    assert load.INPUT_TYPES()["required"]["bundle"][0] == ["wan"]
    host.paths.add_model_folder_path("flowblending", str(tmp_path / "elsewhere"))  # as extra_model_paths.yaml does
    assert load.INPUT_TYPES()["required"]["bundle"][0] == ["ltx", "wan"]
    assert load.VALIDATE_INPUTS(folder="", bundle="ltx") is True
    assert load.VALIDATE_INPUTS(folder=str(tmp_path / "elsewhere" / "ltx"), bundle="") is True
    assert "none is no bundle" in load.VALIDATE_INPUTS(folder="", bundle="none")
    before = load.IS_CHANGED("wan", "cpu")
    manifest = tmp_path / "models" / "flowblending" / "wan" / "manifest.json"
    os.utime(manifest, ns=(0, 0))
    assert load.IS_CHANGED("wan", "cpu") != before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_a_video_is_that_of_the_api(
    kind: str, nodes: dict[str, Any], host: comfy.Host, build: Build, tmp_path: Path
) -> None:
    bundle = build(kind)
    (tmp_path / "models" / "flowblending" / kind).symlink_to(bundle.folder)
    (sampler,) = nodes["FlowBlendingLoadBundle"]().load(bundle=kind, device="cpu")
    node = nodes["FlowBlendingGenerate"]
    values = {**defaults(node), "prompt": "a cat", "seed": 5, "steps": 3, "schedule": "LSL"}
    images, latent, rate = node().generate(bundle=sampler, **values)
    job = {"negative_prompt": "", "seed": 5, "steps": 3, "schedule": "LSL"}
    generation = sampler.generate("a cat", **job)
    frames = np.concatenate([each.images() for each in generation if isinstance(each, FramesEvent)])
    assert images.dtype == torch.float32
    assert tuple(images.shape) == frames.shape
    assert np.array_equal(np.rint(images.numpy() * 255).astype(np.uint8), frames)
    assert rate == bundle.manifest.pipeline.frame_rate
    assert host.progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # ComfyUI's LATENT: Wan's as the VAE has them (its process_out), LTX's as the transformer sees them.
    latents = generation.latents().numpy()
    pipeline = bundle.manifest.pipeline
    if kind == "wan":
        shape = (1, -1, 1, 1, 1)
        latents = latents * np.reshape(pipeline.latents_std, shape) + np.reshape(pipeline.latents_mean, shape)
    np.testing.assert_allclose(latent["samples"].numpy(), latents, rtol=1e-5, atol=1e-5)
    with pytest.raises(FlowBlendingError, match="The prompt is empty"):
        node().generate(bundle=sampler, **{**values, "prompt": " "})
    # What is made is shown where the user wants it, and is the same.
    assert not host.previews
    host.args.preview_method = comfy.LatentPreviewMethod.Auto
    seen, _, _ = node().generate(bundle=sampler, **values)
    assert torch.equal(seen, images)
    assert [(done, kind, size) for done, kind, _, size in host.previews] == [(n, "JPEG", 512) for n in (1, 2, 3)]
    pictures = [e.picture for e in sampler.generate("a cat", preview_every=1, **job) if isinstance(e, PreviewEvent)]
    for (_, _, shown, _), picture in zip(host.previews, pictures, strict=True):
        assert np.array_equal(np.asarray(shown), picture)
    host.args.preview_method = comfy.LatentPreviewMethod.NoPreviews
    # Cancel ends it between two steps, and the bundle makes the next video.
    host.progress.clear()
    host.cancel_at = 2
    with pytest.raises(comfy.InterruptProcessingException):
        node().generate(bundle=sampler, **{**values, "steps": 6})
    assert host.progress == [(1, 7), (2, 7)]
    host.cancel_at = None
    again, _, _ = node().generate(bundle=sampler, **values)
    assert torch.equal(again, images)
    sampler.close()
    assert isinstance(sampler, flowblending.VideoSampler)


@pytest.mark.slow
def test_images_come_as_comfyui_has_them(nodes: dict[str, Any], build: Build, tmp_path: Path) -> None:
    bundle = build("ltx-condition")
    picture = np.random.default_rng(0).integers(0, 256, (2, 50, 90, 3)).astype(np.uint8)
    for name, each in zip(("cat.png", "end.png"), picture, strict=True):
        Image.fromarray(each).save(tmp_path / name)
    (sampler,) = nodes["FlowBlendingLoadBundle"]().load(bundle="", device="cpu", folder=str(bundle.folder))
    node = nodes["FlowBlendingGenerate"]
    values = {**defaults(node), "prompt": "a cat", "seed": 5, "steps": 2}
    images = torch.from_numpy(picture.astype(np.float32) / 255)
    _, latent, _ = node().generate(bundle=sampler, start_image=images[:1], end_image=images, **values)
    _, by_files, _ = node().generate(
        bundle=sampler, **{**values, "image": f"{tmp_path / 'cat.png'}\n{tmp_path / 'end.png'}@16"}
    )
    assert torch.equal(latent["samples"], by_files["samples"])
    _, without, _ = node().generate(bundle=sampler, **values)
    assert not torch.equal(without["samples"], latent["samples"])
    sampler.close()
