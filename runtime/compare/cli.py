"""``fb-compare``: schedules and step caches, or existing videos, side by side on a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import add_machine, add_options, check_machine, command_line, flag_of, given
from flowblending.runtime.machine_options import MACHINE, MachineSettings
from flowblending.runtime.option import COMPARE
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import AUTO, FAMILY_HELP, HOW, OUTPUT, WHAT, Job, options
from flowblending.system.command_line import add_console

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.runtime.compare.report import ComparisonReport
    from flowblending.runtime.compare.runs import Variant
    from flowblending.runtime.compare.scoring import Asked
    from flowblending.system.console import Console

DEFAULT_OUT = Path("report")


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-compare``."""
    parser = command_line(
        COMPARE,
        "Make the same videos with several schedules and step caches, measure them, and write a page.",
        "fb-compare wan --prompts prompts.txt --schedules LLL,LSL,SSS \\\n  --caches off,scm:slow",
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder that fb-build-engines wrote")
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one prompt a line, or one JSON object a line, as for fb-run"
    )
    what.add_argument(
        "--schedules",
        metavar="LIST",
        help='separated by commas: names, runs such as "L20 S20 L10", or auto for what fb-calibrate found; LLL, the '
        "first model alone, is always there (default: LLL,LSL,SSS of the bundle's models, and auto if calibrated)",
    )
    what.add_argument("--caches", metavar="LIST", help="step caches, separated by commas (default: off)")
    what.add_argument(
        "--videos", type=Path, nargs="+", metavar="FILE", help="compare these videos with the first of them instead"
    )
    how = parser.add_argument_group(f"{HOW}, for all alike", FAMILY_HELP)
    add_options(how, COMPARE, [WHAT, HOW, OUTPUT])
    scores = parser.add_argument_group("what to measure beside likeness, time and FLOPs")
    scores.add_argument(
        "--judge",
        metavar="MODULE:FUNCTION",
        help="prompt adherence by a function of yours: called with frames (uint8 [F, H, W, 3]) and prompt, it gives a "
        "share from 0 to 1, or a dict of such",
    )
    scores.add_argument("--clip", type=Path, metavar="DIR", help="CLIP (transformers): likeness to prompt and LLL")
    scores.add_argument("--dino", type=Path, metavar="DIR", help="DINO (transformers): likeness to LLL")
    scores.add_argument("--lpips", type=Path, metavar="FILE", help="VGG (TorchScript, vgg16.pt): distance from LLL")
    scores.add_argument(
        "--fid", type=Path, metavar="FILE", help="Inception (TorchScript, inception-2015-12-05.pt): distance from LLL"
    )
    scores.add_argument(
        "--fvd",
        type=Path,
        metavar="FILE",
        help="I3D (TorchScript, i3d_torchscript.pt): distance of whole videos",
    )
    where = parser.add_argument_group(OUTPUT)
    where.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="the report (default: report/)")
    where.add_argument("--vbench", type=Path, metavar="DIR", help="also copy the videos to DIR/RUN/PROMPT-INDEX.mp4")
    add_console(where)
    add_machine(parser.add_argument_group(MACHINE), COMPARE)
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


_OF_RUNS = ("prompts", "schedules", "caches", "vbench", "device", "threads", "memory")
"""Options that mean nothing for existing videos, beside those of a job."""


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    if arguments.videos is not None:
        if arguments.bundle is not None:
            raise UsageError("Give either a bundle or --videos; existing videos need no bundle.")
        line = parser()
        for option in (*_OF_RUNS, *(each.name for each in options() if COMPARE in each.programs)):
            if getattr(arguments, option) != line.get_default(option):
                raise UsageError(f"{flag_of(line, option)} is for runs of a bundle; leave it out with --videos.")
        return _compare_videos(arguments, console)
    if arguments.bundle is None or arguments.prompts is None:
        raise UsageError("Give a bundle and --prompts FILE, or --videos and at least two files.")
    return _compare_runs(arguments, console)


def _asked(arguments: argparse.Namespace) -> Asked:
    """What was asked for; loads models, so it comes after everything that can be refused without."""
    from flowblending.runtime.compare import network_scores
    from flowblending.runtime.compare.scoring import Asked, Judge

    scorers = (
        ("judge", Judge),
        ("clip", network_scores.ClipScore),
        ("dino", network_scores.DinoScore),
        ("lpips", network_scores.LpipsScore),
    )
    sets = (("fid", network_scores.Fid), ("fvd", network_scores.Fvd))
    given = vars(arguments)
    return Asked(
        scorers=[make(given[name]) for name, make in scorers if given[name] is not None],
        sets=[make(given[name]) for name, make in sets if given[name] is not None],
    )


def _compare_runs(arguments: argparse.Namespace, console: Console) -> int:
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.compare.figures import LATENTS, VIDEOS
    from flowblending.runtime.compare.layout import lay_out, prepare
    from flowblending.runtime.compare.make import make_all
    from flowblending.runtime.devices.open import device_kind, open_device
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.runtime.unused import unused_machine

    out: Path = arguments.out
    bundle = open_bundle(arguments.bundle)
    jobs, variants = _planned(arguments, bundle, console)
    machine, kind = MachineSettings.of(vars(arguments)), device_kind(arguments.device, bundle.manifest)
    for line in unused_machine(machine, kind, bundle.manifest).values():
        console.warn(line)
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(progress=advance)
    with console.phase("loading what scores"):
        asked = _asked(arguments)
    device = open_device(arguments.device, bundle.manifest)
    pipeline = Pipeline(bundle=bundle, device=device, machine=machine)
    for job in jobs:
        pipeline.frame_rate(job)
    prepare(out, (VIDEOS, LATENTS))
    try:
        report, failed = make_all(pipeline, jobs=jobs, variants=variants, asked=asked, out=out, console=console)
    finally:
        pipeline.close()
        device.close()
    _show(report, console)
    for warning in report.warnings:
        console.warn(warning)
    if arguments.vbench is not None:
        console.result(f"{arguments.vbench}: {lay_out(report, out, arguments.vbench)} videos for VBench")
    console.result(f"{out / 'index.html'}: {len(jobs)} prompt{'s' * (len(jobs) > 1)}, {len(variants)} runs each")
    _document(report, out, failed, console)
    return 1 if failed else 0


def _planned(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> tuple[list[Job], list[Variant]]:
    """Prompts and variants, after every check that needs no engine."""
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.runtime.compare.figures import VIDEOS
    from flowblending.runtime.compare.layout import check_names
    from flowblending.runtime.compare.runs import (
        check_jobs,
        parse_variants,
        prompts_of,
        reference_schedule,
        usual_schedules,
    )
    from flowblending.runtime.jobs import job_geometry
    from flowblending.runtime.media.video import check_output
    from flowblending.runtime.prompt_file import read_jobs

    out: Path = arguments.out
    check_outside(out)
    check_machine(arguments)
    _check_outputs(arguments)
    calibration = bundle.manifest.calibration
    schedules = usual_schedules(bundle.manifest)
    if calibration is not None and calibration.schedule is not None:
        schedules += f",{AUTO}"
    if arguments.schedules is not None:
        schedules = arguments.schedules
    caches = "off" if arguments.caches is None else arguments.caches
    variants = parse_variants(schedules, caches, reference_schedule(bundle.manifest))
    jobs = prompts_of(read_jobs(arguments.prompts, _job(arguments), console.log), arguments.prompts)
    check_jobs(jobs, variants, bundle.manifest)
    geometry = job_geometry(jobs[0], bundle.manifest)
    check_output(out / VIDEOS / "any.mp4", width=geometry.width, height=geometry.height)
    if arguments.fvd is not None and len(jobs) < 2:
        raise UsageError(
            f"--fvd compares sets of videos, but {arguments.prompts} holds 1 prompt; give at least 2, or leave it out."
        )
    if arguments.vbench is not None:
        check_names([job.prompt for job in jobs])
    return jobs, variants


def _check_outputs(arguments: argparse.Namespace) -> None:
    from flowblending.system.output import check_folder

    check_folder(arguments.out)
    if arguments.vbench is not None:
        check_folder(arguments.vbench)


def _job(arguments: argparse.Namespace) -> Job:
    return make_job({"prompt": "", **given(arguments, COMPARE)})


def _compare_videos(arguments: argparse.Namespace, console: Console) -> int:
    from flowblending.runtime.compare.make_existing import compare_existing

    out: Path = arguments.out
    if arguments.fvd is not None:
        raise UsageError("--fvd compares sets of videos, but --videos single ones; leave it out.")
    _check_outputs(arguments)
    report, failed = compare_existing(
        arguments.videos,
        judged=arguments.judge is not None,
        load=lambda: _asked(arguments),
        out=out,
        console=console,
    )
    _show(report, console)
    left_out = f", {failed} left out" if failed else ""
    console.result(f"{out / 'index.html'}: {len(report.runs)} videos{left_out}")
    _document(report, out, failed, console)
    return 1 if failed else 0


def _show(report: ComparisonReport, console: Console) -> None:
    """The table's chief columns, on the terminal."""
    from flowblending.runtime.compare.columns import BOUND, SMOOTHNESS, WHOLE
    from flowblending.runtime.compare.report import cell, text_of

    columns = [column for column in report.columns if column.key not in (WHOLE, BOUND, SMOOTHNESS)]
    rows = [
        (run.label, *(text_of(cell(report, run, column).value, column) for column in columns)) for run in report.runs
    ]
    headings = (f"{each.heading} ({each.unit})" if each.unit in ("s", "dB") else each.heading for each in columns)
    console.table("", ("run", *headings), rows)


def _document(report: ComparisonReport, out: Path, failed: int, console: Console) -> None:
    from flowblending.runtime.compare.report import as_json

    files = {"page": out / "index.html", "report": out / "report.json"}
    console.document(COMPARE, {**files, "failed": failed, "comparison": as_json(report)})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-compare``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
