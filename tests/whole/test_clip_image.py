"""Image to video through CLIP against diffusers' pipelines: Wan 2.1, its first and last frame, and SkyReels-V2."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.clip_checkpoints import TOKENS, WIDTH
from flowblending import UsageError
from flowblending.contracts.conditions import IMAGE_CHANNELS, IMAGE_TOKENS
from flowblending.contracts.graph import IMAGE_ENCODER, LARGE, SMALL
from flowblending.engine.backends.protocol import Engine
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.dry_run import plan_lines
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.memory.plan import PHASES
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support.diffusers_reference import Floats, relative_error
from tests.support.image_reference import Reference, open_reference, reference_latents

pytestmark = [pytest.mark.slow, pytest.mark.long]

TOLERANCE = 1e-4
JOB = Job(prompt="A cat walks on the grass.", negative_prompt="blurry", seed=3, steps=6, fit="stretch")

IMAGES = {"wan-clip": 1, "wan-ends": 2, "skyreels": 1}
"""How many there have to be, by kind of checkpoint."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two images of another size and shape than the bundles' videos; the second is for the last frame."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = [str(folder / f"{name}.png") for name in ("first", "last")]
    for name in names:
        Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(name)
    return names[0], f"{names[1]}@8"


@pytest.fixture(scope="module", params=list(IMAGES))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def pipeline(kind: str, build: Build) -> Iterator[Pipeline]:
    bundle = build(kind)
    made = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(kind: str, checkpoints: Callable[[str], Path]) -> Reference:
    return open_reference(checkpoints, kind)


@pytest.fixture
def job(kind: str, files: tuple[str, str]) -> Job:
    return dataclasses.replace(JOB, image=files[: IMAGES[kind]])


def ours(pipeline: Pipeline, job: Job) -> Floats:
    return generate(pipeline, job, None, Console(quiet=True)).latents


@pytest.mark.parametrize(("schedule", "guidance"), list(itertools.product(("LLL", "SSS", "LSL"), (None, 1.0))))
def test_latents_equal_diffusers(
    schedule: str, guidance: float | None, job: Job, pipeline: Pipeline, reference: Reference
) -> None:
    job = dataclasses.replace(job, schedule=schedule, guidance=guidance)
    models = {step.model for step in compile_job(job, pipeline.bundle.manifest).steps}
    assert models == {LARGE if letter == "L" else SMALL for letter in schedule}
    assert relative_error(ours(pipeline, job), reference_latents(reference, pipeline.bundle, job)) < TOLERANCE


def test_what_clip_sees_matters(job: Job, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """By far more than the tolerance, with the same channels beside the latents."""
    seen, plain = pipeline.image_tokens, ours(pipeline, job)
    monkeypatch.setattr(pipeline, "image_tokens", lambda images: -seen(images))
    assert relative_error(ours(pipeline, job), plain) > 10 * TOLERANCE


def test_by_phases_nothing_else_comes_out(job: Job, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders are closed before the first transformer is opened."""
    phases = Pipeline(bundle=pipeline.bundle, device=pipeline.device, machine=MachineSettings(memory=PHASES))
    opened: list[set[str]] = []
    get = phases.engines.get

    def watched(name: str) -> Engine:
        found = get(name)
        opened.append({each for each in pipeline.bundle.manifest.components if phases.engines.is_open(each)})
        return found

    monkeypatch.setattr(phases.engines, "get", watched)
    try:
        assert np.array_equal(ours(phases, job), ours(pipeline, job))
    finally:
        phases.close()
    assert any(IMAGE_ENCODER in each for each in opened)
    assert not any(IMAGE_ENCODER in each and each & {LARGE, SMALL} for each in opened)


def test_the_bundle(kind: str, files: tuple[str, str], job: Job, pipeline: Pipeline) -> None:
    """What it declares, and what is refused before work."""
    manifest, count = pipeline.bundle.manifest, IMAGES[kind]
    spec = manifest.pipeline
    assert [each.name for each in spec.conditions] == ["text", IMAGE_CHANNELS, IMAGE_TOKENS]
    assert (spec.conditions[-1].shape, spec.conditions[-1].images) == (("batch", count * TOKENS, WIDTH), count)
    assert IMAGE_ENCODER in manifest.components
    lines = plan_lines(pipeline.bundle, job, "cpu")
    assert [line for line in lines if line.startswith("image ")] == [
        f"image     {name if '@' in name else f'{name}@0'}:1, stretch" for name in job.image
    ]
    wrong = {
        (): "from its first frame.*, and none was given",
        files: "is given for frame 8, but the models of this bundle take one image, whole, as the first frame: --image",
        files[:1]: "from its first frame to its last, which was not given; give both: --image .* --image .*@8",
    }
    del wrong[files[:count]]
    for image, said in wrong.items():
        for refused in (ours, lambda one, job: plan_lines(one.bundle, job, "cpu")):
            with pytest.raises(UsageError, match=said):
                refused(pipeline, dataclasses.replace(JOB, image=image))
