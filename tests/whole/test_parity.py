"""The whole path against diffusers: same prompt, same seed, same latents and frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flowblending import FlowBlendingError
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job, job_conditioning
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.console import Console
from tests.conftest import SEVERAL, Build
from tests.support import diffusers_reference
from tests.support.diffusers_reference import Floats, Visit

pytestmark = pytest.mark.slow

JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry, 静态", seed=3, steps=6)
LATENT_TOLERANCE = 1e-4
FRAME_TOLERANCE = 1e-3


def ours(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        return generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()


def our_frames(bundle: Bundle, job: Job) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        program = compile_job(job, bundle.manifest)
        noise = TorchNormal(job.seed)
        latents = noise.normal((1, *program.latent_shape))
        sample = pipeline.sample(program, latents, pipeline.encode(job, program, print))
        conditioning = job_conditioning(job, bundle.manifest)
        chunks = pipeline.decode(sample.latents, noise, conditioning, floats=True)
        return np.concatenate([chunk.frames for chunk in chunks], axis=1)
    finally:
        pipeline.close()


KINDS = ["wan", "ltx", "ltx-condition"]
CASES = [
    {"schedule": "LLL"},
    {"schedule": "SSS"},
    {"schedule": "LSL"},
    {"schedule": "L1 S2 L1 S2"},
    {"schedule": "LSL", "guidance": 1.0},
    {"schedule": "LLL", "guidance": 1.0, "steps": 2, "seed": 2**31 + 5},
    {"schedule": "S1 L1", "steps": 2, "guidance": 7.5, "negative_prompt": None},
]


def test_a_single_step(build: Build, checkpoints: Callable[[str], Path]) -> None:
    """LTX with dynamic shift is left out: diffusers divides zero by zero there."""
    bundle = build("wan")
    job = dataclasses.replace(JOB, steps=1)
    expected, _ = diffusers_reference.run(checkpoints("wan"), bundle.manifest, job)
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_latents_equal_diffusers(
    kind: str, case: dict[str, object], build: Build, checkpoints: Callable[[str], Path]
) -> None:
    bundle = build(kind)
    job = dataclasses.replace(JOB, **case)  # type: ignore[arg-type] # the cases are a table of fields
    expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize("schedule", ["LSL", "L4 S9 L7"])
def test_twenty_steps_of_dpm_solver(schedule: str, build: Build, checkpoints: Callable[[str], Path]) -> None:
    """The authors' halved number of steps: WanPipeline with diffusers' DPM-Solver++ and two models."""
    bundle = build("wan")
    job = dataclasses.replace(JOB, schedule=schedule, solver="dpm++", steps=20)
    expected, _ = diffusers_reference.run(checkpoints("wan"), bundle.manifest, job)
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("wan", {"shift": 5.0}),
        ("wan", {"shift": 12.0, "solver": "dpm++", "steps": 12}),
        ("wan", {"shift": 3.0}),
        ("ltx", {"shift": 5.0}),
        ("ltx", {"shift": 1.0}),
    ],
    ids=["unipc-5", "dpm-12", "unipc-3", "in-place-of-the-dynamic-5", "in-place-of-the-dynamic-1"],
)
def test_a_shift_is_that_of_the_schedulers(
    kind: str, case: dict[str, object], build: Build, checkpoints: Callable[[str], Path]
) -> None:
    bundle = build(kind)
    job = dataclasses.replace(JOB, **case)  # type: ignore[arg-type] # the cases are a table of fields
    expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
    made = ours(bundle, job)
    assert diffusers_reference.relative_error(made, expected) < LATENT_TOLERANCE
    if case != {"shift": 3.0}:  # the checkpoint's own
        other = ours(bundle, dataclasses.replace(job, shift=None))
        assert diffusers_reference.relative_error(other, expected) > 10 * LATENT_TOLERANCE


@pytest.mark.parametrize(("shift", "boundary"), [(3.0, 0.9), (5.0, 0.875), (12.0, 0.8)])
def test_a_boundary_by_noise_level_is_that_of_wan_pipeline(
    shift: float, boundary: float, build: Build, checkpoints: Callable[[str], Path]
) -> None:
    """Its own rule, with the small model as the expert for low noise: it runs where t < boundary_ratio * 1000."""
    bundle = build("wan")
    job = dataclasses.replace(JOB, steps=8, schedule="LS", boundaries=f"{boundary}", shift=shift)
    pipe, transformers = diffusers_reference.load(checkpoints("wan"))
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=shift)
    pipe.register_modules(transformer_2=transformers["small"])
    pipe.register_to_config(boundary_ratio=boundary)
    expected = pipe(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=bundle.manifest.geometry.width,
        height=bundle.manifest.geometry.height,
        num_frames=bundle.manifest.geometry.frames,
        num_inference_steps=8,
        guidance_scale=bundle.manifest.pipeline.guidance,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        output_type="latent",
    ).frames
    assert diffusers_reference.relative_error(ours(bundle, job), expected.numpy()) < LATENT_TOLERANCE


def visit(
    letter: str,
    timestep: float,
    guidance: float,
    *,
    sigma: float | None = None,
    fresh: bool = False,
    euler: bool = False,
) -> Visit:
    sigma = timestep / 1000 if sigma is None else sigma
    model = {"L": "large", "S": "small"}[letter]
    return Visit(model=model, sigma=sigma, timestep=timestep, guidance=guidance, fresh=fresh, euler=euler)


def test_a_distilled_stage_of_wan(build: Build, checkpoints: Callable[[str], Path]) -> None:
    """L-D-L: the large model's first steps end at the distilled one's first timestep, and its last begin anew."""
    bundle = build("wan")
    job = dataclasses.replace(JOB, schedule="L3 S3:g1:t880,785.5,700 L2", steps=8, guidance=6.0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(8)
    levels = list(zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), strict=False))
    expected = diffusers_reference.run_visits(
        checkpoints("wan"),
        bundle.manifest,
        job,
        [
            *(visit("L", timestep, 6.0, sigma=sigma) for timestep, sigma in levels[:3]),
            *(visit("S", timestep, 1.0, fresh=True) for timestep in (880.0, 785.5, 700.0)),
            *(visit("L", timestep, 6.0, sigma=sigma, fresh=i == 0) for i, (timestep, sigma) in enumerate(levels[6:])),
        ],
    )
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


def test_base_distilled_high_distilled_low(build: Build, checkpoints: Callable[[str], Path]) -> None:
    """Phases with transformer, guidance, timesteps and scheduler swapped; the pair's models take turns."""
    bundle = build("wan")
    schedule = "L@t965 S@t875:lightning4 L@t400:lightning4 S:g1:euler"
    job = dataclasses.replace(JOB, schedule=schedule, steps=10, guidance=6.0, shift=5.0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(10)
    levels = list(zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), strict=False))
    distilled = (("S", 937.5), ("L", 2500 / 3), ("L", 625.0))
    expected = diffusers_reference.run_visits(
        checkpoints("wan"),
        bundle.manifest,
        job,
        [
            *(visit("L", timestep, 6.0, sigma=sigma) for timestep, sigma in levels if timestep >= 965),
            *(visit(letter, timestep, 1.0, fresh=True, euler=True) for letter, timestep in distilled),
            *(
                visit("S", timestep, 1.0, sigma=sigma, fresh=True, euler=True)
                for timestep, sigma in levels
                if timestep < 400
            ),
        ],
    )
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


def test_a_distilled_stage_of_ltx(build: Build, checkpoints: Callable[[str], Path]) -> None:
    """By the timesteps that the bundle remembers of its small model, from 975 to above 618."""
    built = build("ltx-condition")
    large, small = built.manifest.models
    sampling = ModelSampling(timesteps=(1000.0, 993.7, 981.2, 975.0, 909.4, 725.0, 421.9), guidance=1.0)
    distilled = small.model_copy(update={"sampling": sampling})
    manifest = built.manifest.model_copy(update={"models": (large, distilled)})
    job = dataclasses.replace(JOB, schedule="L5 S3 L2:g2.5", steps=10, guidance=4.0)
    # LTXConditionPipeline's own levels at 10 steps: five of 5 each, then a parabola through 1 - 0.025 and 0.
    base = [1000, 995, 990, 985, 980, 975, *(1000 - 25 - 5 * i - 38 * i**2 for i in (1, 2, 3, 4))]
    expected = diffusers_reference.run_visits(
        checkpoints("ltx-condition"),
        manifest,
        job,
        [
            *(visit("L", timestep, 4.0) for timestep in base[:5]),
            *(visit("S", timestep, 1.0) for timestep in (975.0, 909.4, 725.0)),
            *(visit("L", timestep, 2.5) for timestep in base[8:]),
        ],
    )
    bundle = dataclasses.replace(built, manifest=manifest)
    assert compile_job(job, manifest).schedule == "L5 S3:g1:t975,909.4,725 L2:g2.5"
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "size", "frames"),
    [
        ("wan", None, None),
        ("wan", "32x48", 5),
        ("wan", "64x48", 13),
        ("ltx", None, 25),
        ("ltx", "64x128", 9),
    ],
)
def test_every_size_of_a_bundle(
    kind: str, size: str | None, frames: int | None, build: Build, checkpoints: Callable[[str], Path]
) -> None:
    """One bundle of single sizes and ranges; LTX's noise levels depend on the size."""
    sizes, counts = SEVERAL[kind]
    bundle = build(kind, size=sizes, frames=counts)
    job = dataclasses.replace(JOB, schedule="LSL", steps=4, size=size, frames=frames)
    expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.long
def test_another_geometry(build: Build, checkpoints: Callable[[str], Path]) -> None:
    bundle = build("ltx-condition", size="64x64", frames=25)
    job = dataclasses.replace(JOB, schedule="LSL", steps=4)
    expected, _ = diffusers_reference.run(checkpoints("ltx-condition"), bundle.manifest, job)
    assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


OTHERS = tuple(pytest.param(kind, marks=pytest.mark.long) for kind in ("wan-other", "ltx-0.9.0"))
"""Pairs of other shapes and of an older VAE, each a build of its own."""


@pytest.mark.parametrize("kind", OTHERS)
def test_other_configurations(kind: str, build: Build, checkpoints: Callable[[str], Path]) -> None:
    bundle = build(kind)
    for schedule in ("LLL", "L2 S1 L2"):
        job = dataclasses.replace(JOB, schedule=schedule, steps=5)
        expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
        assert diffusers_reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize("kind", ["wan", "ltx-condition", *OTHERS])
def test_frames_equal_diffusers(kind: str, build: Build, checkpoints: Callable[[str], Path]) -> None:
    """LTX 0.9.1 is left out: its decoder draws noise from torch's global generator (see test_ltx_vae)."""
    bundle = build(kind)
    job = dataclasses.replace(JOB, schedule="LSL", steps=3)
    _, expected = diffusers_reference.run(checkpoints(kind), bundle.manifest, job, decode=True)
    assert expected is not None
    frames = our_frames(bundle, job)
    assert frames.shape == expected.shape
    assert np.abs(frames.clip(-1, 1) - expected).max() < FRAME_TOLERANCE


@pytest.mark.parametrize(
    ("timestep", "scale"), [(0.0, 0.0), (0.05, 0.025), (0.3, 0.0), (0.0, 0.4), (None, 0.2), (0.2, None)]
)
def test_frames_of_a_conditioned_decoder_equal_diffusers(
    timestep: float | None, scale: float | None, build: Build, checkpoints: Callable[[str], Path]
) -> None:
    """The noise is drawn behind the initial latents'; without an option, the authors' 0.05 and 0.025."""
    bundle = build("ltx-condition")
    job = dataclasses.replace(JOB, schedule="LSL", steps=3, decode_timestep=timestep, decode_noise_scale=scale)
    _, expected = diffusers_reference.run(checkpoints("ltx-condition"), bundle.manifest, job, decode=True)
    assert expected is not None
    frames = our_frames(bundle, job)
    assert np.abs(frames.clip(-1, 1) - expected).max() < FRAME_TOLERANCE
    # The options matter: others give other frames by far more than the tolerance.
    other = our_frames(bundle, dataclasses.replace(job, decode_timestep=0.9, decode_noise_scale=0.9))
    assert np.abs(other.clip(-1, 1) - expected).max() > 10 * FRAME_TOLERANCE


@pytest.mark.parametrize("kind", ["ltx", "ltx-condition"])
@pytest.mark.parametrize(
    "case",
    [
        {"schedule": "LLL", "guidance_rescale": 0.7, "guidance": 40.0},
        {"schedule": "LSL", "guidance_rescale": 1.0, "guidance": 20.0},
        {"schedule": "L1 S2 L1 S2", "guidance_rescale": 0.3, "guidance": 40.0, "batched_guidance": False},
    ],
    ids=lambda case: "-".join(map(str, case.values())),
)
def test_guidance_rescale_equals_diffusers(
    kind: str, case: dict[str, object], build: Build, checkpoints: Callable[[str], Path]
) -> None:
    bundle = build(kind)
    job = dataclasses.replace(JOB, **case)  # type: ignore[arg-type] # the cases are a table of fields
    expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
    found = ours(bundle, job)
    assert diffusers_reference.relative_error(found, expected) < LATENT_TOLERANCE
    plain = ours(bundle, dataclasses.replace(job, guidance_rescale=None))
    # Random weights hardly tell the branches apart, so that only a high scale shows what is rescaled.
    changed = diffusers_reference.relative_error(plain, expected)
    assert changed > 10 * LATENT_TOLERANCE


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_batched_guidance_equals_two_calls(kind: str, build: Build) -> None:
    bundle = build(kind)
    one, two = (ours(bundle, dataclasses.replace(JOB, batched_guidance=batched)) for batched in (True, False))
    assert diffusers_reference.relative_error(one, two) < LATENT_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx", "tensorrt"])
@pytest.mark.skipif(gpu_architecture() is None, reason="needs an NVIDIA GPU")
def test_latents_on_a_gpu_equal_diffusers(
    kind: str, backend: str, build: Build, checkpoints: Callable[[str], Path]
) -> None:
    """Every back end that is installed, with engines compiled for the GPU that is here."""
    try:
        bundle = build(kind, backend=backend, precision="fp32,text_encoder=fp32")
        device = open_device("cuda", bundle.manifest)
    except FlowBlendingError as error:
        pytest.skip(str(error))
    job = dataclasses.replace(JOB, schedule="LSL")
    pipeline = Pipeline(bundle=bundle, device=device)
    try:
        latents = generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()
    expected, _ = diffusers_reference.run(checkpoints(kind), bundle.manifest, job)
    # TF32 matrix products keep 10 bits of the mantissa.
    assert diffusers_reference.relative_error(latents, expected) < 5e-3
