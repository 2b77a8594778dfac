from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, WAN_T2V_1_3B, WAN_T2V_14B, SigmaGrid
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.model_sampling import write_number
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.bundle.calibration import add_calibration
from flowblending.runtime import jobs
from flowblending.runtime.decode_conditioning import DecodeConditioning
from flowblending.runtime.jobs import compile_job, job_conditioning, passed_over
from flowblending.runtime.options import Job
from flowblending.runtime.program.presets import PRESETS
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.prompt_file import read_jobs
from flowblending.runtime.unused import unused_options
from tests.support import manifests

DEFAULTS = Job(prompt="", seed=7, steps=4)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_may_have_a_cache_of_its_own(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    text = '{"prompt": "x", "cache": "mask:1010"}\n{"prompt": "x", "cache": "mask:101"}\nx\n'
    own, wrong, plain = (line.job for line in read_jobs(write(tmp_path, text), Job(prompt="", steps=4, schedule="LLL")))
    assert own and wrong and plain
    assert [compile_job(job, manifest).calls("large") for job in (own, plain)] == [4, 8]
    assert own.file_stem("b") != plain.file_stem("b")
    with pytest.raises(UsageError, match="The mask has 3 digits, but the run has 4 steps"):
        compile_job(wrong, manifest)


def test_magcache_knows_the_models_by_the_manifest(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", schedule="LSL", cache="magcache")
    with pytest.raises(UsageError, match="the bundle's large model is not known as one of them"):
        compile_job(job, manifest)
    names = {LARGE: WAN_T2V_14B, SMALL: WAN_T2V_1_3B}
    components = {
        name: component.model_copy(update={"architecture": names.get(name)})
        for name, component in manifest.components.items()
    }
    program = compile_job(job, manifest.model_copy(update={"components": components}))
    assert program.schedule == "L20 S20 L10"
    assert program.calls(LARGE) + program.calls(SMALL) < 100


def test_file_names_are_readable_and_follow_the_job() -> None:
    job = Job(prompt="A cat / walks: on the grass, in a very realistic style 🐈")
    assert job.file_stem("b").startswith("a-cat-walks-on-the-grass-in-a-very")
    assert job.file_stem("b") == Job(prompt=job.prompt).file_stem("b")
    assert job.file_stem("b") != Job(prompt=job.prompt, seed=1).file_stem("b")
    assert job.file_stem("b") != job.file_stem("another bundle")
    assert "-" not in Job(prompt="🐈").file_stem("b")


def test_a_schedule_that_says_its_number_of_steps_needs_no_other(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    usual = len(compile_job(Job(prompt="x"), manifest).steps)
    for schedule, steps in (("L3 S4", 7), ("l1 s1:g1", 2), ("LSL", usual), (" lsl ", usual), ("auto", usual)):
        assert len(compile_job(Job(prompt="x", schedule=schedule), manifest).steps) == steps
    with pytest.raises(UsageError, match="L3 S4 add up to 7 steps, but 9 steps were asked for"):
        compile_job(Job(prompt="x", schedule="L3 S4", steps=9), manifest)
    with pytest.raises(UsageError, match="1200 steps were asked for, but the models tell 1000"):
        compile_job(Job(prompt="x", schedule="L1200"), manifest)


def test_many_jobs_are_checked_and_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    compiled = Mock(wraps=compile_job)
    monkeypatch.setattr(jobs, "compile_job", compiled)
    check = jobs.job_check(manifest)
    for seed in range(5):
        check(Job(prompt=f"prompt {seed}", seed=seed, steps=4))
        with pytest.raises(UsageError, match="5000 steps were asked for"):
            check(Job(prompt=f"prompt {seed}", seed=seed, steps=5000))
    assert compiled.call_count == 2


def test_guidance_rescale_is_the_jobs_or_the_bundles(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", steps=4, guidance=5.0)
    assert compile_job(job, manifest).guidance_rescale == 0.0
    assert compile_job(replace(job, guidance_rescale=0.7), manifest).guidance_rescale == 0.7
    rescaled = manifest.model_copy(update={"pipeline": replace(manifest.pipeline, guidance_rescale=0.5)})
    assert compile_job(job, rescaled).guidance_rescale == 0.5
    assert compile_job(replace(job, guidance_rescale=0.0), rescaled).guidance_rescale == 0.0
    # The bundle's own is no request: without guidance it is not needed.
    assert compile_job(replace(job, guidance=1.0), rescaled).guidance_rescale == 0.0
    for guidance, schedule in ((1.0, "LSL"), (5.0, "L2:g1 S2:g0")):
        unguided = replace(job, guidance=guidance, schedule=schedule, guidance_rescale=0.7)
        with pytest.raises(UsageError, match=r"A guidance rescale of 0\.7 was given, but no step of this run is"):
            compile_job(unguided, manifest)


def test_options_of_a_decoder_that_has_none_are_refused_before_work(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    plain = Job(prompt="x", steps=4)
    for job in (replace(plain, decode_timestep=0.05), replace(plain, decode_noise_scale=0.0)):
        with pytest.raises(UsageError, match="this bundle's VAE decoder takes neither a timestep nor noise"):
            compile_job(job, manifest)
    pipeline = replace(manifest.pipeline, decode_timestep=0.05, decode_noise_scale=0.025)
    conditioned = manifest.model_copy(update={"pipeline": pipeline})
    job = Job(prompt="x", steps=4, decode_timestep=0.1)
    compile_job(job, conditioned)
    assert job_conditioning(job, conditioned) == DecodeConditioning(timestep=0.1, noise_scale=0.025)
    with pytest.raises(UsageError, match="The decode timestep is 50, but a number from 0 to 1"):
        compile_job(Job(prompt="x", steps=4, decode_timestep=50), conditioned)


def test_a_video_too_large_for_the_checkpoints_shift_is_named(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    grid = SigmaGrid(kind="dynamic-shift", base_shift=0.95, max_shift=99.0, base_tokens=1, max_tokens=2)
    shifted = manifest.model_copy(update={"pipeline": replace(manifest.pipeline, grid=grid)})
    size = f"{manifest.geometry.width}x{manifest.geometry.height}, {manifest.geometry.frames} frames"
    with pytest.raises(UsageError, match=f"For {size}, the checkpoint's dynamic shift"):
        compile_job(Job(prompt="x", steps=4, solver="euler"), shifted)


def test_the_shift_is_the_jobs_or_the_bundles(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", schedule="LLL")

    def levels(solver: str, shift: float | None, made: Manifest = manifest) -> list[tuple[float, float]]:
        steps = compile_job(replace(job, solver=solver, shift=shift), made).steps
        return [(step.sigma, step.timestep) for step in steps]

    for solver in SOLVERS.built_in:
        expected = sigma_grid(SigmaGrid(kind="shifted", shift=5.0), solver, 50, 0)
        assert levels(solver, 5.0) == list(zip(expected.sigmas, expected.timesteps, strict=False))
        assert levels(solver, 3.0) == levels(solver, None) != levels(solver, 5.0)
    fixed = replace(manifest.pipeline, grid=SigmaGrid(kind="linear-quadratic"))
    with pytest.raises(UsageError, match="A shift of 5 was given, but the noise levels of this model's pipeline are a"):
        levels("euler", 5.0, manifest.model_copy(update={"pipeline": fixed}))


def test_boundaries_are_for_named_schedules(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", boundaries="t819,t430")
    for schedule in ("auto", "LSL"):
        assert compile_job(replace(job, schedule=schedule), manifest).schedule == "L20 S20 L10"
    assert compile_job(replace(job, shift=5.0), manifest).schedule == "L27 S17 L6"
    assert compile_job(Job(prompt="x", schedule="L@t819 S@t430 L", shift=5.0), manifest).schedule == "L27 S17 L6"
    with pytest.raises(UsageError, match="Boundaries are for a schedule of stage letters"):
        compile_job(replace(job, schedule="L20 S20 L10"), manifest)


def test_a_calibration_holds_for_its_shift(tmp_path: Path) -> None:
    """Another shift has other noise levels at the same steps."""
    manifests.write(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    ratios = [1.0] * 10
    constants = {"magcache": {LARGE: ratios, SMALL: ratios}}
    job = Job(prompt="x", steps=10)
    own = add_calibration(bundle, {}, runs="L1 S3 L1", caches=constants).manifest
    assert compile_job(job, own).schedule == compile_job(replace(job, shift=3.0), own).schedule == "L2 S6 L2"
    assert compile_job(replace(job, shift=5.0), own).schedule == "L4 S4 L2"
    assert passed_over(job, own) is passed_over(replace(job, shift=5.0, schedule="LSL"), own) is None
    (told,) = unused_options(replace(job, shift=5.0), compile_job(job, own), own, timed=True)
    assert told == (
        "the calibrated schedule L1 S3 L1 is not taken, because it was found at the bundle's own shift, and this run "
        "has a shift of 5; calibrate at that with fb-calibrate BUNDLE --prompts FILE --shift 5, or give a schedule."
    )
    cached = replace(job, cache="magcache", schedule="LSL")
    compile_job(cached, own)
    with pytest.raises(UsageError, match="magcache were measured at the bundle's own shift, and this run has a shift "):
        compile_job(replace(cached, shift=5.0), own)
    compile_job(replace(cached, cache="scm:slow", shift=5.0), own)

    other = add_calibration(bundle, {}, runs="L1 S4", caches=constants, shift=5.0).manifest
    assert compile_job(replace(job, shift=5.0), other).schedule == "L2 S8"
    assert compile_job(job, other).schedule == "L4 S4 L2"
    compile_job(replace(cached, shift=5.0), other)
    with pytest.raises(UsageError, match="measured at a shift of 5, and this run has the bundle's own shift; measure "):
        compile_job(cached, other)
    again = add_calibration(bundle, {}, caches=constants).manifest
    compile_job(cached, again)
    assert again.calibration is not None
    assert again.calibration.schedule is not None
    assert (again.calibration.shifts, again.calibration.schedule.shift) == ({}, 5.0)


def test_a_line_may_have_a_shift_and_boundaries_of_its_own(tmp_path: Path) -> None:
    """One bundle of two sizes, each with its own."""
    manifest = manifests.write(tmp_path / "bundle")
    text = '{"prompt": "x", "shift": 5, "boundaries": "t819,t430"}\nx\n{"prompt": "x", "flow_shift": 5}\n'
    text += '{"prompt": "x", "shift": 0}\n{"prompt": "x", "shift": 1000}\n'
    own, plain, meant, *wrong = read_jobs(write(tmp_path, text), Job(prompt=""))
    assert own.job and plain.job
    assert [compile_job(job, manifest).schedule for job in (own.job, plain.job)] == ["L27 S17 L6", "L20 S20 L10"]
    assert own.job.file_stem("b") != replace(own.job, shift=None).file_stem("b")
    assert "shift is probably what was meant" in str(meant.error)
    assert all("but a finite number from 0.01 to 100 was expected" in str(line.error) for line in wrong)


def test_presets_are_for_a_model_family(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", schedule="L3 S4:lightning4 L1", steps=8)
    assert compile_job(job, manifest).schedule == "L3 S4:g1:t833.3333333333334,625 L1"
    with pytest.raises(UsageError) as error:
        compile_job(replace(job, schedule="L3 S4:ltxv7 L1"), manifest)
    assert str(error.value) == (
        "The preset ltxv7 is for LTX-Video 0.9.7 and 0.9.8 distilled, at one size (family ltx), but the bundle's "
        "models are of the family wan; take lightning4, or give the stage timesteps of its own, such as "
        "S20:g1:t909,725."
    )


def test_the_documents_list_every_preset() -> None:
    text = (Path(__file__).parents[2] / "docs/schedules.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `")]
    for name, preset in PRESETS.items():
        (row,) = (line for line in table if line.startswith(f"| `{name}` | "))
        told = row.replace("the same, and 421.9", ", ".join(map(write_number, preset.sampling.timesteps)))
        for timestep in preset.sampling.timesteps:
            assert f"{timestep:.2f}".rstrip("0").rstrip(".") in told


@pytest.mark.parametrize(
    ("count", "schedule", "message"),
    [
        (2, "LXL", r"^The schedule LXL has the letter X, but this bundle has the models L \(large\), S \(small\); use"),
        (2, "L20 M30", r"^The schedule L20 M30 has the letter M, but"),
        (1, "LSL", r"^The schedule LSL has the letter S, but this bundle has one model, L \(large\); use its letter"),
    ],
)
def test_letters_are_those_of_the_bundle(tmp_path: Path, count: int, schedule: str, message: str) -> None:
    manifest = manifests.write(tmp_path / "b")
    manifest = manifest.model_copy(update={"models": manifest.models[:count]})
    with pytest.raises(UsageError, match=message):
        compile_job(Job(prompt="x", schedule=schedule), manifest)
    # Without a schedule, a bundle of one model runs that.
    assert compile_job(Job(prompt="x"), manifest).schedule == ("L20 S20 L10" if count == 2 else "L50")
