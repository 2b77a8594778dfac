"""One solver, step cache, back end and model family from outside the package, used for real: docs/extending.md."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, Precision, SigmaGrid
from flowblending.contracts.program import COND, LATENTS, VELOCITY, Run
from flowblending.engine.backends.registry import BACKENDS, can_use_gpu, check_targets, compile_engine, open_engine
from flowblending.engine.backends.tensor import CPU, Tensor
from flowblending.engine.build.precision import choose_precisions
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.registry import FAMILIES, family_of, pipeline_classes, vae_factors
from flowblending.runtime.calibrate.divergence import DivergenceRecorder, series_names
from flowblending.runtime.devices.open import device_kind
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.registry import CACHES, measured_caches
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS, solve
from tests.support import manifests, toybox
from tests.support.graphs import PROFILE, linear, linear_oracle

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an importing program does, undone after the test."""
    every: tuple[tuple[Any, Any], ...] = (
        (SOLVERS, toybox.SOLVER),
        (CACHES, toybox.CACHE),
        (BACKENDS, toybox.BACKEND),
        (FAMILIES, toybox.FAMILY),
    )
    for table, row in every:
        monkeypatch.setattr(table, "_rows", dict(table._rows))
        table.register(row)
    yield


@pytest.fixture
def toy_pair(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """Checkpoints of another pipeline class."""
    folder = shutil.copytree(checkpoints("wan"), tmp_path / "pair")
    path = folder / "large/model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "ToyPipeline"}))
    return folder


def test_a_solver_samples_to_its_order() -> None:
    """On dx/dsigma = -2 sigma x, whose solution from 1 is exp(1 - sigma^2)."""

    def error(steps: int) -> float:
        sigmas = np.linspace(1.0, 0.0, steps + 1).tolist()
        slots = {LATENTS: 1.0}
        for sigma, mixes in zip(sigmas, solve("adams", sigmas), strict=False):
            slots[VELOCITY] = -2.0 * sigma * slots[LATENTS]
            for mix in mixes:
                slots[mix.out] = sum(coefficient * slots[name] for coefficient, name in mix.terms)
        return abs(slots[LATENTS] - math.e)

    assert math.log2(error(80) / error(160)) == pytest.approx(SOLVERS.get("adams").order, abs=0.2)
    grid = SigmaGrid(kind="shifted", shift=3.0)
    assert sigma_grid(grid, "adams", 9, 0) == sigma_grid(grid, "euler", 9, 0)


def test_a_cache_leaves_out_calls_and_is_measured(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", schedule="L4 S3", steps=7, solver="adams", guidance=1.0, cache="alternate")
    program = compile_job(job, manifest)
    runs = [any(isinstance(each, Run) for each in step.instructions) for step in program.steps]
    assert runs == [True, False, True, False, True, False, True]
    with pytest.raises(UsageError, match="The cache alternate:2 takes no arguments"):
        compile_job(dataclasses.replace(job, cache="alternate:2"), manifest)
    with pytest.raises(UsageError, match=r"give off, mask.*, guidance:5, alternate, or several joined by"):
        compile_job(dataclasses.replace(job, cache="other"), manifest)
    models = {model.letter: [model.name] * 3 for model in manifest.models}
    recorder, velocity = DivergenceRecorder(guidance=1.0, models=models), np.ones((1, 2, 1, 1, 1), np.float32)
    for step in range(3):
        recorder.add(step, velocity, 1.0, {name: {COND: velocity * size * step} for name, size in (("L", 1), ("S", 2))})
    assert recorder.result().caches["alternate"] == {LARGE: [0.0, 1.0, 2.0], SMALL: [0.0, 2.0, 4.0]}
    assert "alternate" in series_names(signals=False)
    assert measured_caches()["alternate"][0] is toybox.CACHE


def test_a_back_end_compiles_and_opens_a_graph(tmp_path: Path) -> None:
    work, folder = tmp_path / "work", tmp_path / "bundle"
    work.mkdir()
    folder.mkdir()
    graph, told = linear(work), list[str]()
    compiled = compile_engine(
        backend="onnx-reference", graph=graph, profiles=(PROFILE,), targets=(), folder=folder, progress=told.append
    )
    assert (compiled.files, told) == ((folder / "large.packed",), ["packing"])
    engine = open_engine(backend="onnx-reference", path=compiled.files[0], spec=graph.spec, device=CPU)
    x = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(1, 3, 64)
    y = np.empty_like(x)
    engine.run({"x": Tensor.of(x), "y": Tensor.of(y)}, 0)
    np.testing.assert_allclose(y, linear_oracle(work, "large", x), rtol=1e-5, atol=1e-6)


def test_facts_of_a_back_end_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowblending.runtime.devices.open.gpu_architecture", lambda: "sm90")
    manifest = manifests.write(tmp_path / "bundle", backend="onnx-reference")
    assert device_kind("auto", manifest) == CPU
    assert not can_use_gpu(["onnx-reference"])
    assert choose_precisions(None, "onnx-reference", [LARGE])[LARGE] is Precision.FP32
    with pytest.raises(UsageError, match="bf16 was asked for, but ONNX's reference evaluator has no bf16 kernels"):
        choose_precisions("bf16", "onnx-reference", [LARGE])
    with pytest.raises(UsageError, match="onnx-reference compiles for no GPU in particular"):
        check_targets("onnx-reference", ("sm90",))
    unknown = manifests.write(tmp_path / "unknown", backend="hal9000")
    with pytest.raises(UsageError, match=r"The back end hal9000 is unknown; choose one of tensorrt, .*onnx-reference"):
        device_kind("auto", unknown)


def test_a_family_is_detected_by_its_pipeline_class_and_plans(toy_pair: Path) -> None:
    checkpoint = open_checkpoint(str(toy_pair / "large"), pipeline_classes())
    assert pipeline_classes()[-1] == "ToyPipeline"
    assert vae_factors(checkpoint) == (4, 8)
    family = family_of(checkpoint)
    spec = family.describe(checkpoint)
    assert (spec.family, spec.pipeline, spec.solver, spec.steps) == ("toy", "ToyPipeline", "adams", 4)
    assert family.transformer(checkpoint, toy_pair / "large/transformer", LARGE).name == LARGE


@pytest.mark.long
def test_an_installed_package_serves_the_programs(toy_pair: Path, tmp_path: Path) -> None:
    """From a checkpoint of its family to a video by its solver and its cache, each program in a process of its own."""
    site = tmp_path / "site"
    site.mkdir()
    toybox.install(site)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    out, video = tmp_path / "bundle", tmp_path / "video.npy"

    def program(module: str, *words: str | Path) -> str:
        command = [sys.executable, "-m", f"flowblending.{module}", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    program(
        *("engine.cli", "--large", toy_pair / "large", "--small", toy_pair / "small/", "--out", out),
        *("--backend", "onnxruntime", "--size", "32x48", "--frames", "5"),
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["pipeline"]["family"], manifest["pipeline"]["solver"]) == ("toy", "adams")
    shown = program("runtime.cli", out, "--prompt", "a toy", "--cache", "alternate", "--dry-run")
    assert "4 steps, adams" in shown
    program("runtime.cli", out, "--prompt", "a toy", "--cache", "alternate", "--out", video)
    assert np.load(video).shape == (5, 48, 32, 3)
