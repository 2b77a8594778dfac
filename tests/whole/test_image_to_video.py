"""LTX image-to-video against diffusers: same files, same seed, same latents, for every schedule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline, LTXImageToVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from safetensors.numpy import load_file

import flowblending
from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.contracts.graph import VAE_ENCODER, Precision
from flowblending.contracts.program import GIVEN
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.conditions.given import read_given
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate, write_inputs
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import plan_job
from flowblending.runtime.program.program_file import ProgramFile
from flowblending.runtime.prompt_file import parse_jobs
from flowblending.runtime.sampler.loop import Sampler
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support import diffusers_reference
from tests.support.diffusers_reference import Floats, relative_error
from tests.support.plans import RTX, needs_rtx

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=5, fit="stretch")
TAKEN = (Source.IMAGE,)
_IMAGE_ALONE = [("ltx", "LLL", 3.0, ("cat.png",)), ("ltx", "SSS", 1.0, ("cat.png",)), ("ltx", "LSL", 3.0, ("cat.png",))]
CASES = [
    *(pytest.param(*case, marks=pytest.mark.long) for case in _IMAGE_ALONE),
    ("ltx-condition", "LLL", 3.0, ("cat.png",)),
    ("ltx-condition", "SSS", 1.0, ("cat.png:0.6",)),
    ("ltx-condition", "LSL", 3.0, ("cat.png", "end.png@16:0.8")),
    ("ltx-condition", "LSL", 1.0, ("clip@0:0.9", "end.png@16")),
    ("ltx-condition", "LSL", 3.0, ("cat.png@8", "clip@8:0.7")),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images and a clip of ten frames, of another size and shape than the bundles'."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "clip").mkdir()
    random = np.random.default_rng(0)
    for name in ("cat.png", "end.png", *(f"clip/{index}.png" for index in range(10))):
        Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(folder / name)
    return folder


def ours(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        return generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()


def reference(checkpoints: Path, bundle: Bundle, job: Job) -> Floats:
    """Final latents, of a pipeline whose transformer is swapped between the steps."""
    loaded, transformers = diffusers_reference.load(checkpoints)
    condition = bundle.manifest.pipeline.pipeline == "LTXConditionPipeline"
    pipe = (LTXConditionPipeline if condition else LTXImageToVideoPipeline)(**loaded.components)
    models = [step.model for step in compile_job(job, bundle.manifest).steps]
    pipe.register_modules(transformer=transformers[models[0]])

    def swap(pipe: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < len(models):
            pipe.register_modules(transformer=transformers[models[step + 1]])
        return values

    found: dict[str, Any] = {}
    given = [read_given(text) for text in job.image]
    if condition:
        found["conditions"] = [
            LTXVideoCondition(
                image=None if each.path.is_dir() else Image.open(each.path),
                video=[Image.open(each.path / f"{index}.png") for index in range(10)] if each.path.is_dir() else None,
                frame_index=each.frame,
                strength=each.strength,
            )
            for each in given
        ]
    else:
        found["image"] = Image.open(given[0].path)
    geometry = bundle.manifest.geometry
    latents = pipe(
        **found,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=geometry.width,
        height=geometry.height,
        num_frames=geometry.frames,
        frame_rate=bundle.manifest.pipeline.frame_rate,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        callback_on_step_end=swap,
        output_type="latent",
    ).frames
    if latents.dim() == 3:
        latents = LTXImageToVideoPipeline._unpack_latents(latents, *geometry.latent_shape[1:])
    return np.asarray(latents.numpy(), np.float32)


@pytest.mark.parametrize(("kind", "schedule", "guidance", "images"), CASES)
def test_latents_equal_diffusers(
    kind: str,
    schedule: str,
    guidance: float,
    images: tuple[str, ...],
    build: Build,
    checkpoints: Callable[[str], Path],
    files: Path,
) -> None:
    bundle = build(kind, conditions=TAKEN)
    named = tuple(f"{files}/{each}" for each in images)
    job = dataclasses.replace(JOB, schedule=schedule, guidance=guidance, image=named)
    made = ours(bundle, job)
    assert relative_error(made, reference(checkpoints(kind), bundle, job)) < TOLERANCE
    assert relative_error(ours(bundle, dataclasses.replace(job, image=())), made) > 100 * TOLERANCE


def test_every_front_end_takes_them(build: Build, files: Path) -> None:
    """Python, fb-run and a prompt file, whose images lie beside it, make the same latents."""
    bundle = build("ltx-condition", conditions=TAKEN)
    expected = ours(bundle, dataclasses.replace(JOB, image=(f"{files}/cat.png", f"{files}/end.png@16")))
    options: dict[str, Any] = {"negative_prompt": "blurry", "seed": 3, "steps": 5, "fit": "stretch"}
    with flowblending.open(bundle.folder, device="cpu") as sampler:
        images = [f"{files}/cat.png", f"{files}/end.png@16"]
        made = sampler.generate(JOB.prompt, image=images, **options)
        assert np.array_equal(np.asarray(made.latents()), expected)
    line = json.dumps({"prompt": JOB.prompt, "image": ["cat.png", "end.png@16"], **options})
    prompts = files / "prompts.jsonl"
    prompts.write_text(line + "\n")
    (read,) = parse_jobs(prompts.read_text(), prompts, Job(prompt=""))
    assert read.job is not None
    assert np.array_equal(ours(bundle, read.job), expected)


@pytest.mark.parametrize(
    ("kind", "images", "message"),
    [
        (
            "ltx-condition",
            ["cat.png@15"],
            r"cat.png is given for frame 15, but latents of ltx begin at every 8th frame",
        ),
        ("ltx-condition", ["cat.png@8"] * 5, "take 5 latent frames, but the models of this bundle have room for 4"),
        pytest.param("ltx", ["cat.png@8"], "takes one image, whole, as the first frame", marks=pytest.mark.long),
        pytest.param(
            "ltx", ["cat.png"] * 2, "2 images were given, but LTXImageToVideoPipeline", marks=pytest.mark.long
        ),
        ("wan", ["cat.png"], r"An image was given, but this bundle takes .* --conditions image"),
    ],
)
def test_what_is_refused(kind: str, images: list[str], message: str, build: Build, files: Path) -> None:
    bundle = build(kind, conditions=() if kind == "wan" else TAKEN)
    with pytest.raises(UsageError, match=message):
        ours(bundle, dataclasses.replace(JOB, image=tuple(f"{files}/{each}" for each in images)))


def test_a_program_file_and_its_inputs_say_all_that_a_run_takes(build: Build, files: Path, tmp_path: Path) -> None:
    bundle = build("ltx-condition", conditions=TAKEN)
    job = dataclasses.replace(JOB, image=(f"{files}/cat.png", f"{files}/end.png@16:0.8"), steps=3)
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    written, inputs = tmp_path / "program.json", tmp_path / "inputs.safetensors"
    ProgramFile.for_bundle(plan_job(job, bundle.manifest).program, bundle.manifest).write(written)
    write_inputs(pipeline, job, inputs, Console(quiet=True))
    file, arrays = ProgramFile.read(written), load_file(inputs)
    program, own = file.program, bundle.manifest.geometry.latent_shape
    assert (program.extra, arrays["latents"].shape[2] - own[1]) == (1, 1)
    assert {each.key for each in file.engines["large"].inputs} == {
        "latents", "timestep", "text", "text_mask", "frame_rate", "frame_times"
    }  # fmt: skip
    conditions: dict[str, dict[str, Tensor]] = {}
    for branch in program.branches():
        names = [name for name in arrays if name.startswith(f"{branch}.")]
        conditions[branch] = {name.partition(".")[2]: Tensor.of(arrays[name]) for name in names}
    given = {slot: arrays[f"{GIVEN}.{slot}"] for slot in program.given}
    engines = {name: pipeline.engines.get(name) for name in file.engines}
    result = Sampler(engines, pipeline.device).prepare(program, conditions, given).run(arrays["latents"])
    np.testing.assert_array_equal(result.latents.numpy()[:, :, program.extra :], ours(bundle, job))
    pipeline.close()


@pytest.mark.long
@needs_rtx
def test_real_plans_of_every_graph(build: Build) -> None:
    """The transformers with a timestep for every latent frame, and the encoder, are what the compiler takes."""
    bundle = build("ltx-condition", precision="fp16", backend=RTX, targets=("sm89",), conditions=TAKEN)
    components = bundle.manifest.components
    for name in ("large", "small", VAE_ENCODER):
        assert (components[name].backend, components[name].targets) == (RTX, ("sm89",))
    assert components[VAE_ENCODER].spec.precision is Precision.FP32
    assert components["large"].spec.timestep_shape(bundle.manifest.geometry.latent_shape, 2) == (2, 3)
