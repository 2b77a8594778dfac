"""Prompt files whose lines give images and videos, to fb-calibrate and fb-compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowblending import UsageError
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.runtime.calibrate import cli as calibrate
from flowblending.runtime.calibrate.prompts import check_jobs, read_prompts
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.compare import cli as compare
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import plan_job
from flowblending.runtime.prompt_file import read_jobs
from flowblending.system.console import Console
from tests.conftest import Build

pytestmark = pytest.mark.slow

LINES: dict[str, list[dict[str, Any]]] = {
    "ltx-condition": [
        {"prompt": "a cat", "image": ["cat.png", "end.png@16:0.8"]},
        {"prompt": "a dog", "image": ["end.png"]},
    ],
    "wan-vace": [{"prompt": "a cat", "video": "clip", "mask": "mask.png", "control_scale": "0.8"}, {"prompt": "a dog"}],
    "wan-image": [{"prompt": "a cat", "image": ["cat.png"]}, {"prompt": "a dog", "image": ["cat.png", "end.png@8"]}],
}
KINDS = [pytest.param(kind, id=kind, marks=() if kind == "ltx-condition" else pytest.mark.long) for kind in LINES]


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[[str], Path]:
    """A prompt file beside its images, in another folder than that of the tests."""

    def write(kind: str) -> Path:
        folder, random = tmp_path / "given", np.random.default_rng(0)
        (folder / "clip").mkdir(parents=True)
        for name in ("cat.png", "end.png", *(f"clip/{index}.png" for index in range(9))):
            Image.fromarray(random.integers(0, 256, (48, 32, 3)).astype(np.uint8)).save(folder / name)
        Image.fromarray(np.repeat([[0, 255]], 16, axis=1).astype(np.uint8)).resize((32, 48)).save(folder / "mask.png")
        (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES[kind]))
        return folder / "prompts.jsonl"

    return write


def built(build: Build, kind: str) -> Bundle:
    return build(kind)


def call(program: Any, *arguments: object) -> int:
    code: int = program.run(program.parser().parse_args([*map(str, arguments), "--quiet", "--device", "cpu"]))
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibration_walks_what_is_run(
    kind: str, build: Build, prompts: Callable[[str], Path], tmp_path: Path
) -> None:
    """Steps with either model, and back again, are those of a run with the same images; and so it is calibrated."""
    shutil.copytree(built(build, kind).folder, tmp_path / "bundle")
    bundle, path = open_bundle(tmp_path / "bundle"), prompts(kind)
    lines = read_prompts(path, Job(prompt="", steps=4, guidance=3.0))
    job = check_jobs(lines, path, bundle.manifest)[0]
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        made = StepTrajectory.open(pipeline, job, "LS", lambda _: None)
        planned = plan_job(job, bundle.manifest)
        made.start(planned.start(job.seed, pipeline.encode_frames))
        state = made.save()
        for index in range(made.steps):
            made.step(index, "S")
        made.restore(state)
        for index, letter in enumerate("LSSL"):
            made.evaluate(index, "S")  # the trajectory takes no notice of it
            made.step(index, letter)
        run = Job(**{**vars(job), "schedule": "L1 S2 L1"})
        np.testing.assert_array_equal(made.result(), generate(pipeline, run, None, Console(quiet=True)).latents)
    finally:
        pipeline.close()
    options = (bundle.folder, "--prompts", path, "--steps", 4, "--guidance", 3, "--no-plot")
    assert call(calibrate, *options, "--parts", 2) == 0
    schedule = json.loads((bundle.folder / "calibration-1.json").read_text())["schedule"]
    assert compile_job(run, open_bundle(bundle.folder).manifest)
    measured = {each.name for each in (tmp_path / "bundle.work").iterdir()}
    # An image of another content is another prompt, and a second run finds what was measured.
    assert call(calibrate, *options, "--parts", 2, "--no-apply") == 0
    assert {each.name for each in (tmp_path / "bundle.work").iterdir()} == measured
    assert call(calibrate, *options, "--cache", "magcache") == 0
    for each in (*path.parent.glob("*.png"), *path.parent.glob("clip/*.png")):
        Image.fromarray(255 - np.asarray(Image.open(each))).save(each)
    assert call(calibrate, *options, "--cache", "magcache", "--no-apply") == 0
    assert {each.name for each in (tmp_path / "bundle.work").iterdir()} > measured
    assert schedule


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_shows_what_was_given(
    kind: str, build: Build, prompts: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle, path, out = built(build, kind), prompts(kind), tmp_path / "report"
    options = (bundle.folder, "--prompts", path, "--schedules", "LLL,SSS", "--steps", 3, "--out", out)
    assert call(compare, *options) == 0
    found = json.loads((out / "report.json").read_text())["prompts"]
    for line, case in zip(LINES[kind], found, strict=True):
        named = [
            {option: str(path.parent / each.partition("@")[0])}
            for option in ("image", "video", "mask")
            for each in np.atleast_1d(line.get(option, []))
        ]
        assert case.get("given", []) == named
        assert len(case["videos"]) == 2
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == sum(len(case.get("given", [])) for case in found)
    # The videos are fb-run's, and one of another image is made anew.
    (job,) = [line.job for line in read_jobs(path, Job(prompt="", steps=3, schedule="LLL")) if line.number == 1]
    assert job is not None
    pipeline = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest))
    try:
        latents = generate(pipeline, job, None, Console(quiet=True)).latents
    finally:
        pipeline.close()
    kept = sorted((out / "latents").glob("*-a-cat-*"))
    assert any(np.array_equal(np.load(each), latents) for each in kept if np.load(each).shape == latents.shape)
    Image.new("RGB", (32, 48)).save(path.parent / "cat.png")
    Image.new("L", (32, 48)).save(path.parent / "mask.png")
    assert call(compare, *options) == 0
    assert len(sorted((out / "latents").glob("*-a-cat-*"))) == 2 * len(kept)


@pytest.mark.long
@pytest.mark.parametrize("program", [calibrate, compare], ids=["fb-calibrate", "fb-compare"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a cat"}', "from its first frame, and none was given"),
        ('{"prompt": "a cat", "image": ["none.png"]}', r"none\.png"),
        ('{"prompt": "a cat", "image": ["cat.png@3"]}', "is given for frame 3"),
    ],
)
def test_what_lacks_its_image_is_refused_before_work(
    program: Any, line: str, said: str, build: Build, prompts: Callable[[str], Path], tmp_path: Path
) -> None:
    path = prompts("wan-image")
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(Exception, match=said) as refused:
        call(program, built(build, "wan-image").folder, "--prompts", path)
    assert isinstance(refused.value, UsageError) or "none.png" in line
    assert not (tmp_path / "report").exists()
