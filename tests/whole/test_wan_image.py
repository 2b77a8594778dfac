"""Wan image to video against diffusers' WanImageToVideoPipeline: same files, same seed, same latents."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowblending import UsageError
from flowblending.contracts.conditions import IMAGE_CHANNELS
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.dry_run import plan_lines
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job, job_check
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support.diffusers_reference import Floats, relative_error
from tests.support.image_reference import Reference, open_reference, reference_latents

pytestmark = [pytest.mark.slow, pytest.mark.long]

TOLERANCE = 1e-4
JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=6, fit="stretch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two images of another size and shape than the bundle's videos."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = [str(folder / f"{name}.png") for name in ("first", "last")]
    for name in names:
        Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(name)
    return names[0], names[1]


@pytest.fixture(scope="module")
def pipeline(build: Build) -> Iterator[Pipeline]:
    bundle = build("wan-image")
    made = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(checkpoints: Callable[[str], Path]) -> Reference:
    return open_reference(checkpoints, "wan-image")


def ours(pipeline: Pipeline, job: Job) -> Floats:
    return generate(pipeline, job, None, Console(quiet=True)).latents


@pytest.mark.parametrize(
    ("schedule", "guidance", "last"),
    [
        *itertools.product(("LLL", "SSS", "LSL"), (None, 1.0), (False,)),
        ("LSL", None, True),
    ],
)
def test_latents_equal_diffusers(
    schedule: str,
    guidance: float | None,
    last: bool,
    files: tuple[str, str],
    pipeline: Pipeline,
    reference: Reference,
) -> None:
    image = (files[0], f"{files[1]}@8") if last else files[:1]
    job = dataclasses.replace(JOB, schedule=schedule, guidance=guidance, image=image)
    models = {step.model for step in compile_job(job, pipeline.bundle.manifest).steps}
    assert models == {"small"} if schedule == "SSS" else models >= {"large_high", "large_low"}
    assert relative_error(ours(pipeline, job), reference_latents(reference, pipeline.bundle, job)) < TOLERANCE


def test_the_images_matter(files: tuple[str, str], pipeline: Pipeline) -> None:
    """By far more than the tolerance."""
    jobs = [dataclasses.replace(JOB, image=image) for image in ((files[0],), (files[1],), (files[0], f"{files[1]}@8"))]
    one, other, both = (ours(pipeline, job) for job in jobs)
    for found in (other, both):
        assert relative_error(found, one) > 10 * TOLERANCE


def test_the_bundle(files: tuple[str, str], pipeline: Pipeline) -> None:
    """What it declares, and what is refused before work."""
    manifest = pipeline.bundle.manifest
    assert manifest.pipeline.latent_channels == 16
    assert [each.name for each in manifest.pipeline.conditions] == ["text", IMAGE_CHANNELS]
    for name in manifest.transformers:
        shapes = {each.name: each.shape[1:2] for each in manifest.components[name].spec.inputs}
        assert (shapes["latents"], shapes[IMAGE_CHANNELS]) == ((16,), (20,))
    with pytest.raises(UsageError, match="A video was given, but this bundle takes image beside text"):
        compile_job(dataclasses.replace(JOB, video="in.mp4", strength=0.5), manifest)
    for refused in (
        lambda: ours(pipeline, JOB),
        lambda: plan_lines(pipeline.bundle, JOB, "cpu"),
        lambda: job_check(manifest)(JOB),
    ):
        with pytest.raises(UsageError, match="from its first frame, and none was given"):
            refused()
    lines = plan_lines(pipeline.bundle, dataclasses.replace(JOB, image=files[:1]), "cpu")
    assert f"image     {files[0]}@0:1, stretch" in lines
