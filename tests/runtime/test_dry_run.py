"""What ``fb-run --dry-run`` says, with every number worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flowblending.contracts.graph import AuthorsSampling, SigmaGrid
from flowblending.contracts.manifest import BundleFile, CalibratedSchedule, Calibration, Flops, Geometry, VideoProfile
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.engine.backends.onnxruntime.run import OrtEngine
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.backends.tensorrt.run import TrtEngine
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.dry_run import plan_facts, plan_lines
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.program.cost import Timings
from tests.support import manifests


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose large model is 5 GB and takes 2 TFLOPs a call, the small one 1 GB and 0.5 TFLOPs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = manifests.write(tmp_path / "bundle")
    components = dict(manifest.components)
    for name, linear, size in (("large", 19 * 10**11, 5 * 10**9), ("small", 4 * 10**11, 10**9)):
        (file,) = components[name].files
        files = (file.model_copy(update={"bytes": size}),)
        flops = Flops(linear=(linear, 0), attention=(10**11, 0, 0))
        components[name] = components[name].model_copy(update={"flops": flops, "files": files})
    geometry = Geometry(width=6400, height=3200, frames=9, latent_shape=(16, 3, 400, 800))
    changes = {"components": components, "profiles": (VideoProfile.fixed(geometry),)}
    return Bundle(folder=tmp_path / "bundle", manifest=manifest.model_copy(update=changes))


def job(schedule: str, cache: str = "off") -> Job:
    return Job(prompt="x", schedule=schedule, steps=6, solver="euler", guidance=5.0, cache=cache)


def test_the_lines_of_a_plan(bundle: Bundle) -> None:
    made = job("L2 S3 L1")
    sigmas = [step.sigma for step in compile_job(made, bundle.manifest).steps]
    lines = plan_lines(bundle, made, "cpu")
    assert [line.split() for line in lines] == [
        line.split()
        for line in (
            f"bundle {bundle.folder} ({bundle.manifest.id}), wan",
            "video 6400x3200, 9 frames, latents [16, 3, 400, 800]",
            "schedule L2 S3 L1, 6 steps, euler, guidance 5, shift 3",
            f"steps 1-2 large sigma {sigmas[0]:.4f} to {sigmas[1]:.4f}, timesteps 1000 to 923.343",
            f"steps 3-5 small sigma {sigmas[2]:.4f} to {sigmas[4]:.4f}, timesteps 818.923 to 432.225",
            f"steps 6-6 large sigma {sigmas[5]:.4f} to {sigmas[5]:.4f}, timesteps 8.92857 to 8.92857",
            "calls large x 6, small x 6",
            # 12 calls of 0.1 TFLOPs attention each.
            "FLOPs 15 TFLOPs of 24 TFLOPs all-large (62.5%), 8.0% of it attention; speed-up bound 1.600x",
            "files engines 6000.0 MB, latent slots 184.3 MB",
            "memory resident, at most 6.4 GB; reads 6.0 GB of weights",
            "encode 6.1 GB: opens large, small, text_encoder, vae (6.0 GB), scratch 0 B, tensors 122.9 MB",
            "sample large 6.4 GB: scratch 0 B, tensors 430.1 MB",
            "sample small 6.4 GB: scratch 0 B, tensors 430.1 MB",
            "sample large 6.4 GB: scratch 0 B, tensors 430.1 MB",
            "decode 6.2 GB: scratch 0 B, tensors 184.3 MB",
            "scratch memory on top that nobody has stated: of large, small, text_encoder, vae",
            "time not measured on this machine yet",
        )
    ]


def test_what_a_cache_leaves_out_is_told(bundle: Bundle) -> None:
    made = job("L2 S3 L1", "mask:101101+guidance:2,1001")
    lines = plan_lines(bundle, made, "cpu")
    assert [line.partition(", computes ")[2] for line in lines if line.startswith("  steps")] == ["10", "1c0", "1"]
    assert "calls     large x 4, small x 3; the cache skips large x 2, small x 3" in lines
    # 4 * 2 + 3 * 0.5 of what 12 calls of the large model take.
    assert "FLOPs     9.5 TFLOPs of 24 TFLOPs all-large (39.6%), 7.4% of it attention; speed-up bound 2.526x" in lines
    assert "calls     large x 6, small x 6; the cache skips nothing" in plan_lines(
        bundle, job("L2 S3 L1", "mask:111111"), "cpu"
    )
    plain = "\n".join(plan_lines(bundle, job("LLL"), "cpu")[1:])
    assert "cache" not in plain
    assert "computes" not in plain


def test_one_stage_is_one_line(bundle: Bundle) -> None:
    lines = plan_lines(bundle, job("LLL"), "cpu")
    (stage,) = (line for line in lines if line.startswith("  steps"))
    assert stage.split()[1:3] == ["1-6", "large"]
    assert "calls     large x 12, small x 0" in lines
    assert any("speed-up bound 1.000x" in line for line in lines)


def test_the_time_is_told_when_every_model_that_runs_was_measured(bundle: Bundle) -> None:
    timings = Timings(bundle.manifest.id, "cpu", bundle.manifest.geometry.latent_shape)
    timings.write({"large": 2.0, "vae": 1.25, "text_encoder": 0.5})
    assert "not measured" in plan_lines(bundle, job("L2 S3 L1"), "cpu")[-1]
    assert plan_lines(bundle, job("LLL"), "cpu")[-1].split(maxsplit=1) == [
        "time",
        "about 25.75 s as last measured (sampling 24.00 s)",
    ]
    timings.write({"small": 0.5})
    # 6 calls of 2 s and 6 of 0.5 s in place of 12 of 2 s; the operations allow 1.6.
    assert plan_lines(bundle, job("L2 S3 L1"), "cpu")[-1].endswith(
        "about 16.75 s as last measured (sampling 15.00 s, 1.60x all-large's speed, 100% of the bound)"
    )
    timings.write({"small": 1.0})
    assert (
        "sampling 18.00 s, 1.33x all-large's speed, 83% of the bound" in plan_lines(bundle, job("L2 S3 L1"), "cpu")[-1]
    )


def test_a_calibrated_schedule_is_the_default_and_is_told(bundle: Bundle) -> None:
    file = BundleFile(path="calibration-2.json", bytes=1, sha256="")
    found = CalibratedSchedule(runs="L1 S1 L1", evidence=file.path)
    calibration = Calibration(evidence=(file,), schedule=found)
    calibrated = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"calibration": calibration}))
    assert plan_lines(calibrated, job("auto"), "cpu")[2] == (
        "schedule  L2 S2 L2 (calibrated: L1 S1 L1, calibration-2.json), 6 steps, euler, guidance 5, shift 3"
    )
    assert plan_lines(calibrated, job("LSL"), "cpu")[2] == "schedule  L2 S3 L1, 6 steps, euler, guidance 5, shift 3"
    assert plan_lines(bundle, job("auto"), "cpu")[2] == "schedule  L2 S3 L1, 6 steps, euler, guidance 5, shift 3"


def test_a_distilled_model_is_told_where_it_differs(bundle: Bundle) -> None:
    """What the manifest says of the small model is part of the schedule, which may be typed as it is printed."""
    sampling = ModelSampling(timesteps=(1000.0, 815.5, 700.0, 8.0), guidance=1.0)
    large, small = bundle.manifest.models
    models = (large, small.model_copy(update={"sampling": sampling}))
    distilled = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"models": models}))
    for text in ("auto", "LSL", "L2 S3 L1", "L2 S3:g1:t815.5,700 L1"):
        lines = plan_lines(distilled, job(text), "cpu")
        assert lines[2] == "schedule  L2 S3:g1:t815.5,700 L1, 5 steps, euler, guidance 5, shift 3"
        assert [line.split() for line in lines[3:6]] == [
            line.split()
            for line in (
                "steps 1-2 large sigma 1.0000 to 0.9233, timesteps 1000 to 923.343",
                "steps 3-4 small sigma 0.8155 to 0.7000, timesteps 815.5 to 700, guidance 1",
                "steps 5-5 large sigma 0.0089 to 0.0089, timesteps 8.92857 to 8.92857",
            )
        ]
        assert lines[6] == "calls     large x 6, small x 2"
        # 6 * 2 + 2 * 0.5 of what the large model takes for 12 calls.
        assert (
            lines[7]
            == "FLOPs     13 TFLOPs of 24 TFLOPs all-large (54.2%), 6.2% of it attention; speed-up bound 1.846x"
        )
    assert plan_lines(bundle, job("L2 S3:g1:t815.5,700 L1"), "cpu")[2:8] == lines[2:8]


def test_stages_of_one_model_are_told_apart_by_their_guidance(bundle: Bundle) -> None:
    lines = plan_lines(bundle, job("L2 L2:g1 L2", "guidance:2,1001"), "cpu")
    assert [line.split(", ", 2)[2] for line in lines[3:6]] == ["computes 1c", "guidance 1, computes 11", "computes 1c"]
    assert lines[6] == "calls     large x 8, small x 0; the cache skips large x 2, small x 0"


def test_the_shift_of_this_run_is_told(bundle: Bundle) -> None:
    def told(grid: SigmaGrid, shift: float | None = None) -> str:
        pipeline = dataclasses.replace(bundle.manifest.pipeline, grid=grid)
        other = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"pipeline": pipeline}))
        made = dataclasses.replace(job("LSL"), shift=shift)
        return plan_lines(other, made, "cpu")[2].partition("guidance 5, ")[2]

    shifted = SigmaGrid(kind="shifted", shift=3.0)
    # exp(mu), with mu growing from 0 at no token to 1 at 300000.
    dynamic = SigmaGrid(kind="dynamic-shift", base_shift=0.0, max_shift=1.0, base_tokens=0, max_tokens=300_000)
    tokens = bundle.manifest.pipeline.tokens(bundle.manifest.geometry.latent_shape)
    assert tokens == 3 * 200 * 400
    assert told(shifted) == "shift 3"
    assert told(shifted, 5.0) == "shift 5"
    assert told(dynamic) == "shift 2.226 (dynamic, of 240000 tokens)"
    assert told(dynamic, 5.0) == "shift 5"
    assert told(SigmaGrid(kind="linear-quadratic")) == "no shift (linear-quadratic)"


def test_what_the_authors_take_is_told_where_the_job_leaves_it_open(bundle: Bundle) -> None:
    authors = AuthorsSampling(model="Toy", shift=12.0, steps=40, guidance=(4.0,), source="toy.py")
    pipeline = dataclasses.replace(bundle.manifest.pipeline, authors=authors)
    known = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"pipeline": pipeline}))

    def told(**options: Any) -> list[str]:
        lines = plan_lines(known, Job(prompt="x", **options), "cpu")
        return [line for line in lines if line.startswith("authors")]

    both = dataclasses.replace(pipeline, authors=dataclasses.replace(authors, guidance=(4.0, 3.0)))
    experts = Bundle(folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"pipeline": both}))
    assert any(
        "guidance 4 and 3 in place of 5" in line and line.endswith("--steps 40 --guidance 4 --guidance-2 3.")
        for line in plan_lines(experts, Job(prompt="x"), "cpu")
    )
    assert told() == [
        "authors   Toy is sampled by its authors with a shift of 12 in place of 3, 40 steps in place of 50, guidance 4 "
        "in place of 5 (toy.py); for that give --shift 12 --steps 40 --guidance 4."
    ]
    assert told(steps=50, guidance=5.0) == [
        "authors   Toy is sampled by its authors with a shift of 12 in place of 3 (toy.py); for that give --shift 12."
    ]
    assert told(steps=40, guidance=4.0, shift=3.0) == told(schedule="L40", guidance=4.0, shift=3.0) == []
    assert not any(line.startswith("authors") for line in plan_lines(bundle, Job(prompt="x"), "cpu"))


def test_which_steps_are_launched_as_cuda_graphs(bundle: Bundle) -> None:
    def plans(backend: str) -> Bundle:
        components = {
            name: each.model_copy(update={"backend": backend}) for name, each in bundle.manifest.components.items()
        }
        return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"components": components}))

    def line(bundle: Bundle, made: Job, machine: MachineSettings = DEFAULTS) -> list[str]:
        return [line for line in plan_lines(bundle, made, "cuda", machine) if line.startswith("graphs")]

    long = dataclasses.replace(job("L8 S8"), steps=16)
    compiled = plans("tensorrt")
    assert line(compiled, long) == ["graphs    2 of CUDA, which launch 14 of 16 steps"]
    assert plan_facts(compiled, long, "cuda")["graph_launches"] == 14
    assert line(compiled, long, MachineSettings(cuda_graph=False)) == []
    assert plan_facts(compiled, long, "cuda", MachineSettings(cuda_graph=False))["graph_launches"] is None
    assert plan_facts(bundle, long, "cpu")["graph_launches"] is None
    why = "graphs    no CUDA graphs, because "
    assert line(bundle, long) == [why + "calls of ONNX Runtime cannot be captured"]
    assert line(compiled, job("L2 S3 L1")) == [why + "no step comes 4 times with nothing but other numbers"]
    phases = "engines are opened and closed while the steps run"
    assert line(compiled, long, MachineSettings(memory="phases")) == [why + phases]
    assert plan_facts(compiled, long, "cuda", MachineSettings(memory="phases"))["graph_launches"] == 0
    online = dataclasses.replace(long, cache="easycache")
    assert line(compiled, online) == [why + "the cache decides at every step"]


def test_back_ends_and_their_engines_agree_about_graphs() -> None:
    engines = {"tensorrt": TrtEngine, "tensorrt-rtx": TrtEngine, "onnxruntime": OrtEngine}
    for name, engine in engines.items():
        assert BACKENDS.get(name).cuda_graphs == all(hasattr(engine, each) for each in ("graph_state", "is_capturable"))
