"""fb-compare on a real bundle: its figures against the Python API and numpy, and what it makes again and what not."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

import flowblending
from flowblending import FramesEvent, LatentsEvent, UsageError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.bundle.calibration import add_calibration
from flowblending.runtime.compare import cli
from flowblending.runtime.compare.sample import sample
from flowblending.runtime.program.cost import flops_at
from tests.conftest import Build
from tests.runtime.measures.test_networks import write_scripts
from tests.support import manifests

pytestmark = pytest.mark.slow

PROMPTS = 'a cat\n{"prompt": "two <dogs>", "seed": 5, "negative_prompt": "cats"}\n'
HOW = ("--steps", "5", "--device", "cpu", "--threads", "1")
WHAT = ("--schedules", "LLL,L5,L2 S2 L1,SSS", "--caches", "off,interval:2")
SAMPLE = "flowblending.runtime.compare.compare.sample"
"""What makes a run's latents: tests put something else in its place, or count its calls."""
Content = dict[str, Any]


def fb_compare(*arguments: object) -> int:
    return cli.run(cli.parser().parse_args([*map(str, arguments), "--quiet"]))


def content_of(folder: Path) -> Content:
    content: Content = json.loads((folder / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def bundle(build: Build) -> Path:
    return build("wan").folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def made(bundle: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report; tests that change it copy it."""
    out = tmp_path_factory.mktemp("made") / "report"
    assert fb_compare(bundle, "--prompts", prompts, *WHAT, *HOW, "--out", out) == 0
    return out


Frames = npt.NDArray[np.uint8]


def by_api(bundle: Path, schedule: str, cache: str = "off") -> tuple[Frames, npt.NDArray[np.float32]]:
    """The second prompt's frames and latents, by the Python API."""
    frames = []
    with flowblending.open(bundle, device="cpu", threads=1) as sampler:
        generation = sampler.generate(
            "two <dogs>", negative_prompt="cats", seed=5, steps=5, schedule=schedule, cache=cache
        )
        for event in generation:
            if isinstance(event, LatentsEvent):
                latents = np.asarray(event.latents)
            elif isinstance(event, FramesEvent):
                frames.append(event.images())
    return np.concatenate(frames), latents


def test_the_figures_are_those_of_the_python_api(bundle: Path, made: Path) -> None:
    case = content_of(made)["prompts"][1]
    assert (case["prompt"], case["note"]) == ("two <dogs>", "seed 5")
    reference, latents = by_api(bundle, "LLL")
    for label, schedule, cache in (("L2 S2 L1", "L2 S2 L1", "off"), ("SSS + interval:2", "SSS", "interval:2")):
        frames, others = by_api(bundle, schedule, cache)
        video = case["videos"][label]
        error = np.mean((frames / 255.0 - reference / 255.0) ** 2)
        assert video["figures"]["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-6)
        cosine = np.sum(latents * others) / np.linalg.norm(latents) / np.linalg.norm(others)
        assert video["figures"]["cosine"] == pytest.approx(cosine, abs=1e-6)
        with av.open(str(made / video["file"])) as container:
            seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert np.abs(seen.astype(int) - frames).mean() < 12
        assert video["latent_cosine_by_step"][-1] == pytest.approx(cosine, abs=1e-6)
    steps = case["videos"]["L2 S2 L1"]["latent_cosine_by_step"]
    assert steps[:2] == pytest.approx([1, 1])
    assert steps[3] < 1 - 1e-6


def test_what_equals_the_reference_is_said_to(made: Path) -> None:
    for case in content_of(made)["prompts"]:
        figures = case["videos"]["L5"]["figures"]
        assert figures["psnr"] is None
        assert (figures["ssim"], figures["cosine"]) == pytest.approx((1, 1))
    assert "equal to the reference" in (made / "index.html").read_text()


def call_flops(bundle: Path) -> tuple[int, int]:
    manifest = open_bundle(bundle).manifest
    tokens = manifest.pipeline.tokens(manifest.geometry.latent_shape)
    large, small = (flops_at(manifest, name, tokens) for name in ("large", "small"))
    return large, small


def test_costs(made: Path, bundle: Path) -> None:
    large, small = call_flops(bundle)
    rows = {run["label"]: run["table"] for run in content_of(made)["runs"]}
    # Two guidance branches; interval:2 computes steps 1, 3 and 5.
    assert rows["LLL"]["flops"]["value"] == pytest.approx(10 * large / 1e12)
    assert rows["L2 S2 L1"]["flops"]["value"] == pytest.approx((6 * large + 4 * small) / 1e12)
    assert rows["SSS + interval:2"]["flops"]["value"] == pytest.approx(6 * small / 1e12)
    assert rows["SSS"]["bound"]["value"] == pytest.approx(large / small)
    for row in rows.values():
        assert 0 < row["seconds"]["value"] < row["whole"]["value"]
    assert rows["LLL"]["speedup"]["value"] == 1
    assert rows["SSS + interval:2"]["speedup"]["value"] > 1


def test_what_a_cache_decides_on_the_way_is_counted(again: Callable[..., Path], bundle: Path) -> None:
    out = again("--schedules", "LLL", "--caches", "easycache:1000,2")
    large, _ = call_flops(bundle)
    (figures,) = (json.loads(path.read_text()) for path in out.glob("videos/LLL-easycache-1000-2-a-cat-*.json"))
    assert "0" in figures["computed"]
    assert figures["flops"] == 2 * large * figures["computed"].count("1")


def test_sets_of_videos_by_their_features(again: Callable[..., Path], tmp_path: Path) -> None:
    inception, i3d = (write_scripts(tmp_path) / name for name in ("images.pt", "videos.pt"))
    asked = ("--fid", inception, "--fvd", i3d)
    out = again(*WHAT, *asked)
    content = content_of(out)
    rows = {run["label"]: run["table"] for run in content["runs"]}
    assert rows["L5"][f"fid {inception}"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["LLL"][f"fvd {i3d}"]["value"] is None
    # Two videos: of n = 2 samples, the covariance has one axis, along which the two Gaussians lie.
    digest = hashlib.sha256(f"fvd {i3d}".encode()).hexdigest()[:8]

    def features(label: str) -> npt.NDArray[np.float32]:
        files = [Path(case["videos"][label]["file"]).stem for case in content["prompts"]]
        return np.concatenate([np.load(out / "latents" / f"{stem}.{digest}.npy") for stem in files])

    a, b = features("SSS"), features("LLL")
    assert a.shape == b.shape == (2, 6)
    axis_a, axis_b = a[1] - a[0], b[1] - b[0]
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + (axis_a @ axis_a + axis_b @ axis_b) / 2 - abs(axis_a @ axis_b)
    assert rows["SSS"][f"fvd {i3d}"]["value"] == pytest.approx(float(expected), rel=1e-4)


def test_a_calibrated_bundle_shows_its_divergence_and_its_schedule(
    bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "wan")
    distances = {name: [0.4, 0.3, 0.2, 0.1, 0.5] for name in ("cosine", "relative_l2", "rms")}
    spread = {name: [0.05] * 5 for name in distances}
    series: dict[str, object] = {
        "mean": {"cond": distances, "guided": distances},
        "spread": {"cond": spread, "guided": spread},
    }
    series["prompts"] = [series["mean"]] * 2
    evidence = {
        "format": 1,
        "schedule": "L1 S3 L1",
        "steps": 5,
        "solver": "unipc",
        "guidance": 5.0,
        "sigmas": [1.0, 0.8, 0.6, 0.4, 0.2],
        "prompts": [{"prompt": "a", "negative_prompt": None, "seed": seed} for seed in range(2)],
        "divergence": {"L5": series, "L1 S3 L1": series},
        "proxy": {"criterion": "", "early": 1, "late": 1},
        "early": None,
        "late": None,
        "budget": None,
    }
    add_calibration(open_bundle(tmp_path / "wan"), evidence, runs="L1 S3 L1")
    counting = Counting(monkeypatch)
    arguments = (tmp_path / "wan", "--prompts", prompts, *HOW, "--out", tmp_path / "report")
    assert fb_compare(*arguments, "--schedules", "auto,L5") == 0
    content = content_of(tmp_path / "report")
    assert {run["label"]: run["stages"] for run in content["runs"]} == {"LLL": "L5", "auto": "L1 S3 L1", "L5": "L5"}
    assert content["divergence"]["stages"] == "L1 S3 L1"
    assert [line["mean"] for line in content["divergence"]["lines"]["cosine distance"]] == [distances["cosine"]] * 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Where the two models differ" in page
    assert "The schedule auto is what fb-run takes unless told otherwise: L1 S3 L1, by calibration-1.json." in page
    # Another calibration changes what auto is, and nothing else.
    counting.runs.clear()
    add_calibration(open_bundle(tmp_path / "wan"), {**evidence, "schedule": "S5"}, runs="S5")
    assert fb_compare(*arguments) == 0
    made = {run.split(" off")[0] for run in counting.runs}
    assert made == {"auto", "LSL", "SSS"}
    assert content_of(tmp_path / "report")["runs"][-1]["stages"] == "S5"


class Counting:
    """Stands for `sample` and counts the runs by their schedule and cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        monkeypatch.setattr(SAMPLE, self)

    def __call__(self, pipeline: Any, job: Any, **options: Any) -> Any:
        self.runs.append(f"{job.schedule} {job.cache} {job.seed}")
        return sample(pipeline, job, **options)


@pytest.fixture
def again(bundle: Path, prompts: Path, made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs fb-compare again, over a copy of what is made."""
    out = tmp_path / "report"
    subprocess.run(["cp", "-a", made, out], check=True)

    def run(*more: object) -> Path:
        assert fb_compare(bundle, "--prompts", prompts, *HOW, "--out", out, *more) == 0
        return out

    return run


def test_a_second_run_makes_what_is_missing_only(
    again: Callable[..., Path], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    out = again(*WHAT)
    assert counting.runs == []
    assert content_of(out) == content_of(made)
    # A damaged figure file and a lost video are made again; the reference's frames come from its latents.
    videos = {name: each["file"] for name, each in content_of(made)["prompts"][1]["videos"].items()}
    (out / videos["SSS"]).with_suffix(".json").write_text('{"version": 1')
    (out / videos["L2 S2 L1"]).unlink()
    again(*WHAT)
    assert sorted(counting.runs) == ["L2 S2 L1 off 5", "SSS off 5"]
    ours, theirs = (content_of(folder)["prompts"][1]["videos"]["SSS"]["figures"] for folder in (out, made))
    same = ("psnr", "ssim", "cosine", "smoothness", "flops")
    assert [ours[name] for name in same] == pytest.approx([theirs[name] for name in same], rel=1e-9)
    # Other schedules join, and those left out stay in the folder.
    counting.runs.clear()
    out = again("--schedules", "L4 S1")
    assert counting.runs == ["L4 S1 off 0", "L4 S1 off 5"]
    assert [run["label"] for run in content_of(out)["runs"]] == ["LLL", "L4 S1"]
    assert (out / videos["SSS"]).exists()
    # Without the reference's latents, it is made again.
    counting.runs.clear()
    for path in out.glob("latents/LLL*"):
        path.unlink()
    again("--schedules", "L3 S2")
    assert sorted(counting.runs) == sorted(f"{name} off {seed}" for name in ("LLL", "L3 S2") for seed in (0, 5))


def test_a_judge_that_comes_later_asks_about_the_videos_that_are_there(
    again: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    (tmp_path / "late_judge.py").write_text(
        "def judge(frames, prompt):\n    return {'bright': float(frames.mean()) / 255, 'dog': 'dogs' in prompt}\n"
        "def fails(frames, prompt):\n    raise RuntimeError('no idea')\n"
    )
    monkeypatch.chdir(tmp_path)
    out = again("--judge", "late_judge:judge", "--schedules", "SSS", "--vbench", tmp_path / "vbench")
    assert counting.runs == []
    case = content_of(out)["prompts"][1]["videos"]["SSS"]
    with av.open(str(out / case["file"])) as container:
        mean = np.mean([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert case["figures"]["judge late_judge:judge/bright"] == pytest.approx(mean / 255, abs=0.03)
    rows = {run["label"]: run["table"] for run in content_of(out)["runs"]}
    assert rows["SSS"]["judge late_judge:judge/dog"]["value"] == 0.5
    assert (tmp_path / "vbench/SSS/two <dogs>-0.mp4").read_bytes() == (out / case["file"]).read_bytes()
    with pytest.raises(flowblending.FlowBlendingError, match="The judge late_judge:fails failed"):
        again("--judge", "late_judge:fails")
    assert counting.runs == []


def test_a_run_that_fails_leaves_the_others(
    bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(pipeline: Any, job: Any, **options: Any) -> Any:
        if (job.schedule, job.seed) in (("SSS", 0), ("LLL", 5)):
            raise flowblending.FlowBlendingError("The small model gave a non-finite velocity.")
        return sample(pipeline, job, **options)

    monkeypatch.setattr(SAMPLE, fail)
    out = tmp_path / "report"
    assert fb_compare(bundle, "--prompts", prompts, "--schedules", "SSS,L4 S1", *HOW, "--out", out) == 1
    cases = content_of(out)["prompts"]
    assert [set(case["videos"]) for case in cases] == [{"LLL", "L4 S1"}, set()]
    warnings = capsys.readouterr().err
    assert "SSS of 'a cat' failed: The small model gave a non-finite velocity." in warnings
    assert "LLL of 'two <dogs>' failed" in warnings
    assert "its other runs are left out" in warnings


def test_a_killed_run_goes_on_where_it_stopped(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    command = [sys.executable, "-m", "flowblending.runtime.compare.cli", str(bundle), "--prompts", str(prompts)]
    command += [*WHAT, *HOW, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(out.glob("videos/*.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("videos/*.json")}
    assert 3 <= len(kept) < 16
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    assert "2 prompts, 8 runs each" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(out.glob("videos/*.json"))) == 16
    assert not list(out.rglob(".*"))


def test_errors_of_a_command_line_are_one_sentence(tmp_path: Path) -> None:
    manifests.write(tmp_path / "toy")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--schedules", "LXL"), "LXL: "),
        (("--caches", "fast"), "LLL . fast: The cache .fast. is unknown"),
        (("--threads", "0"), "--threads is 0, but a whole number"),
        (("--out", str(tmp_path / "toy" / "report")), "lies in the bundle"),
        (("--out", str(tmp_path / "own")), "holds other files and no report"),
        (("--judge", "nonsense"), "MODULE:FUNCTION was expected"),
        (("--clip", str(tmp_path)), "is no folder of a model"),
        (("--lpips", str(tmp_path / "none.pt")), "There is no file"),
        (("--fvd", str(tmp_path / "none.pt")), "--fvd compares sets of videos, but .* holds 1 prompt"),
        (("--fps", "0"), "--fps is 0.0, but a finite number"),
    ]
    for more, message in cases:
        arguments = (tmp_path / "toy", "--prompts", tmp_path / "prompts.txt", "--device", "cpu")
        out = () if "--out" in more else ("--out", tmp_path / "new")
        with pytest.raises(UsageError, match=message):
            fb_compare(*arguments, *out, *more)
        assert not (tmp_path / "new").exists()
    command = [sys.executable, "-m", "flowblending.runtime.compare.cli", str(tmp_path / "toy"), "--prompts", "/none"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: Cannot read the prompt file /none")
