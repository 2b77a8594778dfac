"""``fb-calibrate``: a bundle and prompts in, the schedule for that bundle out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import add_machine, add_options, check_machine, command_line, given
from flowblending.runtime.option import CALIBRATE
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import FAMILY_HELP, HOW, MACHINE, OUTPUT, WHAT, Job
from flowblending.runtime.program.caches.registry import MEASURED, measured_caches, measured_name

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.runtime.calibrate.budget import Allowance
    from flowblending.runtime.calibrate.run import Calibrator
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.system.console import Console

DEFAULT_PLOT = Path("calibration.png")
PARTS = 10


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-calibrate``."""
    parser = command_line(
        CALIBRATE,
        "Measure where a bundle's models may be switched, and make that its default schedule.",
        "fb-calibrate wan --prompts prompts.txt",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that fb-build-engines wrote")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        required=True,
        help="one prompt a line, or one JSON object a line with prompt, seed, ...",
    )
    how = parser.add_argument_group(HOW, FAMILY_HELP)
    add_options(how, CALIBRATE, [WHAT, HOW, OUTPUT])
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--proxy-only", action="store_true", help="choose by the divergence of the velocities; generate nothing"
    )
    what.add_argument(
        "--blended", action="store_true", help="also measure the divergence along the chosen schedule's trajectory"
    )
    what.add_argument(
        "--budget",
        metavar="B",
        help="beyond three stages: the best schedule within this share of all-large sampling's operations (0.6 or "
        "60%%), or within these seconds a video (12.5s); with --proxy-only by the divergence alone",
    )
    what.add_argument(
        "--switches", type=int, default=4, metavar="N", help="at most so many, with --budget (default: 4)"
    )
    what.add_argument(
        "--cache",
        action="append",
        type=measured_name,
        metavar="{" + ",".join(MEASURED) + "}",
        help="measure the constants of this step cache, and leave the schedule as it is",
    )
    what.add_argument(
        "--similarity",
        default="latent",
        metavar="F",
        help="early boundary: latent (the cosine), dino:DIR, clip:DIR, or MODULE:FUNCTION from frames, uint8 "
        "[F, H, W, 3], to features",
    )
    what.add_argument(
        "--distance",
        default="latent",
        metavar="F",
        help="late boundary: latent (their statistics), inception:FILE, i3d:FILE, or MODULE:FUNCTION",
    )
    what.add_argument(
        "--threshold", type=float, default=0.96, metavar="T", help="similarity to keep, 0 to 1 (default: 0.96)"
    )
    what.add_argument(
        "--parts",
        type=int,
        default=PARTS,
        metavar="N",
        help=f"try boundaries at every N-th part, and measure so many blocks with --budget (default: {PARTS})",
    )
    where = parser.add_argument_group(OUTPUT)
    where.add_argument("--plot", type=Path, default=DEFAULT_PLOT, metavar="FILE", help=f"(default: {DEFAULT_PLOT})")
    where.add_argument("--no-plot", action="store_true", help="write no plot, which takes matplotlib")
    where.add_argument(
        "--work", type=Path, metavar="DIR", help="measurements of each prompt, to resume from (default: BUNDLE.work)"
    )
    where.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    add_machine(parser.add_argument_group(MACHINE), CALIBRATE)
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.calibrate.prompts import check_jobs, read_prompts
    from flowblending.system.console import Console

    _check(arguments)
    console = Console(quiet=arguments.quiet)
    bundle = open_bundle(arguments.bundle)
    lines = read_prompts(arguments.prompts, _defaults(arguments), console.log)
    jobs = check_jobs(lines, arguments.prompts, bundle.manifest)
    _check_targets(arguments, bundle)
    _warn_unused(arguments, jobs[0], bundle, console)
    _check_signals(arguments.cache or (), bundle)
    budget = None if arguments.budget is None else _allowance(arguments, bundle, jobs[0])
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(progress=advance)
    pipeline = _open(arguments, bundle)
    try:
        calibrator = _calibrator(arguments, budget, pipeline, console)
        if arguments.cache:
            return _calibrate_caches(calibrator, jobs, arguments.cache)
        return _calibrate_schedule(calibrator, jobs, None if arguments.no_plot else arguments.plot)
    finally:
        pipeline.close()
        pipeline.device.close()


def _check_signals(caches: Sequence[str], bundle: Bundle) -> None:
    """Refuse caches whose constants come of graphs that the bundle was built without."""
    for name in caches:
        cache, measurement = measured_caches()[name]
        if measurement.needs_signal and not bundle.manifest.signals:
            raise UsageError(
                f"The bundle {bundle.folder} was built without the graphs that {cache.name} looks at; build it again, "
                f"which reuses its engines: {bundle.rebuild} --teacache"
            )


def _warn_unused(arguments: argparse.Namespace, job: Job, bundle: Bundle, console: Console) -> None:
    """Tell of options that do nothing on this bundle."""
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.unused import unused_options, unused_threads

    program = compile_job(dataclasses.replace(job, schedule="LLL"), bundle.manifest)
    for line in unused_options(job, program, bundle.manifest, timed=False):
        console.warn(line)
    unused_threads(arguments.threads, device_kind(arguments.device, bundle.manifest), bundle.manifest, console.warn)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that make no sense."""
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.runtime.calibrate.budget import read_budget

    if not 0 < arguments.threshold <= 1:
        raise UsageError(f"The threshold is {arguments.threshold}, but a similarity above 0, up to 1, was expected.")
    if arguments.parts < 2:
        raise UsageError(
            f"{arguments.parts} parts were asked for, but at least 2 make a boundary; try --parts {PARTS}."
        )
    check_machine(arguments)
    given(arguments, CALIBRATE)
    if arguments.cache and (arguments.proxy_only or arguments.blended or arguments.budget is not None):
        raise UsageError(
            "--cache measures constants and chooses no schedule; leave out --proxy-only, --blended and --budget."
        )
    if arguments.budget is not None:
        read_budget(arguments.budget)
    if arguments.switches < 1:
        raise UsageError(f"{arguments.switches} switches were allowed, but at least 1 is needed; try --switches 2.")
    _check_used(arguments)
    for path in (arguments.work, None if arguments.no_plot else arguments.plot):
        if path is not None:
            check_outside(path)


def _check_used(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing beside the others."""
    criteria = ["similarity", "distance", "threshold"]
    if arguments.cache:
        what, unused = "--cache", [*criteria, "parts", "switches", "plot"]
    elif arguments.budget is not None:
        what, unused = "--budget", [*criteria, *["parts"] * arguments.proxy_only]
    elif arguments.proxy_only:
        what, unused = "--proxy-only", [*criteria, "parts", "switches"]
    else:
        what, unused = "schedules without a --budget", ["switches"]
    line = parser()
    for name in unused:
        if getattr(arguments, name) != line.get_default(name):
            raise UsageError(f"--{name} does nothing for {what}; leave it out.")


def _check_targets(arguments: argparse.Namespace, bundle: Bundle) -> None:
    """Find out before hours of work whether its results can be written."""
    from flowblending.contracts.manifest import MANIFEST
    from flowblending.runtime.calibrate.plot import check_plotting
    from flowblending.system.output import check_file

    check_file(bundle.folder / MANIFEST)
    if not arguments.no_plot and not arguments.cache:
        check_plotting()
        check_file(arguments.plot)


def _defaults(arguments: argparse.Namespace) -> Job:
    return make_job({"prompt": "", **given(arguments, CALIBRATE)})


def _open(arguments: argparse.Namespace, bundle: Bundle) -> Pipeline:
    from flowblending.runtime.devices.open import open_device
    from flowblending.runtime.pipeline import Pipeline

    return Pipeline(bundle=bundle, device=open_device(arguments.device, bundle.manifest), threads=arguments.threads)


def _allowance(arguments: argparse.Namespace, bundle: Bundle, job: Job) -> Allowance:
    """What the budget comes to, found out before anything is measured."""
    from flowblending.runtime.calibrate.budget import allowance
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.program.cost import Timings

    program = compile_job(dataclasses.replace(job, schedule="LLL", cache="off"), bundle.manifest)
    timings = Timings(bundle.manifest.id, device_kind(arguments.device, bundle.manifest), program.latent_shape)
    return allowance(arguments.budget, bundle.manifest, program, timings.read())


def _calibrator(
    arguments: argparse.Namespace, budget: Allowance | None, pipeline: Pipeline, console: Console
) -> Calibrator:
    from flowblending.runtime.calibrate.features import distance_measure, similarity_measure
    from flowblending.runtime.calibrate.measure import Measures
    from flowblending.runtime.calibrate.run import CalibrationRequest, Calibrator
    from flowblending.runtime.calibrate.work import Work

    folder: Path = pipeline.bundle.folder.resolve()
    work = Work(folder=arguments.work or folder.with_name(f"{folder.name}.work"))
    request = CalibrationRequest(
        parts=arguments.parts,
        threshold=arguments.threshold,
        measures=Measures(
            similarity=similarity_measure(arguments.similarity), distance=distance_measure(arguments.distance)
        ),
        proxy_only=arguments.proxy_only,
        blended=arguments.blended,
        budget=budget,
        switches=arguments.switches,
    )
    work.open()
    return Calibrator(pipeline=pipeline, request=request, work=work, console=console)


def _calibrate_schedule(calibrator: Calibrator, jobs: Sequence[Job], plot: Path | None) -> int:
    from flowblending.engine.bundle.calibration import add_calibration
    from flowblending.runtime.calibrate.plot import write_plot
    from flowblending.runtime.calibrate.report import show
    from flowblending.runtime.jobs import compile_job, job_shift, option_of_shift
    from flowblending.runtime.program.cost import cost_of

    console, bundle = calibrator.console, calibrator.pipeline.bundle
    if len(jobs) == 1 and not calibrator.request.proxy_only:
        console.warn("with one prompt there is no spread between prompts to compare with; 8 or more say much more.")
    findings = calibrator.findings(jobs)
    show(findings, console)
    if plot is not None:
        write_plot(findings, plot)
        console.log(f"{plot}: divergence and boundaries")
    if findings.runs.startswith("S"):
        console.warn(
            f"{findings.runs} begins with the small model, which decides the video's structure there; the divergence "
            "alone is a bad guide at the start, so look at the videos, or calibrate without --proxy-only."
        )
    shift = job_shift(jobs[0], bundle.manifest.pipeline)
    bundle = add_calibration(bundle, findings.evidence(), runs=findings.runs, shift=shift)
    early, late = findings.proxy
    console.log(f"by the divergence alone: L{early} at the start and L{late} at the end")
    program = compile_job(dataclasses.replace(jobs[0], schedule=findings.runs, cache="off"), bundle.manifest)
    bound = cost_of(program, bundle.manifest).bound
    taken = f"fb-run{option_of_shift(shift)} takes it from now on"
    console.log(f"{bundle.folder}: {_chosen(findings.runs)}, speed-up bound {bound:.3f}x; {taken}")
    console.log(f"measurements are kept in {calibrator.work.folder}; remove it when you need it no more")
    return 0


def _chosen(runs: str) -> str:
    if "S" not in runs:
        return f"{runs}, all-large, since no switch meets the criteria"
    return runs


def _calibrate_caches(calibrator: Calibrator, jobs: Sequence[Job], caches: Sequence[str]) -> int:
    from flowblending.engine.bundle.calibration import add_calibration
    from flowblending.runtime.calibrate.findings import cache_evidence
    from flowblending.runtime.jobs import job_shift, option_of_shift

    names = list(dict.fromkeys(caches))
    steps = jobs[0].steps or calibrator.pipeline.bundle.manifest.pipeline.steps
    found = calibrator.divergence(jobs, f"L{steps}")
    constants, evidence = cache_evidence(found, names, jobs, steps)
    shift = job_shift(jobs[0], calibrator.pipeline.bundle.manifest.pipeline)
    bundle = add_calibration(calibrator.pipeline.bundle, evidence, caches=constants, shift=shift)
    rows = [
        (name, model, f"{min(values[2:]):.4f}", f"{max(values[2:]):.4f}")
        for name in names
        for model, values in constants[name].items()
    ]
    calibrator.console.log(f"constants of {steps} steps, {len(jobs)} prompt{'s' * (len(jobs) > 1)}")
    calibrator.console.table("", ("cache", "model", "lowest", "highest"), rows)
    taken = " and ".join(f"--cache {measured_caches()[name][0].name}" for name in names)
    calibrator.console.log(f"{bundle.folder}: takes {taken}{option_of_shift(shift)} now")
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-calibrate``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
