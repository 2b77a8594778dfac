"""The short run of a bundle: what is run, what is said of it, and that a bundle which does not run is not published."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowblending import FlowBlendingError, OutOfMemoryError
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import MANIFEST, Geometry, Manifest, VideoProfile
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.proof import Compared, GraphFacts, Proof
from flowblending.engine.build.build import build_bundle
from flowblending.engine.build.proof import short_run, short_run_build
from flowblending.engine.build.proof.prove import prove_bundle
from flowblending.engine.build.proof.report import read_report
from flowblending.engine.build.proof.report_build import check_report
from flowblending.engine.build.proof.short_run import RunFacts, RunRequest, run_bundle, run_claim, short_job, smallest
from flowblending.engine.build.proof.short_run_build import RunLoad, load_of, run_while_built, too_much
from flowblending.engine.bundle.bundle import Bundle, describe_file, open_bundle
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.system.subprocess_call import Progress
from tests.conftest import Build
from tests.engine.build.test_build import request
from tests.support import manifests
from tests.support.plans import ignore, needs_no_gpu
from tests.support.store_process import Recorder
from tests.support.toy_pipeline import toy_pipeline

JOB = Job(prompt="a cat", size="64x32", frames=9, steps=2, schedule="L1 S1")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return manifests.write(tmp_path / "bundle")


def video(frames: int, width: int = 64) -> Geometry:
    return Geometry(width=width, height=32, frames=frames, latent_shape=(16, (frames - 1) // 4 + 1, 4, width // 8))


def with_videos(manifest: Manifest, *profiles: VideoProfile, streams: bool) -> Manifest:
    components = dict(manifest.components)
    if streams:
        components["vae_first"] = components["vae_next"] = components.pop("vae")
    return manifest.model_copy(update={"profiles": profiles, "components": components})


def test_the_smallest_video_that_takes_every_decoder_is_made(manifest: Manifest) -> None:
    wide, one = VideoProfile.fixed(video(9, 128)), VideoProfile.fixed(video(1))
    span = VideoProfile(min=video(1), opt=video(9), max=video(9))
    assert smallest(with_videos(manifest, wide, one, streams=False)) == video(1)
    assert smallest(with_videos(manifest, wide, one, streams=True)) == video(9, 128)
    assert smallest(with_videos(manifest, wide, span, streams=True)) == video(5)
    assert smallest(with_videos(manifest, one, streams=True)) == video(1)


@pytest.mark.parametrize(
    ("model", "timesteps", "schedule"),
    [("small", (), "L1 S1"), ("small", (1000.0, 990.0), "S1 L1"), ("large", (1000.0, 990.0), "L1 S1")],
)
def test_both_models_run_and_guidance_does(
    manifest: Manifest, model: str, timesteps: tuple[float, ...], schedule: str
) -> None:
    sampling = ModelSampling(timesteps=timesteps) if timesteps else None
    models = tuple(
        each.model_copy(update={"sampling": sampling}) if each.name == model else each for each in manifest.models
    )
    manifest = manifest.model_copy(update={"models": models})
    job = short_job(manifest, "a cat")
    assert job.schedule == schedule
    program = compile_job(job, manifest)
    assert {step.model for step in program.steps} == {"large", "small"}
    assert set(program.branches()) == {"cond", "uncond"}


def test_what_runs_is_proved(tmp_path: Path) -> None:
    facts = run_bundle(toy_pipeline(tmp_path / "bundle"), JOB, "cpu")
    claim = run_claim(facts)
    assert (claim.component, claim.state) == ("bundle", "proved")
    assert claim.detail == "L1 S1, guidance 5, 64x32, 9 frames on cpu"


@pytest.mark.parametrize(
    ("component", "fault"),
    [
        ("large", "The large model gave a non-finite velocity at step 1 of 2"),
        ("small", "The small model gave a non-finite velocity at step 2 of 2"),
        ("vae_next", "The VAE decoder gave a non-finite pixel from frame 2 on"),
    ],
)
def test_what_does_not_run_has_failed(tmp_path: Path, component: str, fault: str) -> None:
    claim = run_claim(run_bundle(toy_pipeline(tmp_path / "bundle", spoiled={component: 0}), JOB, "cpu"))
    assert claim.state == "failed"
    assert fault in claim.detail


def test_memory_that_runs_out_says_nothing_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = toy_pipeline(tmp_path / "bundle")

    def exhausted(name: str) -> None:
        raise OutOfMemoryError(f"There is no memory for {name}; stop other programs.")

    monkeypatch.setattr(pipeline.engines, "get", exhausted)
    claim = run_claim(run_bundle(pipeline, JOB, "cpu"))
    assert claim.state == "open"
    assert "There is no memory for" in claim.detail


def test_a_report_from_before_there_were_runs_leaves_it_open() -> None:
    assert run_claim(None).state == "open"


def test_what_a_run_takes_of_a_cpu_is_told(manifest: Manifest) -> None:
    proofs = {
        name: Proof(
            component=name,
            precision=Precision.FP32,
            compared=Compared(relative=0, maximum=0, allowed=1, sizes=()),
            golden=None,
            graph=GraphFacts(layers={}, flops={"fp32": 7_000_000}, attention={}, scatters=0, islands={}),
            plan=None,
        )
        for name in manifest.components
    }
    wider = VideoProfile(min=video(9), opt=video(9), max=video(9, 128))
    manifest = manifest.model_copy(update={"profiles": (wider,)})
    load = load_of(compile_job(short_job(manifest, ""), manifest), manifest, proofs)
    # Each model once with two branches; two texts; and a decoder that was counted at twice the width.
    assert load.operations == 2 * (1100 + 110) + 2 * 7e6 + 3.5e6
    weights = 2 * 100 * sum(map(len, ("large", "small", "text_encoder", "vae")))
    assert load.memory == weights + 7e6 / 500 + 300e6


def test_too_much_is_left_open_with_the_command() -> None:
    assert too_much(RunLoad(operations=1e12, memory=1e9), 2_000_000_000, "run it") == ""
    slow = too_much(RunLoad(operations=2e15, memory=1e9), 2_000_000_000, "run it")
    assert slow == (
        "it takes up to 2e+03 TFLOPs and 1.0 GB of memory on a CPU, which is too much for a build; run it for as long "
        "as it takes"
    )
    large = too_much(RunLoad(operations=1e9, memory=56e9), 24_000_000_000, "run it")
    assert "56.0 GB of memory on a CPU, of which 24.0 GB are available; run it on a machine with more" in large


@needs_no_gpu
def test_plans_wait_for_their_gpu(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle", backend="tensorrt-rtx", targets=("sm120", "sm89"))
    bundle = Bundle(folder=tmp_path / "bundle", manifest=manifest)
    claim = run_claim(run_while_built(bundle, tmp_path / "out", "a cat", ignore))
    assert (claim.state, claim.detail) == ("open", "needs a GPU of sm120 or sm89")


def _killed(_request: RunRequest, _progress: Progress) -> RunFacts:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _crashed(_request: RunRequest, _progress: Progress) -> RunFacts:
    os.abort()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "state", "says"), [(_killed, "open", "memory ran out; run fb-build"), (_crashed, "failed", "with SIGABRT")]
)
def test_a_process_that_ends(
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[RunRequest, Progress], RunFacts],
    state: str,
    says: str,
) -> None:
    bundle = build("wan")  # it is run as well
    monkeypatch.setattr(short_run_build, "run_here", work)
    claim = run_claim(run_while_built(bundle, bundle.folder, "a cat", ignore))
    assert claim.state == state
    assert says in claim.detail


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan", pytest.param("ltx-condition", marks=pytest.mark.long)])
def test_a_build_runs_its_bundle(build: Build, kind: str) -> None:
    report = read_report(build(kind))
    assert report is not None
    assert report.run is not None
    assert (report.run.schedule, report.run.where, report.run.fault, report.run.reason) == ("L1 S1", "cpu", "", "")
    assert report.claims[-1].claim == short_run.CLAIM
    assert not report.left


def damaged(bundle: Bundle, out: Path, name: str) -> Bundle:
    """A copy whose component gives no numbers, and whose checksums are those of what it is."""
    out.mkdir()
    for path in bundle.folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    data = out / f"{name}.onnx.data"
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    content = json.loads((out / MANIFEST).read_text())
    files = content["components"][name]["files"]
    found = describe_file(out, data).model_dump(mode="json")
    content["components"][name]["files"] = [found if each["path"] == data.name else each for each in files]
    (out / MANIFEST).write_text(json.dumps(content))
    return open_bundle(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        # Among what is overwritten are its tables of indices.
        ("text_encoder", "ONNX Runtime failed in engine text_encoder"),
        ("small", "The small model gave a non-finite velocity at step 2 of 2"),
        ("vae_next", "The VAE decoder gave a non-finite pixel from frame 2 on"),
    ],
)
def test_a_bundle_that_does_not_run_is_refused_though_every_component_was_proved(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path, name: str, says: str
) -> None:
    out = tmp_path / "bundle"
    # Its components' keys and checksums are in order, so that a build takes them as they are, with their proofs.
    damaged(build("wan"), out, name)
    (out / "report.json").unlink()
    console = Recorder()
    with pytest.raises(FlowBlendingError, match="The bundle does not run: ") as caught:
        build_bundle(request(checkpoints("wan"), out), console)
    assert says in str(caught.value)
    assert any(line.startswith("  FAILED: bundle, runs from a prompt to pixels: ") for line in console.lines)
    assert not (out / "report.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.slow
def test_proving_finds_a_bundle_that_does_not_run(build: Build, tmp_path: Path) -> None:
    bundle = damaged(build("wan"), tmp_path / "bundle", "small")
    before = read_report(bundle)
    assert before is not None
    assert not before.failed
    report = prove_bundle(bundle.folder, ignore)
    assert {claim.component for claim in report.failed} == {"bundle", "small"}
    # A difference that is no number is unlike itself.
    kept = read_report(bundle)
    assert kept is not None
    assert kept.model_dump_json() == report.model_dump_json()
    with pytest.raises(FlowBlendingError, match=r"The bundle does not run: L1 S1, guidance 5, .* on cpu: The small"):
        check_report(report, Recorder())
