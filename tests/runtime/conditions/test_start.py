"""Runs that begin from a video, before any engine runs: what is refused, what is told, and which size is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import start_from
from flowblending.contracts.manifest import Geometry, Manifest
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.runtime.calibrate.prompts import check_jobs
from flowblending.runtime.conditions.start import check_length, doubts, noised
from flowblending.runtime.dry_run import plan_facts, plan_lines
from flowblending.runtime.job_facts import job_facts
from flowblending.runtime.jobs import compile_job, job_geometry, job_strength
from flowblending.runtime.media.clip import Clip
from flowblending.runtime.option_values import PYTHON, read_options
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import parse_jobs, read_jobs
from flowblending.runtime.unused import unused_options
from tests.support import manifests

JOB = Job(prompt="x", steps=10, schedule="L4 S4 L2", video="in.mp4", strength=0.5)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of a bundle that begins from videos, of several sizes."""
    plain = manifests.write(tmp_path / "bundle")
    pipeline = replace(plain.pipeline, conditions=(*plain.pipeline.conditions, start_from(16)))
    profiles = plan_profiles(pipeline, "832x480,480x832,1280x720,624x624", "9,13")
    return plain.model_copy(update={"pipeline": pipeline, "profiles": profiles})


def image(path: Path, size: tuple[int, int]) -> str:
    Image.new("RGB", size).save(path)
    return str(path)


def test_video_and_strength_belong_together(manifest: Manifest, tmp_path: Path) -> None:
    text_alone = manifests.write(tmp_path / "text")
    assert job_strength(JOB, manifest) == 0.5
    assert job_strength(Job(prompt="x"), text_alone) == 1.0
    for job, bundle, message in (
        (replace(JOB, video=None), manifest, r"A strength of 0\.5 was given, but no video to begin from; give one, or"),
        (
            replace(JOB, strength=None),
            manifest,
            r"A video was given to begin from, but no strength; give one such as 0",
        ),
        (JOB, text_alone, r"no VAE encoder to read one with; build it in with fb-build-engines --conditions video\."),
        (replace(JOB, strength=0.0), manifest, r"The strength is 0, but a number above 0 and at most 1 was expected"),
        (replace(JOB, strength=0.05), manifest, r"A strength of 0\.05 leaves none of 10 steps; give 0\.1 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            compile_job(job, bundle)


def test_a_dry_run_says_which_stages_are_left(manifest: Manifest, tmp_path: Path) -> None:
    bundle = Bundle(folder=tmp_path / "bundle", manifest=manifest)
    job = replace(JOB, video=image(tmp_path / "a.png", (640, 480)))
    program, whole = compile_job(job, manifest), compile_job(replace(JOB, video=None, strength=None), manifest)
    assert program.schedule == "S3 L2"
    assert [step.sigma for step in program.steps] == [step.sigma for step in whole.steps][5:]
    lines = plan_lines(bundle, job, "cpu")
    first = program.steps[0]
    assert f"from      {tmp_path}/a.png, 640x480, crop" in lines
    assert (
        f"strength  0.5: begins with step 6 of 10, at sigma {first.sigma:.4f}, timestep {first.timestep:g}; the steps "
        "above it are left out of the schedule"
    ) in lines
    assert any(line.startswith("schedule  S3 L2, 5 steps") for line in lines)
    facts = plan_facts(bundle, job, "cpu")
    assert (facts["input_video"], facts["strength"], facts["fit"], facts["resample_fps"]) == (
        job.video,
        0.5,
        "crop",
        None,
    )
    images = ("cat.png", "end.png@8:0.5")
    assert job_facts(replace(job, image=images), program, manifest)["image"] == list(images)
    with pytest.raises(FlowBlendingError, match=r"There is no image or video none\.mp4; give"):
        plan_lines(bundle, replace(job, video="none.mp4"), "cpu")


def test_the_size_nearest_in_shape(manifest: Manifest, tmp_path: Path) -> None:
    for number, (shown, size) in enumerate(
        [
            ((4032, 3024), "832x480"),
            ((3024, 4032), "480x832"),
            ((3600, 4032), "624x624"),
            ((1080, 1920), "480x832"),
            ((1000, 1000), "624x624"),
            ((1920, 1080), "832x480"),  # 1280x720 is nearer in shape by 3 %, and has twice the default's pixels
            ((100, 3000), "480x832"),
        ]
    ):
        job = Job(prompt="x", size="auto", video=image(tmp_path / f"{number}.png", shown), strength=0.5)
        assert job_geometry(job, manifest).size == size, shown
        assert job_geometry(replace(job, frames=13, size="Auto"), manifest).frames == 13
        held = Job(prompt="x", size="auto", image=(f"{job.video}@0:0.5", "none.png@8"))
        assert job_geometry(held, manifest).size == size
    with pytest.raises(UsageError, match=r"17 frames .*; the nearest is --size .* --frames 13"):
        job_geometry(replace(job, frames=17), manifest)
    with pytest.raises(
        UsageError, match=r"size auto is the one nearest in shape to an image or a video .* such as 832x480"
    ):
        job_geometry(Job(prompt="x", size="auto"), manifest)


def test_a_range_of_sizes(manifest: Manifest, tmp_path: Path) -> None:
    """Of a shape it has many; the one with the default's number of pixels is taken."""
    ranged = manifest.model_copy(
        update={"profiles": plan_profiles(manifest.pipeline, "640x384,320x320..1280x1280", "9")}
    )
    for shown in ((1600, 900), (900, 1600), (700, 700)):
        job = Job(prompt="x", size="auto", video=image(tmp_path / "a.png", shown), strength=0.5)
        made = job_geometry(job, ranged)
        assert abs(np.log(made.width / made.height) - np.log(shown[0] / shown[1])) < 0.05
        assert abs(made.width * made.height / (640 * 384) - 1) < 0.1


def test_files_of_a_prompt_file_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    path = tmp_path / "list" / "prompts.jsonl"
    path.write_text('{"prompt": "a", "video": "in.mp4", "strength": 0.4}\n{"prompt": "b", "video": "/x/in.mp4"}\nc\n')
    jobs = [line.job for line in read_jobs(path, Job(prompt="", video="own.mp4"))]
    assert [job.video for job in jobs if job] == [str(path.parent / "in.mp4"), "/x/in.mp4", "own.mp4"]


def clip(count: int, *, more: bool = False, rate: float | None = 16.0, notes: tuple[str, ...] = ()) -> Clip:
    frames = np.zeros((count, 4, 4, 3), np.uint8)
    return Clip(name="in.mp4", frames=frames, width=8, height=8, frame_rate=rate, more=more, notes=notes)


def test_length_and_rate() -> None:
    nine = Geometry(width=64, height=32, frames=9, latent_shape=(16, 3, 4, 8))
    check_length(clip(9), nine)
    with pytest.raises(UsageError, match=r"in\.mp4 has 8 frames, but the video that is made has 9; give a longer one"):
        check_length(clip(8), nine)
    with pytest.raises(UsageError, match=r"in\.mp4 has 1 frame, but"):
        check_length(clip(1), nine)
    assert doubts(clip(9), 16.0) == []
    assert doubts(clip(9, rate=None), 16.0) == []
    assert doubts(clip(9, notes=("It is cut.",), more=True), 16.0) == [
        "It is cut.",
        "in.mp4 is longer than 9 frames; its first 9 are taken.",
    ]
    (rate,) = doubts(clip(9, rate=29.97), 16.0)
    assert rate.startswith("in.mp4 has 29.97 frames per second and the video that is made 16, so that it moves at 0.53")


def test_what_is_said_of_no_video_does_nothing(manifest: Manifest) -> None:
    job = Job(prompt="x", fit="letterbox", resample_fps=8.0)
    told = unused_options(job, compile_job(job, manifest), manifest, timed=True)
    assert told == [
        "the fit letterbox does nothing, because no image or video is given.",
        "resampling to 8 frames per second does nothing, because no video is given.",
    ]


def test_a_calibration_begins_from_no_video(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    lines = parse_jobs('{"prompt": "a", "video": "in.mp4", "strength": 0.5}', path, Job(prompt="", steps=10))
    with pytest.raises(UsageError, match=r"^Line 1 of .* begins from a video, but fb-calibrate measures whole runs"):
        check_jobs(lines, path, manifest)


def test_names_of_files_may_be_paths() -> None:
    assert read_options({"video": Path("a") / "in.mp4"}, PYTHON) == {"video": str(Path("a") / "in.mp4")}
    with pytest.raises(UsageError, match=r"negative_prompt is .*Path\('a'\), but a text was expected"):
        read_options({"negative_prompt": Path("a")}, PYTHON)


@pytest.mark.parametrize("index", [0, 3, 9])
def test_noise_is_added_as_the_schedulers_do(index: int) -> None:
    """To the bit: UniPC's ``add_noise``, and Euler's ``scale_noise``."""
    latents, noise = np.random.default_rng(0).standard_normal((2, 1, 4, 3, 5, 7)).astype(np.float32)
    for made in (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ):
        made.set_timesteps(10)
        timestep = made.timesteps[index : index + 1]
        clean, drawn = torch.from_numpy(latents), torch.from_numpy(noise)
        if isinstance(made, UniPCMultistepScheduler):
            expected = made.add_noise(clean, drawn, timestep)
        else:
            expected = made.scale_noise(clean, timestep, drawn)
        assert np.array_equal(noised(latents, noise, float(made.sigmas[index])), expected.numpy())
