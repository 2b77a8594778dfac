"""Runs that begin from a video, against diffusers' pipelines that do: same files, same seed, same latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline, LTXPipeline, WanVideoToVideoPipeline
from PIL import Image
from safetensors import safe_open

import flowblending
from flowblending.contracts.conditions import Source
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.cli import main
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import draw_latents
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support import diffusers_reference
from tests.support.diffusers_reference import Floats, relative_error

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=6, strength=0.7, fit="stretch")
CASES = [
    {"schedule": "LLL"},
    {"schedule": "SSS", "guidance": 1.0, "strength": 1.0},
    {"schedule": "LSL"},
    {"schedule": "L2 S1 L3", "guidance": 1.0, "strength": 0.5},
]
KINDS = {"wan": 9, "ltx-condition": 17}
TAKEN = {"wan": (Source.VIDEO,)}
"""Beside what a kind takes anyway: an encoder of images encodes videos as well."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folders of so many images of another size and shape than any bundle's."""
    root = tmp_path_factory.mktemp("videos")

    def make(count: int) -> Path:
        folder = root / f"{count} frames"
        if not folder.exists():
            folder.mkdir()
            rows, columns = np.mgrid[:50, :90]
            for index in range(count):
                waves = [127 + 120 * np.sin((rows + each * columns) / 9 + index / 3) for each in (0, 1, 2)]
                Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).save(folder / f"{index}.png")
        return folder

    return make


def images(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(folder / f"{index}.png") for index in range(count)]


def ours(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        return generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()


def reference(checkpoints: Path, bundle: Bundle, job: Job, video: list[Image.Image]) -> Floats:
    """Final latents, of pipelines whose transformer is swapped between the steps."""
    pipe, transformers = diffusers_reference.load(checkpoints)
    models = [step.model for step in compile_job(job, bundle.manifest).steps]
    geometry, final = bundle.manifest.geometry, list[torch.Tensor]()

    def swap(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        final[:] = [values["latents"]]
        pipe.transformer = transformers[models[min(step + 1, len(models) - 1)]]
        return {}

    strength: dict[str, Any]
    if isinstance(pipe, LTXConditionPipeline):
        pixels = pipe.video_processor.preprocess_video(video, geometry.height, geometry.width)
        mode = pipe.vae.encode(pixels).latent_dist.mode()
        latents = pipe._normalize_latents(mode, pipe.vae.latents_mean, pipe.vae.latents_std).detach()
        strength = {"denoise_strength": job.strength, "latents": latents, "num_frames": geometry.frames}
    else:
        parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
        pipe = WanVideoToVideoPipeline(**parts)
        pipe.set_progress_bar_config(disable=True)
        strength = {"strength": job.strength, "video": video}
    pipe.transformer = transformers[models[0]]
    pipe(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=geometry.width,
        height=geometry.height,
        num_inference_steps=job.steps,
        guidance_scale=bundle.manifest.pipeline.guidance if job.guidance is None else job.guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        output_type="latent",
        callback_on_step_end=swap,
        **strength,
    )
    (packed,) = final
    if packed.ndim == 3:
        packed = LTXPipeline._unpack_latents(packed, *geometry.latent_shape[1:], 1, 1)
    return packed.numpy()


@pytest.mark.parametrize("kind", ["ltx-condition", pytest.param("wan", marks=pytest.mark.long)])
def test_latents_equal_diffusers(
    kind: str, build: Build, checkpoints: Callable[[str], Path], folders: Callable[[int], Path]
) -> None:
    bundle, count = build(kind, conditions=TAKEN.get(kind)), KINDS[kind]
    for case in CASES:
        job = dataclasses.replace(JOB, video=str(folders(count)), **case)  # type: ignore[arg-type] # a table of fields
        expected = reference(checkpoints(kind), bundle, job, images(folders(count), count))
        assert relative_error(ours(bundle, job), expected) < TOLERANCE, case
    # And not what text alone gives.
    alone = dataclasses.replace(JOB, strength=None, fit="crop")
    assert relative_error(ours(bundle, alone), expected) > 0.1


def test_from_the_command_line_and_from_python(
    build: Build, folders: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, video = build("ltx-condition"), folders(20)

    def run(*words: str) -> tuple[int, str, str]:
        line = [str(bundle.folder), "--prompt", "x", "--video", str(video), "--steps", "4", "--device", "cpu", *words]
        with pytest.raises(SystemExit) as ended:
            main(line)
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.out, " ".join(told.err.split())

    out, latents, inputs = tmp_path / "a.npy", tmp_path / "z.npy", tmp_path / "inputs.safetensors"
    code, _, told = run("--strength", "0.5", "--out", str(out), "--save-latents", str(latents))
    assert code == 0, told
    assert np.load(out).shape == (17, 64, 96, 3)
    assert "17% of it is cut off; --fit letterbox would keep all of it." in told
    assert "20 frames is longer than 17 frames; its first 17 are taken." in told
    with flowblending.open(bundle.folder, device="cpu") as sampler, pytest.warns(UserWarning, match="its first 17"):
        made = sampler.generate("x", video=str(video), strength=0.5, steps=4)
        assert np.array_equal(np.from_dlpack(made.latents()), np.load(latents))

    code, shown, _ = run("--strength", "0.5", "--dry-run")
    assert code == 0
    assert "strength  0.5: begins with step 3 of 4, at sigma" in shown
    job = Job(prompt="x", video=str(video), strength=0.5, steps=4)
    sigma = compile_job(job, bundle.manifest).steps[0].sigma
    clean = []
    for seed in (0, 1):
        assert run("--strength", "0.5", "--seed", str(seed), "--emit-inputs", str(inputs))[0] == 0
        with safe_open(inputs, "np") as written:
            begun = written.get_tensor("latents")
        clean.append(begun - np.float32(sigma) * draw_latents(seed, begun.shape[1:])[0])
        inputs.unlink()
    # What is left without the noise is the video, whatever the seed.
    np.testing.assert_allclose(clean[0], clean[1], rtol=0, atol=1e-6)

    video = folders(5)
    code, _, told = run("--strength", "0.5", "--out", str(tmp_path / "b.npy"))
    assert code == 2
    assert "5 frames has 5 frames, but the video that is made has 17; give a longer one" in told
    assert not (tmp_path / "b.npy").exists()
