"""A checkpoint with two experts against diffusers' WanPipeline, which has them too: transformer and transformer_2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.dry_run import plan_lines
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support import diffusers_reference
from tests.support.diffusers_reference import Floats

pytestmark = [pytest.mark.slow, pytest.mark.long]

JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=6)
STEPS = (999, 937, 857, 750, 600, 376)
"""Timesteps of six steps with a shift of 3."""
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle(build: Build) -> Bundle:
    """Two experts and two models beside them."""
    return build("wan-experts")


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    """All engines of the bundle, opened once."""
    made = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(checkpoints: Callable[[str], Path]) -> tuple[WanPipeline, dict[str, Any]]:
    """The pipeline, and all transformers."""
    pipe, transformers = diffusers_reference.load(checkpoints("wan-experts"))
    return pipe, transformers


def expected(reference: tuple[WanPipeline, dict[str, Any]], job: Job, letters: str, boundary: float) -> Floats:
    """WanPipeline, with both of its transformers swapped for another model where a letter asks for it."""
    pipe, transformers = reference
    experts = {"L": ("large_high", "large_low"), "H": ("large_high",) * 2, "W": ("large_low",) * 2}
    places = [experts.get(letter, ({"S": "small", "D": "draft"}.get(letter, ""),) * 2) for letter in letters]

    def swap(pipe: Any, step: int, _timestep: Any = None, _values: Any = None) -> dict[str, Any]:
        high, low = places[min(step + 1, len(places) - 1)]
        pipe.transformer, pipe.transformer_2 = transformers[high], transformers[low]
        return {}

    pipe.register_to_config(boundary_ratio=boundary)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    swap(pipe, -1)
    found: Floats = pipe(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=32,
        height=48,
        num_frames=9,
        num_inference_steps=len(letters),
        guidance_scale=5.0 if job.guidance is None else job.guidance,
        guidance_scale_2=job.guidance_2,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        output_type="latent",
        callback_on_step_end=swap,
    ).frames.numpy()
    return found


def ours(pipeline: Pipeline, job: Job, boundary: float) -> Floats:
    manifest = pipeline.bundle.manifest
    first, *others = manifest.models
    moved = manifest.model_copy(update={"models": (first.model_copy(update={"boundary": boundary}), *others)})
    held = dataclasses.replace(pipeline, bundle=dataclasses.replace(pipeline.bundle, manifest=moved))
    return generate(held, job, None, Console(quiet=True)).latents


# Where another model takes a step below the boundary, WanPipeline gives it the second scale; a stage's own says so.
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "LLL": ({"schedule": "LLL"}, 0.875),
    "both scales": ({"schedule": "LLL", "guidance": 4.0, "guidance_2": 3.0}, 0.875),
    "SSS": ({"schedule": "SSS"}, 0.875),
    "LSL": ({"schedule": "LSL"}, 0.8),
    "LSL, both scales": ({"schedule": "L2 S2:g3 L2", "guidance": 4.0, "guidance_2": 3.0}, 0.9),
    "odd runs": ({"schedule": "S1 L2 D1:g2.5 L1 S1:g2.5", "guidance_2": 2.5}, 0.8),
    "the low-noise expert without guidance": ({"schedule": "L6", "guidance": 3.5, "guidance_2": 1.0}, 0.875),
    "exactly on a step": ({"schedule": "L6", "guidance_2": 3.0}, STEPS[2] / 1000),
    "one above a step": ({"schedule": "L6", "guidance_2": 3.0}, (STEPS[2] + 1) / 1000),
    "from the first step on": ({"schedule": "L6", "guidance_2": 3.0}, 1.0),
    "never": ({"schedule": "L6", "guidance_2": 3.0}, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_latents_equal_wan_pipeline(
    case: str, pipeline: Pipeline, reference: tuple[WanPipeline, dict[str, Any]]
) -> None:
    options, boundary = CASES[case]
    job = dataclasses.replace(JOB, **options)
    pipe = pipeline.bundle.manifest.pipeline
    letters = "".join(StageSchedule.parse(job.schedule, 6, pipe.early, pipe.late).letters)
    wanted = expected(reference, job, letters, boundary)
    assert diffusers_reference.relative_error(ours(pipeline, job, boundary), wanted) < TOLERANCE


def test_the_experts_letters_are_the_model(pipeline: Pipeline, bundle: Bundle) -> None:
    """Bit for bit, and the dry run says which engine runs where."""
    assert [(each.letter, each.letters) for each in bundle.manifest.models] == [("L", ("H", "W")), ("S", ()), ("D", ())]
    whole, alone = (dataclasses.replace(JOB, schedule=text, guidance_2=3.0) for text in ("L6", "H2 W4"))
    assert compile_job(alone, bundle.manifest).steps == compile_job(whole, bundle.manifest).steps
    np.testing.assert_array_equal(ours(pipeline, whole, 0.875), ours(pipeline, alone, 0.875))
    assert tuple(step.timestep for step in compile_job(whole, bundle.manifest).steps) == STEPS
    lines = plan_lines(bundle, whole, "cpu")
    assert [line.split()[1:3] for line in lines if line.startswith("  steps")] == [
        ["1-2", "large_high"],
        ["3-6", "large_low"],
    ]
    assert "calls     large_high x 4, large_low x 8, small x 0, draft x 0" in lines
