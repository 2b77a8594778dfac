"""Schedules times step caches on the shapes pair: what each combination costs, and how good its videos are.

    python -m benchmarks.caches --out benchmarks/results

Everything starts from the same noise, and is compared with all-large sampling without a cache. Constants that a cache
needs are measured first, by fb-calibrate on prompts of their own. ``--out`` gets caches.json, caches.md and caches.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.pareto import Point, front, write_plot
from benchmarks.schedules.experiment import Settings, measure_jobs, pair_bundle
from benchmarks.schedules.report import Row, as_json
from benchmarks.schedules.run import (
    CHECKPOINTS,
    FRAME_RATE,
    GUIDANCE,
    STEPS,
    check_checkpoints,
    make_folder,
    prompts,
    stages,
)
from benchmarks.schedules.samples import REFERENCE
from flowblending import FlowBlendingError, UsageError
from flowblending.runtime import api
from flowblending.runtime.options import Job
from flowblending.system.console import Console, run_program
from flowblending.system.whole_file import write_whole

SCHEDULES = ("LLL", "LSL", "SSS")
CACHES = ("off", "guidance:5", "interval:2", "interval:2+taylor:1", "scm:slow", "scm:slow+taylor:1")
CALIBRATED = ("magcache", "teacache", "easycache-static")
"""Caches whose constants fb-calibrate measures."""
CALIBRATION_PROMPTS, CALIBRATION_SEED = 8, 7
FEWER = (20, 12)
"""Steps of runs that save by taking fewer: every cache has to be better than this."""
BUDGET = 0.665
"""Share of all-large sampling's operations: LSL's, which the calibrated schedules are compared with."""
COLUMNS = (
    *("schedule", "variant", "FLOPs", "loop", "speed-up", "of the bound", "PSNR to LLL", "SSIM"),
    *("attributes right", "front"),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.caches", description="Measure schedules with step caches on the shapes pair."
    )
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="the trained pair")
    parser.add_argument("--prompts", type=int, default=24, metavar="N", help="at least 2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), metavar="SCHEDULE")
    parser.add_argument("--caches", nargs="+", default=[*CACHES, "easycache", *CALIBRATED], metavar="CACHE")
    parser.add_argument("--fewer", nargs="*", type=int, default=list(FEWER), metavar="N", help="numbers of steps")
    parser.add_argument(
        "--calibration-prompts",
        type=int,
        default=CALIBRATION_PROMPTS,
        metavar="N",
        help="others than the compared ones",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the noise")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """A schedule, and how engine calls are saved beside.

    Args:
        schedule: its name, or its stages.
        variant: the step cache, or a number of steps; empty for neither.
        job: with everything but prompt and seed.
    """

    schedule: str
    variant: str
    job: Job

    @property
    def name(self) -> str:
        """For tables; the plain all-large run is `REFERENCE`."""
        return f"{self.schedule}, {self.variant}" if self.variant else self.schedule


def combinations(
    schedules: Sequence[str], calibrated: Sequence[str], caches: Sequence[str], steps: int, fewer: Sequence[int]
) -> list[Combination]:
    """Every schedule with every cache and with fewer steps, calibrated ones alone; plain all-large sampling first."""
    options = Job(prompt="", steps=steps, guidance=GUIDANCE, frame_rate=FRAME_RATE)
    found = {}
    for schedule in dict.fromkeys((REFERENCE, *schedules, *calibrated)):
        job = dataclasses.replace(options, schedule=stages(schedule, steps))
        variants = [("", job)]
        if schedule not in calibrated:
            variants += [(cache, dataclasses.replace(job, cache=cache)) for cache in caches if cache != "off"]
            for count in fewer:
                short = dataclasses.replace(options, steps=count, schedule=stages(schedule, count))
                variants += [
                    (f"{count} steps", short),
                    (f"{count} steps, dpm++", dataclasses.replace(short, solver="dpm++")),
                ]
        for variant, changed in variants:
            combination = Combination(schedule=schedule, variant=variant, job=changed)
            found[combination.name] = combination
    return list(found.values())


def calibrate(bundle: Path, caches: Iterable[str], steps: int, count: int, budget: float) -> list[str]:
    """Measure the constants that the caches need, on ``count`` prompts that the comparison does not use.

    Returns:
        The schedules of ``budget``'s operations that fb-calibrate finds: of any number of stages, and the one whose
        small steps are in one piece.

    Raises:
        FlowBlendingError: a calibration failed; it has said why.
    """
    parts = {part.partition(":")[0] for cache in caches for part in cache.split("+")}
    lines = [
        json.dumps({"prompt": prompt.text, "seed": prompt.seed, "frame_rate": FRAME_RATE})
        for prompt in prompts(count, CALIBRATION_SEED)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(lines) + "\n")
        common = (bundle, "--prompts", file, "--steps", steps, "--guidance", GUIDANCE, "--no-plot", "--work")
        for name in CALIBRATED:
            if name in parts:
                constants = name.removesuffix("-static")
                _calibrate(*common, Path(folder) / name, "--cache", constants)
        _calibrate(*common, Path(folder) / "budget", "--budget", budget)
    evidence = max(bundle.glob("calibration-*.json"), key=lambda file: file.stat().st_mtime_ns)
    found = json.loads(evidence.read_text())
    return list(dict.fromkeys((found["schedule"], found["budget"]["three_stages"])))


def _calibrate(*options: object) -> None:
    command = (sys.executable, "-m", "flowblending.runtime.calibrate.cli", *map(str, options))
    if subprocess.run(command, check=False).returncode:
        raise FlowBlendingError("fb-calibrate failed on the pair's bundle; its message is above.")


def points(every: Sequence[Row], wanted: Sequence[Combination]) -> list[Point]:
    """Cost and likeness of every combination."""
    made = {row.name: row for row in every}
    return [
        Point(
            schedule=each.schedule,
            variant=each.variant,
            flops=row.flops,
            time=row.loop,
            psnr=row.measures["psnr"].value if "psnr" in row.measures else math.inf,
        )
        for each in wanted
        for row in [made[each.name]]
    ]


def table(every: Sequence[Row], of_rows: Sequence[Point]) -> list[tuple[str, ...]]:
    """A line for every combination; the bound is the speed-up that the FLOPs allow."""
    best = front(of_rows, lambda point: point.flops)
    return [
        (
            point.schedule,
            point.variant,
            f"{row.flops:.3f}",
            f"{row.loop:.3f}",
            f"{1 / row.loop:.2f}x",
            f"{row.flops / row.loop:.0%}",
            f"{point.psnr:.2f} dB" if math.isfinite(point.psnr) else "-",
            f"{row.measures['ssim'].value:.3f}" if "ssim" in row.measures else "-",
            f"{100 * row.measures['attributes'].value:.1f} %",
            "yes" if point in best else "",
        )
        for row, point in zip(every, of_rows, strict=False)
    ]


def markdown(lines: Sequence[Sequence[str]], sentence: str) -> str:
    """The report."""
    lines = (COLUMNS, ["---"] * len(COLUMNS), *lines)
    notes = (
        f"- {sentence} The same noise for every combination of a prompt; FLOPs and loop are relative to LLL's.",
        "- Of the bound: the measured speed-up over the one that the FLOPs allow.",
        "- Front: no other combination has at most its FLOPs and at least its PSNR.",
        "- Schedules written as stages are fb-calibrate's for LSL's budget: of any number of stages, and of three.",
    )
    return "\n".join((*(f"| {' | '.join(line)} |" for line in lines), "", *notes)) + "\n"


def main() -> int:
    """Calibrate, measure, print and write."""
    arguments = parser().parse_args()
    if arguments.prompts < 2:
        raise UsageError(
            f"{arguments.prompts} prompts were asked for, but a spread needs at least 2; try --prompts 24."
        )
    console, wanted = Console(), prompts(arguments.prompts, arguments.seed)
    check_checkpoints(arguments.checkpoints)
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    make_folder(out)
    settings = Settings(
        prompts=arguments.prompts, seed=arguments.seed, threads=arguments.threads, frame_rate=FRAME_RATE
    )
    with pair_bundle(None, arguments.checkpoints, console, teacache=True) as folder:
        calibrated = calibrate(folder, arguments.caches, arguments.steps, arguments.calibration_prompts, BUDGET)
        every_one = combinations(arguments.schedules, calibrated, arguments.caches, arguments.steps, arguments.fewer)
        options = {each.name: each.job for each in every_one}
        with api.open(folder, threads=arguments.threads) as sampler:
            _, every, details = measure_jobs(
                sampler, wanted, options, checkpoints=arguments.checkpoints, settings=settings, console=console
            )
    of_rows = points(every, every_one)
    lines = table(every, of_rows)
    sentence = f"{arguments.prompts} prompts, {arguments.steps} steps, {details['solver']}, guidance {GUIDANCE:g}."
    console.table(sentence, COLUMNS, lines)
    content = details | as_json(every, [])
    write_whole(out / "caches.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(out / "caches.md", markdown(lines, sentence).encode())
    write_plot(out / "caches.png", of_rows, f"The trained shapes pair: {sentence}")
    return 0


if __name__ == "__main__":
    run_program(main)
