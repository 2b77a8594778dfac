"""What becomes of a calibration: it is shown, put into the bundle unless only to be looked at, and taken back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from flowblending.contracts.evidence import CacheEvidence, ScheduleEvidence, read_evidence
from flowblending.contracts.manifest import CalibratedSchedule, Manifest
from flowblending.contracts.models import default_schedule
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.bundle.calibration import add_calibration, remove_calibration
from flowblending.runtime.calibrate.boundaries import by_sigma
from flowblending.runtime.calibrate.findings import Findings, cache_evidence
from flowblending.runtime.calibrate.plot import write_plot
from flowblending.runtime.calibrate.report import show
from flowblending.runtime.calibrate.run import Calibrator
from flowblending.runtime.jobs import compile_job, job_shift, option_of_shift, words_of_shift
from flowblending.runtime.option import CALIBRATE
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.registry import measured_caches
from flowblending.runtime.program.cost import cost_of
from flowblending.system.console import Console
from flowblending.system.shell import command


def calibrate_schedule(calibrator: Calibrator, jobs: Sequence[Job], *, plot: Path | None, by: str, apply: bool) -> None:
    """Measure, show and draw, and make the schedule that was found the bundle's default.

    Args:
        plot: file of the picture; None for none.
        by: ``steps`` to keep the schedule as shares of the steps, ``sigma`` to keep its boundaries' noise levels.
        apply: whether the bundle is changed.
    """
    console, bundle = calibrator.console, calibrator.pipeline.bundle
    findings = calibrator.findings(jobs)
    evidence = findings.evidence()
    show(ScheduleEvidence.model_validate(json.loads(json.dumps({"number": 1, **evidence}))), console)
    if plot is not None:
        write_plot(findings, plot)
        console.log(f"{plot}: divergence and boundaries")
    runs = by_sigma(findings.runs, findings.sigmas) if by == "sigma" else findings.runs
    shift = job_shift(jobs[0], bundle.manifest.pipeline)
    apply = apply and not _misled(findings, console)
    if apply:
        bundle = add_calibration(bundle, evidence, runs=runs, shift=shift)
    program = compile_job(dataclasses.replace(jobs[0], schedule=findings.runs, cache="off"), bundle.manifest)
    bound = cost_of(program, bundle.manifest).bound
    chosen = findings.runs if runs == findings.runs else f"{findings.runs}, kept as {runs}"
    console.result(f"{bundle.folder}: {chosen}{_all_large(findings)}, speed-up bound {bound:.3f}x")
    if apply:
        console.result(f"fb-run{option_of_shift(shift)} takes it from now on; {_undo(bundle)} takes it back")
    else:
        tried = command("fb-run", bundle.folder, "--schedule", findings.runs)
        console.result(f"the bundle is as it was; try it with {tried}{option_of_shift(shift)}")
    console.log(f"measurements are kept in {calibrator.work.folder}; remove it when you need it no more")
    found = {"schedule": findings.runs, "kept": runs if apply else None, "applied": apply, "speedup_bound": bound}
    files = {"work": calibrator.work.folder, "plot": plot}
    console.document(CALIBRATE, {"bundle": bundle.folder, **found, "shift": shift, **files, "evidence": evidence})


def _misled(findings: Findings, console: Console) -> bool:
    """Whether the schedule may not become a default: by the divergence alone, the small model decides the structure."""
    if not findings.by_divergence or not findings.runs.startswith(findings.pair.second):
        return False
    console.warn(
        f"{findings.runs} begins with the small model, which decides the video's structure there; the divergence alone "
        "is a bad guide at the start, so that it does not become the bundle's default; calibrate without --proxy-only."
    )
    return True


def _all_large(findings: Findings) -> str:
    return "" if findings.pair.second in findings.runs else ", all-large, since no switch meets the criteria"


def calibrate_caches(calibrator: Calibrator, jobs: Sequence[Job], caches: Sequence[str], *, apply: bool) -> None:
    """Measure and show the constants of step caches, and put them into the bundle if ``apply``."""
    console, bundle = calibrator.console, calibrator.pipeline.bundle
    names = list(dict.fromkeys(caches))
    steps = jobs[0].steps or bundle.manifest.pipeline.steps
    # Models with timesteps or guidance of their own take no caches that are measured at the run's.
    letters = [model.letter for model in bundle.manifest.models if model.sampling is None]
    found = calibrator.divergence(jobs, f"{letters[0]}{steps}", letters)
    constants, evidence = cache_evidence(found, names, jobs, steps)
    show(CacheEvidence.model_validate({"number": 1, **evidence}), console)
    shift = job_shift(jobs[0], bundle.manifest.pipeline)
    console.document(
        CALIBRATE,
        {"bundle": bundle.folder, "applied": apply, "shift": shift, "caches": constants, "evidence": evidence},
    )
    if not apply:
        console.result(f"{bundle.folder}: the bundle is as it was; leave out --no-apply to put the constants into it")
        return
    bundle = add_calibration(bundle, evidence, caches=constants, shift=shift)
    taken = " and ".join(f"--cache {measured_caches()[name][0].name}" for name in names)
    console.result(f"{bundle.folder}: takes {taken}{option_of_shift(shift)} now; {_undo(bundle)} takes it back")


def show_calibration(bundle: Bundle, console: Console) -> None:
    """Tell what a bundle was calibrated to, and why.

    Raises:
        FlowBlendingError: its evidence cannot be read.
    """
    calibration = bundle.manifest.calibration
    console.document(CALIBRATE, {"bundle": bundle.folder, "calibration": _stored(bundle)})
    if calibration is None:
        console.result(f"{bundle.folder}: not calibrated; fb-run takes {_family(bundle.manifest)}")
        return
    for file in calibration.evidence:
        evidence = read_evidence(bundle.folder / file.path)
        console.result(f"{file.path}:")
        show(evidence, console)
    if calibration.schedule is not None:
        console.result(f"{bundle.folder}: {_described(calibration.schedule)}")
    for name, models in calibration.caches.items():
        shift = words_of_shift(calibration.shifts.get(name))
        console.result(f"{bundle.folder}: constants of {name} for {' and '.join(models)}, at {shift}")
    console.result(f"{_undo(bundle)} takes it all back")


def reset_calibration(bundle: Bundle, console: Console) -> None:
    """Take a bundle's calibration back.

    Raises:
        FlowBlendingError: the bundle cannot be written.
    """
    calibration = bundle.manifest.calibration
    now = f"fb-run takes {_family(bundle.manifest)}"
    if calibration is None:
        console.result(f"{bundle.folder}: not calibrated, so that there is nothing to take back; {now}")
        console.document(CALIBRATE, {"bundle": bundle.folder, "taken_back": None})
        return
    remove_calibration(bundle)
    taken = calibration.model_dump(mode="json", include={"schedule", "caches", "shifts"})
    console.document(CALIBRATE, {"bundle": bundle.folder, "taken_back": taken})
    parts = [] if calibration.schedule is None else [f"the schedule {calibration.schedule.runs}"]
    parts += [f"the constants of {name}" for name in calibration.caches]
    console.result(f"{bundle.folder}: {' and '.join(parts)} taken back; {now}")


def _stored(bundle: Bundle) -> dict[str, object] | None:
    """A bundle's calibration as plain data, with its evidence."""
    calibration = bundle.manifest.calibration
    if calibration is None:
        return None
    files = [bundle.folder / file.path for file in calibration.evidence]
    evidence = {path.name: read_evidence(path).model_dump(mode="json") for path in files}
    return {**calibration.model_dump(mode="json", include={"schedule", "caches", "shifts"}), "evidence": evidence}


def _described(schedule: CalibratedSchedule) -> str:
    holds = "any shift" if schedule.by_sigma else words_of_shift(schedule.shift)
    return f"fb-run takes {schedule.runs} ({schedule.evidence}), at {holds}"


def _family(manifest: Manifest) -> str:
    schedule = default_schedule(manifest.models)
    program = compile_job(Job(prompt="", schedule=schedule), manifest)
    return f"{schedule} with the family's boundaries, {program.schedule}"


def _undo(bundle: Bundle) -> str:
    return command("fb-calibrate", bundle.folder, "--reset")
