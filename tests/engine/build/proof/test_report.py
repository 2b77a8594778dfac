"""The report of bundles that were built, and --prove on them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.onnxruntime.run import OrtEngine
from flowblending.engine.build.build import build_bundle
from flowblending.engine.build.proof import pair as pair_errors
from flowblending.engine.build.proof.pair import follow, pair_claims
from flowblending.engine.build.proof.pair_build import (
    EnginePair,
    initial_latents,
    plain_conditions,
    tokens_of,
    write_trajectory,
)
from flowblending.engine.build.proof.prove import ProveRequest, inspect, prove_bundle
from flowblending.engine.build.proof.report import BuildReport, read_report
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.registry import family_of
from flowblending.export.verify.trajectory import encode
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from tests.conftest import Build
from tests.engine.build.test_build import request, said
from tests.support.manifests import write
from tests.support.plans import ignore, needs_no_gpu
from tests.support.store_process import Recorder

pytestmark = pytest.mark.slow


def report_of(bundle: Bundle) -> BuildReport:
    report = read_report(bundle)
    assert report is not None
    return report


def copy(bundle: Bundle, out: Path) -> Bundle:
    shutil.copytree(bundle.folder, out)
    return open_bundle(out)


def test_a_report_of_a_bundle_in_fp32(build: Build) -> None:
    bundle = build("wan")
    bundle.verify()
    report = report_of(bundle)
    assert {claim.state for claim in report.claims} == {"proved"}
    assert report.components.keys() == bundle.manifest.components.keys()
    large = report.components["large"]
    # Nine frames of 32x48 are three latent ones of 4x6, and there is one latent at a time, or both branches.
    sizes = [{"batch": batch, "frames": 3, "height": 6, "width": 4} for batch in (1, 2)]
    assert all(each in large.compared.sizes for each in sizes)
    assert {"height": 6, "width": 4} in report.components["vae_next"].compared.sizes
    # Counted anew: every node that has a part in a matrix product, and its weights.
    graph = onnx.load(bundle.path("large"), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert large.graph.layers == {"fp32": sum(any(name in weights for name in node.input) for node in products)}
    assert large.graph.attention == {"fp32": sum(node.op_type == "Attention" for node in graph.node)}
    assert report.pair is None
    assert report.memory.weights == sum(
        path.stat().st_size for path in bundle.folder.iterdir() if path.suffix in (".onnx", ".data")
    )
    assert report.memory.latents == report.slots * 4 * 16 * 3 * 4 * 6
    content = json.loads((bundle.folder / "report.json").read_text())
    assert content["bundle"] == bundle.manifest.id


def test_proving_runs_the_engines_and_finds_one_that_differs(build: Build, tmp_path: Path) -> None:
    bundle = copy(build("wan"), tmp_path / "bundle")
    report = prove_bundle(bundle.folder, ignore)
    assert report.inspected is not None
    assert report.inspected.device == "cpu"
    differences = report.inspected.differences
    assert differences.keys() == bundle.manifest.components.keys()
    assert all(each is not None and 0 <= each < 5e-5 for each in differences.values())
    assert report_of(open_bundle(bundle.folder)) == report
    # What is kept of torch is as much a part of the bundle as the engines are.
    path = bundle.folder / "large.golden.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FlowBlendingError, match=r"large\.golden\.npz has \d+ bytes, but"):
        prove_bundle(bundle.folder, ignore)
    path.unlink()
    (bundle.folder / "report.json").unlink()
    shutil.copy(build("wan").folder / path.name, path)
    with pytest.raises(FlowBlendingError, match="has no report of this version to complete; rebuild with: fb-build"):
        prove_bundle(bundle.folder, ignore)


@pytest.mark.long
def test_a_pair_in_fp16_is_measured_and_what_holds_no_more_ends_the_build(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(build("wan").folder, out)
    asked = dataclasses.replace(request(checkpoints("wan"), out), precision="small=fp16")
    pair = report_of(build_bundle(asked, Recorder())).pair
    assert pair is not None
    assert pair.schedule == "L20 S20 L10"
    # The large model is in fp32, and the small one's errors are those of fp16.
    small = [value for value, model in zip(pair.velocity, pair.models, strict=True) if model == "small"]
    assert len(small) == 20
    assert all(1e-5 < value < 1e-2 for value in small)
    assert pair.overall["large"] < 5e-5
    assert 1e-5 < pair.overall["small"] < 1e-2
    assert pair.final is not None
    assert 1e-6 < pair.final < 1e-2
    # A bundle that is as it was keeps what was measured; a stricter limit is one that the pair does not hold.
    console = Recorder()
    build_bundle(asked, console)
    assert all("reused" in line for line in said(console.lines))
    (out / "report.json").unlink()
    monkeypatch.setattr(pair_errors, "ALLOWED", {**pair_errors.ALLOWED, Precision.FP16: 1e-6})
    console = Recorder()
    with pytest.raises(FlowBlendingError, match=r"Of pair it cannot be claimed: velocities .* small .* of 1e-06"):
        build_bundle(asked, console)
    assert any("FAILED: pair" in line for line in console.lines)
    assert not (out / "report.json").exists()


@pytest.mark.parametrize("kind", ["wan", pytest.param("ltx", marks=pytest.mark.long)])
def test_a_pair_is_measured_on_what_the_runtime_samples(
    build: Build, checkpoints: Callable[[str], Path], kind: str
) -> None:
    """The runtime encodes the prompt with its engines and samples; here, torch does the one and `follow` the other."""
    bundle, checkpoint = build(kind), open_checkpoint(str(checkpoints(kind) / "large"))
    noise = initial_latents(bundle.manifest)
    (part,) = [each for each in family_of(checkpoint).parts(checkpoint) if each.name == "text_encoder"]
    facts, tokens = bundle.manifest.pipeline, tokens_of(bundle, "a red ball")
    found = encode(part.load(Precision.FP32), tokens, facts.conditions, plain_conditions(facts, noise.shape[1:]))
    conditions = {branch: {name: value.numpy() for name, value in each.items()} for branch, each in found.items()}

    job = Job(prompt="a red ball", steps=4)
    program = compile_job(job, bundle.manifest)
    pipeline = Pipeline(bundle=bundle, device=HostDevice())
    expected = pipeline.encode(job, program, ignore)
    assert conditions.keys() == expected.keys() == {"cond", "uncond"}
    for branch, each in expected.items():
        for name, tensor in each.items():
            np.testing.assert_allclose(conditions[branch][name], tensor.numpy(), rtol=1e-3, atol=1e-5)
    assert not np.allclose(conditions["cond"]["text"], conditions["uncond"]["text"], atol=1e-2)

    engines = {name: OrtEngine(bundle.path(name), bundle.manifest.components[name].spec) for name in ("large", "small")}
    final, _ = follow(program.to_json(), EnginePair(engines, conditions), noise)
    sampled = pipeline.sample(program, noise, expected).latents.numpy()
    np.testing.assert_allclose(final, sampled, rtol=1e-3, atol=1e-4)


@needs_no_gpu
def test_proving_plans_needs_their_gpu(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write(folder, backend="tensorrt-rtx", targets=("sm120", "sm89"))
    command: list[Any] = [sys.executable, "-m", "flowblending.engine.cli", "--prove", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {folder} holds plans for sm120 and sm89, which only such a GPU can prove, and no CUDA driver or "
        f"NVIDIA GPU was found; run fb-build-engines --prove {folder} there.\n"
    )
    result = subprocess.run([*command, "--out", folder], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--prove builds nothing; leave out --out" in result.stderr


def test_what_torch_did_not_give_is_found(build: Build, tmp_path: Path) -> None:
    bundle = build("wan")
    with np.load(bundle.folder / "large.golden.npz") as kept:
        arrays: dict[str, Any] = {name: kept[name] * (1.25 if "outputs" in name else 1) for name in kept.files}
    np.savez(tmp_path / "large.npz", **arrays)
    # A trajectory of the bundle's own engines, of which the small one's velocities are then changed.
    random = np.random.default_rng(0)
    conditions = {
        branch: {"text": random.standard_normal((1, 512, 32)).astype(np.float32)} for branch in ("cond", "uncond")
    }
    engines = {name: OrtEngine(bundle.path(name), bundle.manifest.components[name].spec) for name in ("large", "small")}
    program = compile_job(Job(prompt="", steps=4), bundle.manifest).to_json()
    noise = random.standard_normal((1, 16, 3, 6, 4)).astype(np.float32)
    final, calls = follow(program, EnginePair(engines, conditions), noise)
    changed = [
        dataclasses.replace(call, velocity=call.velocity * np.float32(1.25)) if call.model == "small" else call
        for call in calls
    ]
    write_trajectory(tmp_path / "pair.npz", program, changed, final, conditions)
    asked = ProveRequest(
        bundle=bundle.folder.absolute(),
        reference_outputs={"large": tmp_path / "large.npz"},
        trajectory=tmp_path / "pair.npz",
        allowed={"large": 1e-4, "small": 1e-4},
    )
    found = inspect(asked, ignore)
    assert found.inspected is not None
    assert found.inspected.differences["large"] == pytest.approx(0.2, rel=1e-3)
    # Nothing of torch was given for it, and what it makes of noise is finite.
    assert found.inspected.differences["small"] is None
    assert found.pair is not None
    assert found.pair.models == ("large", "large", "small", "large")
    assert found.pair.velocity == pytest.approx((0, 0, 0.2, 0), abs=1e-6, rel=1e-3)
    assert found.pair.final == pytest.approx(0, abs=1e-6)
    mixed = {**bundle.manifest.components}
    spec = dataclasses.replace(mixed["small"].spec, precision=Precision.FP8)
    mixed["small"] = mixed["small"].model_copy(update={"spec": spec})
    (claim,) = pair_claims(found.pair, bundle.manifest.model_copy(update={"components": mixed}))
    assert claim.state == "failed"
