"""Networks in a comparison: tiny random ones in local files, against what torch and transformers say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from flowblending import UsageError
from flowblending.runtime.calibrate.features import distance_measure, similarity_measure
from flowblending.runtime.compare.existing import open_all
from flowblending.runtime.compare.measure_existing import whole
from flowblending.runtime.compare.network_scores import ClipScore, DinoScore, Fid, Fvd, LpipsScore
from flowblending.runtime.measures.function import MeasureError
from tests.runtime.compare.test_existing import compare, write
from tests.support.scenes import film, one, two

Frames = npt.NDArray[np.uint8]

pytestmark = pytest.mark.slow

SIZE = 32
WORDS = ("a</w>", "cat</w>", "c", "a", "t</w>", "at</w>")


def clip_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {**layers, "vocab_size": 64, "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**layers, "image_size": SIZE, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(("<|startoftext|>", "<|endoftext|>", *WORDS))}
    merges = [("a", "t</w>"), ("c", "at</w>")]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=20).save_pretrained(folder)
    return folder


def dino_folder(folder: Path) -> Path:
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, image_size=SIZE, patch_size=16, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dino_folder(tmp_path_factory.mktemp("dino"))


FRAMES = np.rint(255 * film(two(), (13, 48, 64))).astype(np.uint8)
OTHERS = np.rint(255 * film(one(), (13, 48, 64))).astype(np.uint8)


def pixels(frames: Frames) -> torch.Tensor:
    """CLIP's preprocessing re-stated: resize the shorter side, crop the middle, normalise by OpenAI's statistics."""
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    images = []
    for frame in frames:
        wide = int(SIZE * frame.shape[1] / frame.shape[0])
        resized = Image.fromarray(frame).resize((wide, SIZE), Image.Resampling.BICUBIC)
        left = (wide - SIZE) // 2
        images.append((np.asarray(resized)[:, left : left + SIZE] / 255 - mean) / deviation)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


@torch.no_grad()
def test_clip_is_the_models_own_cosine(clip: Path) -> None:
    scores = ClipScore(clip).score(FRAMES, "a cat", OTHERS)
    model = CLIPModel.from_pretrained(clip).eval()

    def seen(frames: Frames) -> torch.Tensor:
        hidden = model.vision_model(pixel_values=pixels(frames)).pooler_output
        return torch.as_tensor(model.visual_projection(hidden))

    # <start> a cat <end>, as the merges above join the letters.
    ids = torch.tensor([[0, 2, 3, 1]])
    said = model.text_projection(model.text_model(input_ids=ids).last_hidden_state[:, -1])
    assert scores["prompt"] == pytest.approx(cosine(seen(FRAMES), said), abs=1e-4)
    assert scores["reference"] == pytest.approx(cosine(seen(FRAMES), seen(OTHERS)), abs=1e-4)
    assert ClipScore(clip).score(FRAMES, "a cat", FRAMES)["reference"] == pytest.approx(1)
    assert ClipScore(clip).score(FRAMES, "a cat", None).keys() == {"prompt"}
    assert ClipScore(clip).score(FRAMES, "", OTHERS).keys() == {"reference"}


@torch.no_grad()
def test_dino_is_the_class_tokens_cosine(dino: Path) -> None:
    scorer = DinoScore(dino)
    model = Dinov2Model.from_pretrained(dino).eval()
    ours, others = (model(pixel_values=pixels(frames)).last_hidden_state[:, 0] for frames in (FRAMES, OTHERS))
    assert scorer.score(FRAMES, "", OTHERS) == {"reference": pytest.approx(cosine(ours, others), abs=1e-4)}
    assert scorer.score(FRAMES, "", None) == {}
    measure = similarity_measure(f"dino:{dino}")
    assert measure.of_frames is not None
    np.testing.assert_allclose(np.asarray(measure.of_frames(FRAMES)), ours / ours.norm(dim=1, keepdim=True), atol=1e-4)


class Images(torch.nn.Module):
    """Stands for Inception and LPIPS' VGG: a few colours of images in 0..255, with their calls' own options."""

    def forward(
        self, x: torch.Tensor, resize_images: bool = True, return_lpips: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != 3:
            raise RuntimeError("images [N, 3, H, W] were expected")
        if return_features == return_lpips:
            raise RuntimeError("one of both was expected")
        if return_lpips:
            assert not resize_images
            return (x / 255).flatten(1)
        return torch.cat([x.mean(3)[:, :, 0], x.amax(2)[:, :, 0]], 1)


class Videos(torch.nn.Module):
    """Stands for I3D: the mean colours of a video's first and last frames, in -1..1."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        if x.dim() != 5 or x.shape[1] != 3 or x.shape[2] < 9:
            raise RuntimeError("a video [N, 3, F, H, W] of 9 frames or more was expected")
        assert rescale
        assert resize
        assert return_features
        x = x * 2 / 255 - 1
        return torch.cat([x[:, :, 0].mean([2, 3]), x[:, :, -1].mean([2, 3])], 1)


def write_scripts(folder: Path) -> Path:
    save: Any = torch.jit.save
    for name, module in (("images.pt", Images()), ("videos.pt", Videos())):
        save(torch.jit.script(module), folder / name)
    return folder


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TorchScript files, as the published networks come."""
    return write_scripts(tmp_path_factory.mktemp("scripts"))


def test_lpips_is_the_squared_distance_of_what_the_network_gives(scripts: Path) -> None:
    error = np.sum((FRAMES / 255.0 - OTHERS / 255.0) ** 2, axis=(1, 2, 3))
    scorer = LpipsScore(scripts / "images.pt")
    assert scorer.score(FRAMES, "", OTHERS) == {"reference": pytest.approx(error.mean(), rel=1e-5)}
    assert scorer.score(FRAMES, "", FRAMES) == {"reference": 0}
    assert scorer.score(FRAMES, "", None) == {}


def test_features_of_frames_and_of_videos(scripts: Path) -> None:
    still = FRAMES.astype(np.float64)
    expected = np.concatenate([still.mean(2)[:, 0], still.max(1)[:, 0]], 1)
    np.testing.assert_allclose(Fid(scripts / "images.pt").features(FRAMES), expected, rtol=1e-5)
    ends = np.concatenate([still[0].mean((0, 1)), still[-1].mean((0, 1))])[None] * 2 / 255 - 1
    np.testing.assert_allclose(Fvd(scripts / "videos.pt").features(FRAMES), ends, atol=1e-5)
    measure = distance_measure(f"i3d:{scripts / 'videos.pt'}")
    np.testing.assert_allclose(measure.features(np.zeros((1, 1, 1, 1, 1), np.float32), lambda: FRAMES), ends, atol=1e-5)
    with pytest.raises(MeasureError, match=r"The I3D network in .* failed \(.*9 frames or more was expected"):
        Fvd(scripts / "videos.pt").features(FRAMES[:5])


def test_all_on_the_page(clip: Path, dino: Path, scripts: Path, tmp_path: Path) -> None:
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path, frames in zip(videos, (FRAMES, OTHERS), strict=True):
        write(path, (frames / 255).astype(np.float32), prompt="a cat")
    lpips, fid = scripts / "images.pt", tmp_path / "inception.pt"
    fid.symlink_to(lpips)
    asked = ("--clip", clip, "--dino", dino, "--lpips", lpips, "--fid", fid)
    assert compare("--videos", *videos, *asked, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    first, second = (set(made["figures"]) for made in content["prompts"][0]["videos"].values())
    assert second - first >= {f"clip {clip}/reference", f"dino {dino}/reference", f"lpips {lpips}/reference"}
    # A PSNR is of the mean squared error over all numbers; this network's LPIPS is its sum over a frame.
    row = content["runs"][1]["table"]
    expected = 10 ** (-row["psnr"]["value"] / 10) * FRAMES[0].size
    assert row[f"lpips {lpips}/reference"]["value"] == pytest.approx(expected, rel=1e-4)
    a, b = (Fid(lpips).features(whole(video)) for video in open_all(videos)[0])
    shared = np.sqrt(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).clip(0)).real.sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * shared
    assert row[f"fid {lpips}"]["value"] == pytest.approx(distance, rel=1e-3)
    assert [note for note in content["notes"] if note.startswith("Not measured")] == [
        "Not measured: Prompt adherence. Nothing is ever downloaded; to measure them, name what is on your disk: "
        "--judge MODULE:FUNCTION."
    ]
    page = (tmp_path / "out" / "index.html").read_text()
    headings = ("CLIP to prompt", "CLIP to reference", "DINO to reference", "LPIPS", "FID")
    assert all(f">{heading}<" in page for heading in headings)
    assert "LPIPS, less is better" not in page  # without costs there is no quality against cost
    with pytest.raises(UsageError, match="--fvd compares sets of videos"):
        compare("--videos", *videos, "--fvd", lpips, "--out", tmp_path / "out")


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file .*none\.pt"):
        LpipsScore(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UsageError, match=r"text\.pt is no TorchScript file \(.+\); give the network's own file"):
        Fid(tmp_path / "text.pt")


def test_folders_that_are_no_models(dino: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        ClipScore(tmp_path)
    with pytest.raises(UsageError, match=r"give a complete folder|a CLIP model was expected"):
        ClipScore(dino)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UsageError, match=r"Cannot load the model in .* give a complete folder"):
        DinoScore(tmp_path)
