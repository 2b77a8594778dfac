"""Schedules of the shapes pair on prompts of its grammar: what they show, how far they are from LLL, what they cost.

    python -m benchmarks.schedules --out benchmarks/results --check

``--out`` gets schedules.json, schedules.md and schedules.jpg. See `claims` for what ``--check`` asserts.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.contact_sheet import save_picture
from benchmarks.schedules.claims import NEEDED, check
from benchmarks.schedules.experiment import Settings, measure_jobs, pair_bundle, shown
from benchmarks.schedules.report import as_json, markdown, picture, tables
from benchmarks.schedules.run import (
    CHECKPOINTS,
    EARLY,
    FEATURES,
    FRAME_RATE,
    GUIDANCE,
    LATE,
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedules", description="Measure schedules of the shapes pair."
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="of the pair (default: built from --checkpoints)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="the trained pair")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="at least 2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--schedules", nargs="+", default=list(NEEDED), metavar="SCHEDULE")
    parser.add_argument("--early", type=float, default=EARLY, metavar="SHARE", help="of the steps, for the first stage")
    parser.add_argument("--late", type=float, default=LATE, metavar="SHARE", help="of the steps, for the last stage")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, metavar="G", help="guidance scale")
    parser.add_argument("--fps", type=float, default=FRAME_RATE, help="frames per second that the models are told")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the noise")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for the JSON, the table and the picture"
    )
    parser.add_argument("--check", action="store_true", help="fail when a claim does not hold")
    return parser


def jobs(arguments: argparse.Namespace) -> dict[str, Job]:
    """Every schedule's options, the reference first.

    Raises:
        UsageError: too few prompts or threads, a negative seed, no schedule, or one that the claims need is missing.
    """
    names = list(dict.fromkeys((REFERENCE, *(name.upper() for name in arguments.schedules))))
    # What is no schedule is found before anything is built.
    schedules = {name: stages(name, arguments.steps, arguments.early, arguments.late) for name in names}
    if arguments.threads < 1:
        raise UsageError(f"{arguments.threads} threads were asked for, but at least 1 is needed; try --threads 2.")
    if arguments.seed < 0:
        raise UsageError(f"The seed is {arguments.seed}, but 0 or more was expected; try --seed 0.")
    if arguments.prompts < 2:
        raise UsageError(
            f"{arguments.prompts} prompts were asked for, but a spread needs at least 2; try --prompts 64."
        )
    if arguments.check and (missing := [name for name in NEEDED if name not in names]):
        raise UsageError(f"--check needs the schedules {' '.join(NEEDED)}, of which {' '.join(missing)} were left out.")
    options = {"steps": arguments.steps, "guidance": arguments.guidance, "frame_rate": arguments.fps}
    return {name: Job(prompt="", schedule=runs, **options) for name, runs in schedules.items()}


def main() -> int:
    """Measure, print, write, and check."""
    arguments = parser().parse_args()
    options, wanted, console = jobs(arguments), prompts(arguments.prompts, arguments.seed), Console()
    check_checkpoints(arguments.checkpoints, (FEATURES,) if arguments.bundle else ("large", "small", FEATURES))
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    make_folder(out)
    settings = Settings(
        prompts=arguments.prompts, seed=arguments.seed, threads=arguments.threads, frame_rate=arguments.fps
    )
    with (
        pair_bundle(arguments.bundle, arguments.checkpoints, console) as folder,
        api.open(folder, threads=arguments.threads) as sampler,
    ):
        measured, every, details = measure_jobs(
            sampler, wanted, options, checkpoints=arguments.checkpoints, settings=settings, console=console
        )
    claims = check(measured.samples, measured.frechet) if options.keys() >= set(NEEDED) else []
    sentence = (
        f"{details['prompts']} prompts, {details['geometry']['size']}, {details['geometry']['frames']} frames, "
        f"{details['steps']} steps, {details['solver']}, guidance {details['guidance']:g}."
    )
    for columns, lines in tables(every):
        console.table(sentence, columns, lines)
    for claim in claims:
        console.log(str(claim))
    content = details | as_json(every, claims)
    write_whole(out / "schedules.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(out / "schedules.md", markdown(every, claims, sentence).encode())
    save_picture(out / "schedules.jpg", picture(measured, [wanted[index] for index in shown(len(wanted))]))
    if arguments.check and (missed := [claim for claim in claims if not claim.holds]):
        sentences = "; ".join(f"{claim.text} ({claim.numbers})" for claim in missed)
        raise FlowBlendingError(f"{len(missed)} of {len(claims)} claims do not hold: {sentences}")
    return 0


if __name__ == "__main__":
    run_program(main)
