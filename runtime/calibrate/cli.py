"""``fb-calibrate``: a bundle and prompts in, the schedule for that bundle out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending.runtime.arguments import add_machine, add_options, command_line, given
from flowblending.runtime.calibrate.checks import (
    check_arguments,
    check_signals,
    check_spread,
    check_targets,
    warn_unused,
)
from flowblending.runtime.machine_options import MACHINE, MachineSettings
from flowblending.runtime.option import CALIBRATE
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import FAMILY_HELP, HOW, OUTPUT, WHAT, Job
from flowblending.runtime.program.caches.registry import MEASURED, measured_name
from flowblending.system.command_line import add_console

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.runtime.calibrate.budget import Allowance
    from flowblending.runtime.calibrate.run import Calibrator
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.system.console import Console

DEFAULT_PLOT = Path("calibration.png")
PARTS = 10
STEPS, SIGMA = "steps", "sigma"
"""What boundaries are kept as."""


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
    stored = parser.add_argument_group("the bundle")
    stored.add_argument("--no-apply", action="store_true", help="measure and show only; the bundle stays as it is")
    stored.add_argument(
        "--by",
        choices=(STEPS, SIGMA),
        default=STEPS,
        help="keep the boundaries as shares of the steps, or as noise levels (sigma), which hold for any number of "
        "steps, solver and shift (default: steps)",
    )
    stored.add_argument("--show", action="store_true", help="show what the bundle was calibrated to, and stop")
    stored.add_argument("--reset", action="store_true", help="take back all that was calibrated, and stop")
    where = parser.add_argument_group(OUTPUT)
    where.add_argument("--plot", type=Path, default=DEFAULT_PLOT, metavar="FILE", help=f"(default: {DEFAULT_PLOT})")
    where.add_argument("--no-plot", action="store_true", help="write no plot, which takes matplotlib")
    where.add_argument(
        "--work", type=Path, metavar="DIR", help="measurements of each prompt, to resume from (default: BUNDLE.work)"
    )
    add_console(where)
    add_machine(parser.add_argument_group(MACHINE), CALIBRATE)
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.calibrate.memory import check_memory
    from flowblending.runtime.calibrate.outcome import calibrate_caches, calibrate_schedule
    from flowblending.runtime.calibrate.pair import pair_of
    from flowblending.runtime.calibrate.prompts import check_jobs, read_prompts
    from flowblending.system.console import Console

    check_arguments(arguments, parser())
    console = Console(quiet=arguments.quiet, document=arguments.json)
    bundle = open_bundle(arguments.bundle)
    if arguments.show or arguments.reset:
        from flowblending.runtime.calibrate.outcome import reset_calibration, show_calibration

        (show_calibration if arguments.show else reset_calibration)(bundle, console)
        return 0
    lines = read_prompts(arguments.prompts, _defaults(arguments), console.log)
    jobs = check_jobs(lines, arguments.prompts, bundle.manifest)
    check_targets(arguments, bundle)
    check_spread(arguments, jobs)
    warn_unused(arguments, jobs[0], bundle, console)
    check_signals(arguments.cache or (), bundle)
    if not arguments.cache:
        pair_of(bundle.manifest)
    budget = None if arguments.budget is None else _allowance(arguments, bundle, jobs[0])
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(progress=advance)
    pipeline = _open(arguments, bundle)
    try:
        calibrator = _calibrator(arguments, budget, pipeline, console)
        check_memory(pipeline, jobs[0], decodes=calibrator.decodes and not arguments.cache)
        apply = not arguments.no_apply
        if arguments.cache:
            calibrate_caches(calibrator, jobs, arguments.cache, apply=apply)
        else:
            plot = None if arguments.no_plot else arguments.plot
            calibrate_schedule(calibrator, jobs, plot=plot, by=arguments.by, apply=apply)
        return 0
    finally:
        pipeline.close()
        pipeline.device.close()


def _defaults(arguments: argparse.Namespace) -> Job:
    return make_job({"prompt": "", **given(arguments, CALIBRATE)})


def _open(arguments: argparse.Namespace, bundle: Bundle) -> Pipeline:
    from flowblending.runtime.devices.open import open_device
    from flowblending.runtime.pipeline import Pipeline

    device = open_device(arguments.device, bundle.manifest)
    return Pipeline(bundle=bundle, device=device, machine=MachineSettings.of(vars(arguments)))


def _allowance(arguments: argparse.Namespace, bundle: Bundle, job: Job) -> Allowance:
    """What the budget comes to, found out before anything is measured."""
    from flowblending.runtime.calibrate.budget import allowance
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.program.cost import Timings

    program = compile_job(
        dataclasses.replace(job, schedule=bundle.manifest.models[0].letter, cache="off"), bundle.manifest
    )
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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-calibrate``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
