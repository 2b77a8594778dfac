"""Wan VACE against diffusers' WanVACEPipeline: same files, same seed, same latents."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from PIL import Image

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.conditions.given import read_given
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job, job_check
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import check_prompt
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support import manifests
from tests.support.diffusers_reference import Floats, relative_error

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=6, fit="stretch")
SCALES = {"large": [1.0, 0.5, 2.0], "small": [1.5]}
SAID = " ".join(f"{model}={','.join(map(str, each))}" for model, each in SCALES.items())
CASES: list[dict[str, Any]] = [
    {"schedule": "LLL"},
    {"schedule": "LLL", "video": True, "guidance": 1.0},
    {"schedule": "SSS", "video": True, "mask": True},
    {"schedule": "SSS", "video": True, "guidance": 1.0, "control_scale": SAID},
    {"schedule": "LSL", "video": True, "mask": True, "control_scale": SAID},
    {"schedule": "LSL", "video": True, "mask": True, "guidance": 1.0},
    {"schedule": "LSL", "reference": 1, "guidance": 1.0},
    {"schedule": "LLL", "reference": 2},
    {"schedule": "LSL", "reference": 2, "video": True, "mask": True, "control_scale": SAID},
    {"schedule": "LLL", "image": ("first",), "guidance": 1.0},
    {"schedule": "LSL", "image": ("first", "last@8")},
    {"schedule": "LSL", "image": ("first", "last@8"), "reference": 1, "guidance": 1.0},
]
_HERE = {"schedule": "LSL", "image": ("first", "last@8"), "reference": 2}
"""What `make test` compares."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video and its mask as folders of nine images, of another size and shape than the bundle's; and four images."""
    root = tmp_path_factory.mktemp("control")
    rows, columns = np.mgrid[:50, :90]
    for index in range(9):
        waves = [127 + 120 * np.sin((rows + each * columns) / 9 + index / 3) for each in (0, 1, 2)]
        pictures = {"video": np.stack(waves, axis=2), "mask": 255.0 * (columns > 30 + 4 * index) * (index > 0)}
        for name, picture in pictures.items():
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(root / name / f"{index}.png")
    random = np.random.default_rng(0)
    for name in ("first", "last", "one", "two"):
        Image.fromarray(random.integers(0, 256, (70, 40, 3)).astype(np.uint8)).save(root / f"{name}.png")
    return {path.stem: path for path in root.iterdir()}


def job_of(case: dict[str, Any], files: dict[str, Path]) -> Job:
    given: dict[str, Any] = {name: str(files[name]) if value is True else value for name, value in case.items()}
    if isinstance(case.get("reference"), int):
        given["reference"] = tuple(str(files[name]) for name in ("one", "two")[: case["reference"]])
    if "image" in case:
        named = (re.fullmatch(r"(\w+)(.*)", each) for each in case["image"])
        given["image"] = tuple(f"{files[each[1]]}{each[2]}" for each in named if each)
    return dataclasses.replace(JOB, **given)


def ours(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        return generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()


def reference(checkpoints: Path, bundle: Bundle, job: Job) -> Floats:
    """Final latents of the pipeline, its transformer swapped between the steps, and the scales with it."""
    pipe = WanVACEPipeline.from_pretrained(checkpoints / "large", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small = WanVACETransformer3DModel.from_pretrained(checkpoints / "small")
    transformers, models = (
        {"large": pipe.transformer, "small": small},
        [step.model for step in compile_job(job, bundle.manifest).steps],
    )
    scales = SCALES if job.control_scale else {name: [1.0] * len(each) for name, each in SCALES.items()}
    for name, transformer in transformers.items():
        stock = transformer.forward

        def forward(*given: Any, stock: Any = stock, name: str = name, **named: Any) -> Any:
            # The pipeline has one list of scales for one transformer.
            return stock(*given, **named | {"control_hidden_states_scale": torch.tensor(scales[name])})

        transformer.forward = forward
    geometry, final = bundle.manifest.geometry, list[torch.Tensor]()

    def swap(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        final[:] = [values["latents"]]
        pipe.transformer = transformers[models[min(step + 1, len(models) - 1)]]
        return {}

    size = (geometry.width, geometry.height)

    def pictures(folder: str | None) -> list[Image.Image] | None:
        if folder is None:
            return None
        return [Image.open(Path(folder) / f"{index}.png").resize(size, Image.Resampling.LANCZOS) for index in range(9)]

    video, mask = pictures(job.video), pictures(job.mask)
    if job.image:
        # As `prepare_video_and_mask` of the class's documentation has it.
        given = {
            each.frame: Image.open(each.path).resize(size, Image.Resampling.LANCZOS)
            for each in map(read_given, job.image)
        }
        video = [given.get(index) or Image.new("RGB", size, (128, 128, 128)) for index in range(9)]
        mask = [Image.new("L", size, 0 if index in given else 255) for index in range(9)]
        preprocess = pipe.preprocess_conditions

        def exact(*given_to: Any) -> Any:
            """With the grey that it calls exact, 127.5, of which 8-bit pictures have none."""
            values, places, references = preprocess(*given_to)
            return torch.where(places > 0.5, 0.0, values), places, references

        pipe.preprocess_conditions = exact

    pipe.transformer = transformers[models[0]]
    pipe(
        video=video,
        mask=mask,
        reference_images=[Image.open(each) for each in job.reference] or None,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=geometry.width,
        height=geometry.height,
        num_frames=geometry.frames,
        num_inference_steps=len(models),
        guidance_scale=bundle.manifest.pipeline.guidance if job.guidance is None else job.guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        output_type="latent",
        callback_on_step_end=swap,
    )
    return final[0][:, :, len(job.reference) :].numpy()


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [_HERE, *CASES],
    ids=lambda case: "-".join(map(str, case)) + f"-{case['schedule']}",
)
def test_latents_equal_diffusers(
    case: dict[str, Any], files: dict[str, Path], build: Build, checkpoints: Callable[[str], Path]
) -> None:
    bundle, job = build("wan-vace"), job_of(case, files)
    assert relative_error(ours(bundle, job), reference(checkpoints("wan-vace"), bundle, job)) < TOLERANCE


@pytest.mark.long
def test_the_control_matters(files: dict[str, Path], build: Build) -> None:
    """By far more than the tolerance, each of video, mask and scale."""
    bundle = build("wan-vace")
    job = job_of({"schedule": "LSL", "video": True, "mask": True}, files)
    found = ours(bundle, job)
    one = {"reference": (str(files["one"]),)}
    for change in ({"video": None, "mask": None}, {"mask": None}, {"control_scale": "0.2"}, one):
        assert relative_error(ours(bundle, dataclasses.replace(job, **change)), found) > 10 * TOLERANCE, change


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"mask": True}, "A mask was given, but no video"),
        ({"video": True, "strength": 0.5}, "takes a video as its control"),
        ({"control_scale": "large=1,1"}, "has 2 numbers, but large has 3 hints"),
        ({"image": ("first",), "video": True}, "An image was given as a frame of the video, .* and a video as well"),
        ({"image": ("first",), "mask": True}, "and a mask as well; leave one out, or give the image as a --reference"),
        ({"image": ("first:0.5",)}, "stays whole; leave the strength out"),
        ({"image": ("first", "last")}, "Two images are given for frame 0"),
        ({"image": ("last@9",)}, "but the video has 9 frames, from 0 to 8"),
        ({"reference": ("a.png",) * 4}, "4 reference images were given, but the models of this bundle have room for 3"),
        ({"reference": ("gone.png",)}, r"gone\.png"),
    ],
)
def test_refusals(case: dict[str, Any], said: str, files: dict[str, Path], build: Build) -> None:
    manifest, job = build("wan-vace").manifest, job_of(case, files)
    with pytest.raises(FlowBlendingError, match=said):
        check_prompt(job, manifest)
    if "gone" not in said:
        with pytest.raises(UsageError, match=said):
            job_check(manifest)(job)


@pytest.mark.parametrize("given", [{"control_scale": "1"}, {"mask": "mask.mp4"}, {"reference": ("face.png",)}])
def test_other_bundles_take_no_control(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"take no control|A reference image was given, .* take none"):
        compile_job(Job(prompt="", **given), manifests.write(tmp_path / "bundle"))
