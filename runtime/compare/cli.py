"""``fb-compare``: schedules and step caches, or existing videos, side by side on a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import FlowBlendingError, UsageError

if TYPE_CHECKING:
    from flowblending.engine.bundle import Bundle
    from flowblending.engine.console import Console
    from flowblending.runtime.compare.report import Report
    from flowblending.runtime.compare.runs import Way
    from flowblending.runtime.compare.scoring import Scorer
    from flowblending.runtime.jobs import Job
    from flowblending.runtime.pipeline import Pipeline

DEFAULT_OUT = Path("report")
NOW = "now"
"""The board's row for the run at work."""


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-compare``."""
    parser = argparse.ArgumentParser(
        prog="fb-compare",
        description="Make the same videos with several schedules and step caches, measure them, and write a page.",
        epilog="Example: fb-compare wan --prompts prompts.txt --schedules LLL,LSL,SSS --caches off,scm:slow",
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder that fb-build-engines wrote")
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one prompt a line, or one JSON object a line, as for fb-run"
    )
    what.add_argument(
        "--schedules",
        metavar="LIST",
        help='separated by commas: names, or runs such as "L20 S20 L10"; LLL is always added (default: LLL,LSL,SSS)',
    )
    what.add_argument("--caches", metavar="LIST", help="step caches, separated by commas (default: off)")
    what.add_argument(
        "--videos", type=Path, nargs="+", metavar="FILE", help="compare these videos with the first of them instead"
    )
    how = parser.add_argument_group("how to sample, for all alike")
    how.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the family's)")
    how.add_argument("--guidance", type=float, metavar="G", help="guidance scale (default: the family's)")
    how.add_argument("--solver", choices=("unipc", "dpm++", "euler"), help="(default: the family's)")
    how.add_argument("--negative-prompt", metavar="TEXT", help="(default: the family's)")
    how.add_argument("--seed", type=int, metavar="N", help="of every prompt's noise (default: 0)")
    how.add_argument("--fps", type=float, dest="frame_rate", help="frames per second (default: the family's)")
    scores = parser.add_argument_group("what to measure beside likeness, time and FLOPs")
    scores.add_argument(
        "--judge",
        metavar="MODULE:FUNCTION",
        help="prompt adherence by a function of yours: called with frames (uint8 [F, H, W, 3]) and prompt, it gives a "
        "share from 0 to 1, or a dict of such",
    )
    scores.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model folder (transformers): to prompt, to LLL")
    scores.add_argument("--dino", type=Path, metavar="DIR", help="DINO model folder (transformers): likeness to LLL")
    where = parser.add_argument_group("what to write")
    where.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="the report (default: report/)")
    where.add_argument("--vbench", type=Path, metavar="DIR", help="also copy the videos to DIR/RUN/PROMPT-INDEX.mp4")
    where.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="for onnxruntime bundles (default: auto)"
    )
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads of ONNX Runtime")
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


_OF_RUNS = (
    *("prompts", "schedules", "caches", "steps", "guidance", "solver", "negative_prompt", "seed", "frame_rate"),
    *("vbench", "threads"),
)
"""Options that mean nothing for existing videos."""


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.engine.console import Console

    console = Console(quiet=arguments.quiet)
    if arguments.videos is not None:
        if arguments.bundle is not None:
            raise UsageError("Give either a bundle or --videos; existing videos need no bundle.")
        for name in _OF_RUNS:
            if getattr(arguments, name) is not None:
                option = "--fps" if name == "frame_rate" else f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is for runs of a bundle; leave it out with --videos.")
        return _compare_videos(arguments, console)
    if arguments.bundle is None or arguments.prompts is None:
        raise UsageError("Give a bundle and --prompts FILE, or --videos and at least two files.")
    return _compare_runs(arguments, console)


def _scorers(arguments: argparse.Namespace) -> list[Scorer]:
    """What was asked for; loads models, so it comes after everything that can be refused without."""
    scorers: list[Scorer] = []
    if arguments.judge is not None:
        from flowblending.runtime.compare.scoring import Judge

        scorers.append(Judge(arguments.judge))
    if arguments.clip is not None:
        from flowblending.runtime.compare.features import Clip

        scorers.append(Clip(arguments.clip))
    if arguments.dino is not None:
        from flowblending.runtime.compare.features import Dino

        scorers.append(Dino(arguments.dino))
    return scorers


def _compare_runs(arguments: argparse.Namespace, console: Console) -> int:
    from flowblending.engine.bundle import open_bundle
    from flowblending.runtime.compare.figures import LATENTS, VIDEOS
    from flowblending.runtime.compare.layout import lay_out, prepare
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.runtime.place import open_device

    out: Path = arguments.out
    bundle = open_bundle(arguments.bundle)
    jobs, ways = _planned(arguments, bundle)
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(progress=advance)
    with console.phase("loading what scores"):
        scorers = _scorers(arguments)
    device = open_device(arguments.device, bundle.manifest)
    pipeline = Pipeline(bundle=bundle, device=device, threads=arguments.threads)
    for job in jobs:
        pipeline.frame_rate(job)
    prepare(out, (VIDEOS, LATENTS))
    try:
        report, failed = _make_all(pipeline, jobs=jobs, ways=ways, scorers=scorers, out=out, console=console)
    finally:
        pipeline.close()
        device.close()
    _show(report, console)
    if arguments.vbench is not None:
        console.log(f"{arguments.vbench}: {lay_out(report, out, arguments.vbench)} videos for VBench")
    console.log(f"{out / 'index.html'}: {len(jobs)} prompts, {len(ways)} runs each")
    return 1 if failed else 0


def _planned(arguments: argparse.Namespace, bundle: Bundle) -> tuple[list[Job], list[Way]]:
    """Prompts and ways, after every check that needs no engine."""
    from flowblending.runtime.compare.layout import check_names
    from flowblending.runtime.compare.runs import check_jobs, parse_ways, prompts_of
    from flowblending.runtime.jobs import read_jobs

    out: Path = arguments.out
    if arguments.bundle.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out} lies in the bundle, which holds nothing but engines; choose another place.")
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"{arguments.threads} threads were asked for, but at least 1 is needed; try --threads 2.")
    schedules = "LLL,LSL,SSS" if arguments.schedules is None else arguments.schedules
    ways = parse_ways(schedules, "off" if arguments.caches is None else arguments.caches)
    jobs = prompts_of(read_jobs(arguments.prompts, _job(arguments)), arguments.prompts)
    check_jobs(jobs, ways, bundle.manifest)
    if arguments.vbench is not None:
        check_names([job.prompt for job in jobs])
    return jobs, ways


def _job(arguments: argparse.Namespace) -> Job:
    from flowblending.runtime.jobs import Job

    return Job(
        prompt="",
        negative_prompt=arguments.negative_prompt,
        seed=arguments.seed or 0,
        steps=arguments.steps,
        guidance=arguments.guidance,
        solver=arguments.solver,
        frame_rate=arguments.frame_rate,
    )


def _make_all(
    pipeline: Pipeline,
    *,
    jobs: Sequence[Job],
    ways: Sequence[Way],
    scorers: Sequence[Scorer],
    out: Path,
    console: Console,
) -> tuple[Report, int]:
    """Every run of every prompt; the page is written after each prompt. Returns the report, and how many failed."""
    from flowblending.runtime.compare.assemble import Made, of_runs
    from flowblending.runtime.compare.compare import Comparison
    from flowblending.runtime.compare.layout import write
    from flowblending.runtime.compare.scoring import ScoringError

    made: list[Made] = []
    failed, total = 0, len(jobs) * len(ways)
    machine = pipeline.device.kind
    if pipeline.threads is not None:
        machine += f", {pipeline.threads} thread{'s' if pipeline.threads > 1 else ''}"
    with console.board("comparing", total=total, rows=[NOW]) as board:
        comparison = Comparison(
            pipeline,
            out,
            ways=ways,
            scorers=scorers,
            warn=console.warn,
            on_step=lambda label, done, of: board.show(NOW, label, done, of),
        )
        for number, job in enumerate(jobs):
            videos, figures = {}, {}
            for index, way in enumerate(ways):
                board.show(NOW, way.label, 0, 0)
                try:
                    figures[way.label] = comparison.run(job, way)
                    videos[way.label] = str(comparison.files(job, way).video.relative_to(out))
                except ScoringError:
                    raise
                except FlowBlendingError as error:
                    failed += 1
                    console.warn(f"{way.label} of {job.prompt[:60]!r} failed: {error}")
                    if way == ways[0]:
                        console.warn("its other runs are left out, since there is nothing to measure them against.")
                        break
                board.left(total - number * len(ways) - index - 1)
            made.append(Made(job=job, videos=videos, figures=figures))
            report = of_runs(made, ways, scorers, pipeline.bundle.manifest, machine)
            write(out, report)
    return report, failed


def _compare_videos(arguments: argparse.Namespace, console: Console) -> int:
    from flowblending.runtime.compare import existing
    from flowblending.runtime.compare.assemble import of_videos
    from flowblending.runtime.compare.figures import VIDEOS
    from flowblending.runtime.compare.layout import prepare, write

    out: Path = arguments.out
    videos = existing.open_all(arguments.videos)
    scorers = _scorers(arguments)
    unknown = [video.path for video in videos if "prompt" not in video.about] if scorers else []
    if unknown:
        raise UsageError(
            f"{unknown[0]} does not say what its prompt was, as videos of fb-run do, so that nothing can be scored by "
            "it; leave out --judge, --clip and --dino."
        )
    prepare(out, (VIDEOS,))
    measured, scores, placed = [], [], []
    with console.progress("frames", total=sum(video.count for video in videos)) as advance:
        for index, video in enumerate(videos):
            measured.append(existing.measure(video, videos[0] if index else None, advance))
            scores.append(existing.score(videos, scorers, video))
    for index, video in enumerate(videos, start=1):
        suffix = video.path.suffix if video.playable else ".mp4"
        placed.append(f"{VIDEOS}/{index}-{video.path.stem}{suffix}")
        existing.place(video, out / placed[-1])
    report = of_videos(videos, measured, scores, placed, scorers)
    write(out, report)
    _show(report, console)
    console.log(f"{out / 'index.html'}: {len(videos)} videos")
    return 0


def _show(report: Report, console: Console) -> None:
    """The table's chief columns, on the terminal."""
    from flowblending.runtime.compare.report import BOUND, SMOOTHNESS, WHOLE, cell, text_of

    columns = [column for column in report.columns if column.key not in (WHOLE, BOUND, SMOOTHNESS)]
    rows = [
        (run.label, *(text_of(cell(report, run, column).value, column) for column in columns)) for run in report.runs
    ]
    headings = (f"{each.heading} ({each.unit})" if each.unit in ("s", "dB") else each.heading for each in columns)
    console.table("", ("run", *headings), rows)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-compare``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.engine.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
