"""Options that do nothing are told, and others are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flowblending.contracts.conditions import FRAME_RATE
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.models import Model
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.unused import unused_machine, unused_options
from tests.support import manifests
from tests.support.programs import run

EVERY_STAGE = "L2:g1 S1:g1 L1:g1"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return manifests.write(tmp_path / "toy")


def told(job: Job, manifest: Manifest, *, timed: bool = True, latents_given: bool = False) -> list[str]:
    found = unused_options(job, compile_job(job, manifest), manifest, timed=timed, latents_given=latents_given)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in found)
    return found


NEGATIVE = "the negative prompt does nothing, because no step has guidance above 1."
BATCHED = "batched guidance, on or off, does nothing, because no step has guidance above 1."


@pytest.mark.parametrize(
    ("job", "sentences"),
    [
        (Job(prompt="x", negative_prompt="y"), []),
        (Job(prompt="x", negative_prompt="y", guidance=1.0), [NEGATIVE]),
        (Job(prompt="x", negative_prompt="", guidance=0.0), [NEGATIVE]),
        (Job(prompt="x", guidance=1.0), []),
        (Job(prompt="x", negative_prompt="y", steps=4, schedule=EVERY_STAGE), [NEGATIVE]),
        (Job(prompt="x", negative_prompt="y", steps=4, schedule="L2 S1:g1 L1:g1"), []),
        (Job(prompt="x", negative_prompt="y", guidance=1.0, steps=4, schedule="L2 S1:g4 L1"), []),
        (Job(prompt="x", batched_guidance=True), []),
        (Job(prompt="x", batched_guidance=True, guidance=1.0), [BATCHED]),
        (Job(prompt="x", batched_guidance=False, guidance=0.5), [BATCHED]),
        (
            Job(prompt="x", guidance=7.0, steps=4, schedule=EVERY_STAGE),
            ["the guidance scale 7 does nothing, because every stage has a guidance scale of its own."],
        ),
        (Job(prompt="x", guidance=7.0, steps=4, schedule="L2 S1:g1 L1"), []),
        (
            Job(prompt="x", steps=4, cache="mask:1111"),
            ["the cache mask:1111 does nothing, because it leaves out no engine call of this run."],
        ),
        (Job(prompt="x", steps=4, schedule="LLL", cache="mask:1010"), []),
        (Job(prompt="x", steps=30, schedule="LLL", cache="easycache"), []),
        (Job(prompt="x", steps=8, schedule="LLL", cache="guidance:2"), []),
    ],
)
def test_options_of_a_job(manifest: Manifest, job: Job, sentences: list[str]) -> None:
    assert told(job, manifest) == sentences


def test_a_frame_rate_that_neither_models_nor_files_take(manifest: Manifest) -> None:
    job = Job(prompt="x", frame_rate=24.0)
    (sentence,) = told(job, manifest, timed=False)
    assert sentence.startswith("the frame rate 24 does nothing, because these models take none")
    assert told(job, manifest) == []
    pipeline = dataclasses.replace(manifest.pipeline, conditions=(*manifest.pipeline.conditions, FRAME_RATE))
    assert told(job, manifest.model_copy(update={"pipeline": pipeline}), timed=False) == []


def test_a_second_guidance_scale(manifest: Manifest) -> None:
    job = Job(prompt="x", steps=6, schedule="LLL", guidance_2=3.0)
    nothing = "the second guidance scale 3 does nothing, because "
    assert told(job, manifest) == [f"{nothing}no model of this bundle has two experts."]
    # Any engine serves as the second expert here.
    experts = Model(name="large", letter="L", components=("large", "small"), boundary=0.8, letters=("H", "W"))
    found = manifest.model_copy(update={"models": (experts,)})
    assert told(job, found) == []
    assert told(dataclasses.replace(job, schedule="H6"), found) == [f"{nothing}no step of this run takes it."]
    assert told(dataclasses.replace(job, schedule="L6:g5"), found) == [f"{nothing}no step of this run takes it."]


def test_a_seed_beside_latents(manifest: Manifest) -> None:
    job = Job(prompt="x", seed=5)
    assert told(job, manifest, latents_given=True) == [
        "the seed 5 does nothing, because the initial latents were given."
    ]
    assert told(job, manifest) == told(Job(prompt="x"), manifest, latents_given=True) == []


def test_threads_where_everything_runs_on_a_gpu(tmp_path: Path, manifest: Manifest) -> None:
    plans = manifests.write(tmp_path / "plans", backend="tensorrt", targets=("sm90",))
    two = MachineSettings(threads=2)
    assert unused_machine(two, "cuda", plans) == {
        "threads": "--threads does nothing, because all engines of this bundle run on a GPU."
    }
    assert unused_machine(MachineSettings(), "cuda", plans) == {}
    assert unused_machine(two, "cpu", manifest) == unused_machine(two, "cuda", manifest) == {}


@pytest.mark.parametrize(
    ("options", "flags", "beside"),
    [
        (["--dry-run", "--verify", "--out", "x.mp4"], ["--out", "--verify"], "--dry-run"),
        (["--dry-run", "--emit-program", "p.json", "--threads", "2"], ["--emit-program", "--threads"], "--dry-run"),
        (["--emit-program", "p.json", "--seed", "0"], ["--seed"], "--emit-program without a prompt"),
        (
            ["--emit-program", "p.json", "--fps", "8", "--out", "x"],
            ["--out", "--fps"],
            "--emit-program without a prompt",
        ),
        (["--dry-run", "--prompt", "x", "--steps", "3", "--seed", "4"], [], ""),
    ],
)
def test_flags_beside_others(
    tmp_path: Path,
    manifest: Manifest,
    options: list[str],
    flags: list[str],
    beside: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert manifest.components
    monkeypatch.chdir(tmp_path)
    result = run("fb-run", tmp_path / "toy", "--device", "cpu", *options)
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: {flag} does nothing with {beside}." for flag in flags]


def test_a_dry_run_tells_of_a_negative_prompt_that_nothing_looks_at(tmp_path: Path, manifest: Manifest) -> None:
    assert manifest.components
    options = ["--prompt", "x", "--negative-prompt", "y", "--guidance", "1", "--dry-run", "--device", "cpu"]
    result = run("fb-run", tmp_path / "toy", *options)
    assert f"warning: {NEGATIVE}" in result.stderr.splitlines()


def test_cuda_graphs_where_there_is_no_gpu(manifest: Manifest) -> None:
    off = MachineSettings(cuda_graph=False)
    assert unused_machine(off, "cpu", manifest) == {
        "cuda_graph": "--cuda-graph off does nothing, because this bundle runs on the CPU."
    }
    assert unused_machine(MachineSettings(), "cpu", manifest) == unused_machine(off, "cuda", manifest) == {}
