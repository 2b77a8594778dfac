"""A few steps of everything: the command goes from nothing to checkpoints that diffusers loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from safetensors import safe_open

from benchmarks.shapes import data
from benchmarks.shapes.networks import TEXT_LENGTH, tokenizer
from benchmarks.shapes.scene import caption
from benchmarks.shapes.tasks import tokens

ROOT = Path(__file__).parents[3]


def train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.shapes.train", "--smoke", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "work"
    assert train("--work", folder, "--minutes", "0").returncode == 3
    assert not (folder / "checkpoints").exists()
    done = train("--work", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_the_pair_loads_in_diffusers_and_makes_frames(work: Path) -> None:
    pipeline = LTXPipeline.from_pretrained(work / "checkpoints/large", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {"width": 64, "height": 64, "num_frames": 13, "num_inference_steps": 2, "output_type": "np"}
    frames = pipeline(prompt="a red circle that moves up on a gray background", **options).frames
    assert frames.shape == (1, 13, 64, 64, 3)
    small = LTXVideoTransformer3DModel.from_pretrained(work / "checkpoints/small")
    assert small.config.num_layers < pipeline.transformer.config.num_layers


@pytest.mark.long
def test_the_statistics_are_those_of_the_latents(work: Path) -> None:
    vae = LTXPipeline.from_pretrained(work / "checkpoints/large").vae
    held = torch.load(work / "encoded.pt", weights_only=True)
    assert torch.allclose(vae.latents_mean.float(), held["mean"], atol=1e-2)
    assert torch.allclose(vae.latents_std.float(), held["std"], rtol=1e-2)
    assert held["latents"].float().mean().abs() < 1e-2
    assert held["latents"].float().std() == pytest.approx(1, abs=1e-2)


@pytest.mark.long
def test_all_fits_into_twenty_megabytes(work: Path) -> None:
    files = [file for file in (work / "checkpoints").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    with safe_open(work / "checkpoints/features.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.long
def test_every_task_leaves_a_log_and_a_finished_state(work: Path) -> None:
    for name in ("text", "features", "vae", "large", "small"):
        assert (work / f"{name}.pt").exists(), name
    again = train("--work", work)
    assert again.returncode == 0, again.stderr


@pytest.mark.long
def test_a_pair_can_be_taught_to_go_on_from_a_first_frame(work: Path, tmp_path: Path) -> None:
    assert train("--work", tmp_path, "--first-frame", work / "checkpoints", "--minutes", "0").returncode == 3
    assert not (tmp_path / "image").exists()
    done = train("--work", tmp_path, "--first-frame", work / "checkpoints")
    assert done.returncode == 0, done.stderr
    for name, before in (("large", "large/transformer"), ("small", "small")):
        taught, known = (
            LTXVideoTransformer3DModel.from_pretrained(folder)
            for folder in (tmp_path / "image" / name, work / "checkpoints" / before)
        )
        assert taught.config == known.config | {"_name_or_path": taught.config["_name_or_path"]}
        parts = [(key, value, known.state_dict()[key]) for key, value in taught.state_dict().items()]
        assert any(not torch.equal(new, old) for _, new, old in parts), name


def test_captions_become_words_and_padding() -> None:
    batch = data.scenes([0, 1], 300)
    trained = tokenizer(caption(scene) for scene in batch)
    ids, mask = tokens(trained, [caption(batch[0]), ""], torch.device("cpu"))
    assert ids.shape == mask.shape == (2, TEXT_LENGTH)
    # A word is a token, and a caption ends with one more; an empty one is that alone.
    assert mask.sum(1).tolist() == [len(caption(batch[0]).split()) + 1, 1]
    assert trained.decode(ids[0], skip_special_tokens=True) == caption(batch[0])


def test_classes_name_every_attribute_of_a_scene() -> None:
    for scene in data.scenes([0, 2], 50):
        words = [names[index] for names, index in zip(data.ATTRIBUTES, data.classes(scene), strict=True)]
        for shape in scene.shapes:
            assert {shape.colour, shape.kind, shape.motion} <= set(words)
        assert words[6] == (scene.relation or "none")
        assert tuple(words[7:]) == scene.background


def test_batches_depend_on_their_key_alone() -> None:
    assert data.scenes([1, 2, 3], 4) == data.scenes([1, 2, 3], 4) != data.scenes([1, 2, 4], 4)
    clips = data.clips(data.scenes([1], 2), frames=5, first=[0, 8])
    assert clips.shape == (2, 3, 5, 64, 64)
    assert torch.equal(clips[1], data.clips(data.scenes([1], 2))[1, :, 8:])
    assert float(clips.min()) >= -1 and float(clips.max()) <= 1
