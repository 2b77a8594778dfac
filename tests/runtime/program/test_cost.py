"""Costs counted by hand on a small manifest, and the memory of measured times."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending.contracts.manifest import Flops, Manifest
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.program import Program
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.cost import Cost, Timings, cost_of
from tests.support import manifests

LARGE_FLOPS, SMALL_FLOPS = 1100, 110
LATENT_BYTES = 4 * 16 * 3 * 4 * 8
SECONDS = {"large": 1.5, "text_encoder": 0.25}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return manifests.write(tmp_path / "bundle")


def program(manifest: Manifest, schedule: str, *, guidance: float = 5.0, cache: str = "off") -> Program:
    job = Job(prompt="x", schedule=schedule, steps=6, solver="euler", guidance=guidance, cache=cache)
    return compile_job(job, manifest)


def test_two_branches_a_step_count_twice(manifest: Manifest) -> None:
    cost = cost_of(program(manifest, "L2 S3 L1"), manifest)
    assert cost.calls == {"large": 6, "small": 6}
    assert cost.flops == 6 * LARGE_FLOPS + 6 * SMALL_FLOPS
    assert cost.flops_all_large == 12 * LARGE_FLOPS
    assert cost.bound == pytest.approx(2 / 1.1)
    # Euler needs the latents and the velocity of each branch.
    assert cost.slot_bytes == 3 * LATENT_BYTES


def test_without_guidance_a_step_is_one_call(manifest: Manifest) -> None:
    cost = cost_of(program(manifest, "L2 S3 L1", guidance=1.0), manifest)
    assert cost.calls == {"large": 3, "small": 3}
    assert cost.bound == pytest.approx(2 / 1.1)
    assert cost.slot_bytes == 2 * LATENT_BYTES


@pytest.mark.parametrize(
    ("cache", "guidance", "calls", "skipped"),
    [
        ("mask:101001", 5.0, (4, 2), (2, 4)),
        ("mask:101001", 1.0, (2, 1), (1, 2)),
        ("interval:2+taylor:2", 5.0, (4, 4), (2, 2)),
        ("guidance:2,1001", 5.0, (5, 5), (1, 1)),
        ("mask:111011+guidance:2,1001", 5.0, (5, 3), (1, 3)),
        ("mask:111111", 5.0, (6, 6), (0, 0)),
    ],
)
def test_a_cache_leaves_out_calls(
    manifest: Manifest, cache: str, guidance: float, calls: tuple[int, int], skipped: tuple[int, int]
) -> None:
    cost = cost_of(program(manifest, "L2 S3 L1", guidance=guidance, cache=cache), manifest)
    assert (cost.calls["large"], cost.calls["small"]) == calls
    assert (cost.skipped["large"], cost.skipped["small"]) == skipped
    assert cost.flops == calls[0] * LARGE_FLOPS + calls[1] * SMALL_FLOPS
    assert cost.flops_all_large == (12 if guidance > 1 else 6) * LARGE_FLOPS


def test_the_authors_large_distilled_large(manifest: Manifest) -> None:
    """Their LTX pair: 40 steps with guidance take 3496 TFLOPs; half of the distilled model's 8 for 20 of them, 1774."""
    flops = {"large": 43_705, "small": 6_427}  # billions a call, linear layers only (docs/schedules.md)
    components = {
        name: component.model_copy(update={"flops": Flops(linear=(flops.get(name, 1) * 10**9, 0), attention=(0, 0, 0))})
        for name, component in manifest.components.items()
    }
    pair = manifest.model_copy(update={"components": components})

    def cost(schedule: str) -> Cost:
        job = Job(prompt="x", schedule=schedule, steps=40, solver="euler", guidance=3.0)
        return cost_of(compile_job(job, pair), pair)

    blended = cost("L13 S20:g1:t850,800,700,600 L7")
    assert blended.calls == {"large": 40, "small": 4}
    assert blended.skipped == {"large": 0, "small": 0}
    assert blended.flops / 1e12 == pytest.approx(1774, rel=1e-3)
    assert blended.flops_all_large / 1e12 == pytest.approx(3496, rel=1e-3)
    alone = cost("S40:g1:t1000,950,900,800,700,600,400,200")
    assert alone.flops / 1e12 == pytest.approx(51.4, rel=1e-3)
    assert alone.flops_all_large == blended.flops_all_large


def test_all_large_is_what_lll_runs(manifest: Manifest) -> None:
    """A large model with three timesteps and no guidance of its own: not the six guided steps of the run."""
    sampling = ModelSampling(timesteps=(1000.0, 700.0, 300.0), guidance=1.0)
    large, small = manifest.models
    distilled = manifest.model_copy(update={"models": (large.model_copy(update={"sampling": sampling}), small)})
    alone, blended = (cost_of(program(distilled, schedule), distilled) for schedule in ("LLL", "L3 S3"))
    assert alone.flops == alone.flops_all_large == blended.flops_all_large == 3 * LARGE_FLOPS
    assert blended.calls == {"large": 2, "small": 6}


def test_only_models_that_run_are_loaded_and_everything_else_always_is(manifest: Manifest) -> None:
    sizes = {"large": 7000, "small": 200, "text_encoder": 30, "vae": 4}
    components = {
        name: component.model_copy(update={"files": (component.files[0].model_copy(update={"bytes": sizes[name]}),)})
        for name, component in manifest.components.items()
    }
    manifest = manifest.model_copy(update={"components": components})
    for schedule, size, bound in (("L2 S3 L1", 7234, 2 / 1.1), ("LLL", 7034, 1.0), ("SSS", 234, 10.0)):
        cost = cost_of(program(manifest, schedule), manifest)
        assert cost.engine_bytes == size
        assert cost.bound == pytest.approx(bound)


def test_times_are_kept_by_bundle_device_and_size_and_updated_by_model(tmp_path: Path) -> None:
    here = Timings("0123", "cpu", SHAPE, tmp_path)
    assert here.read() == {}
    here.write(SECONDS)
    here.write({"small": 0.5, "large": 1.0})
    assert Timings("0123", "cpu", SHAPE, tmp_path).read() == {**SECONDS, "small": 0.5, "large": 1.0}
    assert Timings("0123", "cuda", SHAPE, tmp_path).read() == {}
    assert Timings("4567", "cpu", SHAPE, tmp_path).read() == {}
    assert Timings("0123", "cpu", (16, 3, 8, 4), tmp_path).read() == {}


SHAPE = (16, 3, 4, 8)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"large": null}', b'{"large": "fast"}', b"\xff"], ids=repr)
def test_damaged_times_are_measured_again(tmp_path: Path, content: bytes) -> None:
    timings = Timings("0123", "cpu", SHAPE, tmp_path)
    timings.write({"small": 9.0})
    (stored,) = (path for path in tmp_path.rglob("*") if path.is_file())
    stored.write_bytes(content)
    assert timings.read() == {}
    timings.write(SECONDS)
    assert timings.read() == SECONDS
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stored]


def test_times_that_cannot_be_stored_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    for timings in (Timings("0123", "cpu", SHAPE, tmp_path / "cache"), Timings("0123", "cpu", SHAPE)):
        timings.write(SECONDS)
        assert timings.read() == {}


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")
