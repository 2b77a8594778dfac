"""The whole path against diffusers: same prompt, same seed, same latents and frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowblending.engine.bundle import Bundle
from flowblending.engine.console import Console
from flowblending.runtime.place import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import Job, compile_job
from flowblending.runtime.noise import TorchNormal
from flowblending.runtime.pipeline import Pipeline
from tests import reference
from tests.conftest import Build
from tests.reference import Floats

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
        latents = pipeline.noise(noise)
        sample = pipeline.sample(program, latents, pipeline.encode(job, program, print))
        return np.concatenate(list(pipeline.decode(sample.latents, noise)), axis=1)
    finally:
        pipeline.close()


KINDS = ["wan", "ltx", "ltx-condition"]
CASES = [
    {"schedule": "LLL"},
    {"schedule": "SSS"},
    {"schedule": "LSL"},
    {"schedule": "L1 S2 L1 S2"},
    {"schedule": "LSL", "guidance": 1.0},
    {"schedule": "LLL", "guidance": 1.0, "steps": 1, "seed": 2**31 + 5},
    {"schedule": "S1 L1", "steps": 2, "guidance": 7.5, "negative_prompt": None},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_latents_equal_diffusers(
    kind: str, case: dict[str, object], build: Build, checkpoints: Callable[[str], Path]
) -> None:
    bundle = build(kind)
    job = dataclasses.replace(JOB, **case)  # type: ignore[arg-type] # the cases are a table of fields
    expected, _ = reference.run(checkpoints(kind), bundle.manifest, job)
    assert reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "size", "frames"), [("wan", "64x32", 13), ("ltx", "64x128", 9), ("ltx-condition", "64x64", 25)]
)
def test_another_geometry(kind: str, size: str, frames: int, build: Build, checkpoints: Callable[[str], Path]) -> None:
    bundle = build(kind, size=size, frames=frames)
    job = dataclasses.replace(JOB, schedule="LSL", steps=4)
    expected, _ = reference.run(checkpoints(kind), bundle.manifest, job)
    assert reference.relative_error(ours(bundle, job), expected) < LATENT_TOLERANCE


@pytest.mark.parametrize("kind", ["wan", "ltx-condition"])
def test_frames_equal_diffusers(kind: str, build: Build, checkpoints: Callable[[str], Path]) -> None:
    """LTX 0.9.1 is left out: its decoder draws noise from torch's global generator (see test_ltx_vae)."""
    bundle = build(kind)
    job = dataclasses.replace(JOB, schedule="LSL", steps=3)
    _, expected = reference.run(checkpoints(kind), bundle.manifest, job, decode=True)
    assert expected is not None
    frames = our_frames(bundle, job)
    assert frames.shape == expected.shape
    assert np.abs(frames.clip(-1, 1) - expected).max() < FRAME_TOLERANCE


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_batched_guidance_equals_two_calls(kind: str, build: Build) -> None:
    bundle = build(kind)
    one, two = (ours(bundle, dataclasses.replace(JOB, batched_guidance=batched)) for batched in (True, False))
    assert reference.relative_error(one, two) < LATENT_TOLERANCE
