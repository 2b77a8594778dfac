"""The trained pair that the repository carries: what it promises, and that it is an ordinary diffusers checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from safetensors import safe_open

from benchmarks.first_frame import TAUGHT
from benchmarks.schedules.run import CHECKPOINTS, FRAMES, SIZE
from benchmarks.shapes.evaluate import reconstruct
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.runtime.options import Job
from flowblending.system.console import Console
from tests.support import diffusers_reference
from tests.whole.test_parity import FRAME_TOLERANCE, our_frames

ROOT = Path(__file__).parents[2]
PAIR = ROOT / CHECKPOINTS


def test_it_is_small_and_in_fp16() -> None:
    files = {folder: [file for file in folder.rglob("*") if file.is_file()] for folder in (PAIR, PAIR / TAUGHT)}
    sizes = {folder: sum(file.stat().st_size for file in each) for folder, each in files.items()}
    assert 1e6 < sizes[PAIR] - sizes[PAIR / TAUGHT] < 20e6
    assert 1e6 < sizes[PAIR / TAUGHT] < 11e6
    weights = [file for file in files[PAIR] if file.suffix == ".safetensors"]
    assert len(weights) == 7
    for file in weights:
        with safe_open(file, "pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.float16}, file  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.long
def test_the_vae_gives_unseen_clips_back() -> None:
    vae = AutoencoderKLLTXVideo.from_pretrained(PAIR / "large/vae", torch_dtype=torch.float32).eval()
    assert reconstruct(vae, 32, held_out=False).psnr > 30
    assert reconstruct(vae, 32, held_out=True).psnr > 29


@pytest.mark.slow
def test_its_video_is_that_of_diffusers(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    if (ROOT / "demo/bundle").is_dir():  # by `make demo`: what nothing has changed of since is not built again
        shutil.copytree(ROOT / "demo/bundle", out)
    request = BuildRequest(
        models=named_models(str(PAIR / "large"), str(PAIR / "small")),
        out=out,
        size=SIZE,
        frames=FRAMES,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )
    bundle = build_bundle(request, Console(quiet=True))
    job = Job(prompt="a red circle that moves up on a gray background", schedule="LSL", steps=10, seed=5)
    _, expected = diffusers_reference.run(PAIR, bundle.manifest, job, decode=True)
    assert expected is not None
    assert np.abs(our_frames(bundle, job).clip(-1, 1) - expected).max() < FRAME_TOLERANCE


@pytest.mark.long
@pytest.mark.slow
def test_it_keeps_the_claims_of_the_method(tmp_path: Path) -> None:
    """Half of the prompts and of the steps that the README's table has, which is too few for two of the claims."""
    options = ("--prompts", "32", "--steps", "20", "--threads", "1", "--out", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.schedules", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "schedules.json").read_text())
    missed = {claim["text"] for claim in content["claims"] if not claim["holds"]}
    assert len(content["claims"]) == 10
    assert missed <= {"LLL is well above SSS in Fréchet distance", "LSL is within 2 % of LLL in adherence"}
    rows = {row["name"]: row for row in content["rows"]}
    assert rows["LLL"]["frechet"] < rows["LSL"]["frechet"] < rows["SSS"]["frechet"]
    large, blended, small = (rows[name]["measures"]["attributes"]["value"] for name in ("LLL", "LSL", "SSS"))
    assert large > 0.95
    assert large - blended < 0.4 * (large - small)
    assert 0.12 < rows["SSS"]["flops"] < 0.2
