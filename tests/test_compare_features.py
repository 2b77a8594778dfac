"""CLIP and DINO in a comparison: tiny random models in local folders, against what transformers itself says of them."""

from __future__ import annotations

import json
from pathlib import Path

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
from flowblending.runtime.compare import cli
from flowblending.runtime.compare.features import Clip, Dino
from tests.scenes import film, one, two
from tests.test_compare_videos import write

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
    scores = Clip(clip).score(FRAMES, "a cat", OTHERS)
    model = CLIPModel.from_pretrained(clip).eval()

    def seen(frames: Frames) -> torch.Tensor:
        hidden = model.vision_model(pixel_values=pixels(frames)).pooler_output
        return torch.as_tensor(model.visual_projection(hidden))

    # <start> a cat <end>, as the merges above join the letters.
    ids = torch.tensor([[0, 2, 3, 1]])
    said = model.text_projection(model.text_model(input_ids=ids).last_hidden_state[:, -1])
    assert scores["prompt"] == pytest.approx(cosine(seen(FRAMES), said), abs=1e-4)
    assert scores["reference"] == pytest.approx(cosine(seen(FRAMES), seen(OTHERS)), abs=1e-4)
    assert Clip(clip).score(FRAMES, "a cat", FRAMES)["reference"] == pytest.approx(1)
    assert Clip(clip).score(FRAMES, "a cat", None).keys() == {"prompt"}


@torch.no_grad()
def test_dino_is_the_class_tokens_cosine(dino: Path) -> None:
    scorer = Dino(dino)
    model = Dinov2Model.from_pretrained(dino).eval()
    ours, others = (model(pixel_values=pixels(frames)).last_hidden_state[:, 0] for frames in (FRAMES, OTHERS))
    assert scorer.score(FRAMES, "", OTHERS) == {"reference": pytest.approx(cosine(ours, others), abs=1e-4)}
    assert scorer.score(FRAMES, "", None) == {}


def test_both_on_the_page(clip: Path, dino: Path, tmp_path: Path) -> None:
    videos = []
    for name, frames in (("a.mp4", FRAMES), ("b.mp4", OTHERS)):
        videos.append(str(write(tmp_path / name, (frames / 255).astype(np.float32), prompt="a cat")))
    arguments = [
        "--videos",
        *videos,
        "--clip",
        str(clip),
        "--dino",
        str(dino),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert cli.run(cli.parser().parse_args(arguments)) == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    first, second = (set(made["figures"]) for made in content["prompts"][0]["videos"].values())
    assert second - first >= {f"clip {clip}/reference", f"dino {dino}/reference"}
    assert not any("CLIP" in note and "not measured" in note for note in content["notes"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(f">{heading}<" in page for heading in ("CLIP to prompt", "CLIP to reference", "DINO to reference"))


def test_folders_that_are_no_models(dino: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        Clip(tmp_path)
    with pytest.raises(UsageError, match=r"give --clip a complete folder|--clip takes a CLIP model's folder"):
        Clip(dino)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UsageError, match=r"Cannot load the model in .* give --dino a complete folder"):
        Dino(tmp_path)
