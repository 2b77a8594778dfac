"""Schedules of the shapes pair on prompts of its grammar: what they show, how far they are from LLL, what they cost.

    python -m benchmarks.schedules --out benchmarks/results --check

``--out`` gets schedules.json, schedules.md and schedules.jpg. See `claims` for what ``--check`` asserts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contact_sheet import save_picture
from benchmarks.schedules.claims import NEEDED, check
from benchmarks.schedules.measures import Features, Measured, measure
from benchmarks.schedules.report import as_json, markdown, picture, rows, tables
from benchmarks.schedules.run import (
    CHECKPOINTS,
    FEATURES,
    FRAME_RATE,
    FRAMES,
    GUIDANCE,
    SIZE,
    STEPS,
    Prompt,
    check_checkpoints,
    make,
    make_folder,
    prompts,
)
from benchmarks.schedules.samples import REFERENCE
from flowblending import FlowBlendingError, UsageError
from flowblending.engine.build import BuildRequest, build_bundle
from flowblending.engine.console import Console, run_program
from flowblending.runtime import api
from flowblending.runtime.cost import cost_of
from flowblending.runtime.jobs import Job, compile_job
from flowblending.runtime.program import Program
from flowblending.runtime.schedule import StageSchedule
from flowblending.runtime.whole_file import write_whole

SHOWN = 4
"""Prompts in the picture, evenly spaced; the last one is held out."""


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
    for name in names:
        # Where the stages end does not matter yet: what is no schedule is found before anything is built.
        StageSchedule.parse(name, arguments.steps, 0.3, 0.2)
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
    return {name: Job(prompt="", schedule=name, **options) for name in names}


@contextlib.contextmanager
def bundle(arguments: argparse.Namespace, console: Console) -> Iterator[Path]:
    """The bundle that is given, or one that is built for this run."""
    if arguments.bundle:
        yield arguments.bundle
        return
    with tempfile.TemporaryDirectory() as folder:
        request = BuildRequest(
            large=str(arguments.checkpoints / "large"),
            small=str(arguments.checkpoints / "small"),
            out=Path(folder) / "bundle",
            size=SIZE,
            frames=FRAMES,
            precision=None,
            backend="onnxruntime",
            targets=(),
        )
        build_bundle(request, console)
        yield request.out


def make_clips(
    sampler: api.VideoSampler,
    wanted: Sequence[Prompt],
    options: Mapping[str, Job],
    arguments: argparse.Namespace,
    console: Console,
) -> Measured:
    """Make and measure every prompt's clip with every schedule."""
    features = Features(arguments.checkpoints / FEATURES)
    # Engines are opened, and run for the first time, before any clock is read.
    for job in options.values():
        make(sampler.pipeline, job)
    with console.progress("clips", total=len(wanted) * len(options)) as advance:
        return measure(
            functools.partial(make, sampler.pipeline),
            wanted,
            options,
            geometry=sampler.manifest.geometry,
            features=features,
            shown=shown(len(wanted)),
            seed=arguments.seed,
            advance=advance,
        )


def shown(count: int) -> list[int]:
    """Which of ``count`` prompts are in the picture: evenly spaced, the first and the last (held out) among them."""
    return sorted(set(np.linspace(0, count - 1, SHOWN).round().astype(int).tolist()))


def run_details(sampler: api.VideoSampler, program: Program, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the run was, beside its figures; ``program`` is any of its schedules'."""
    geometry = sampler.manifest.geometry
    return {
        "machine": {
            "processor": platform.machine(),
            "threads": arguments.threads,
            "device": sampler.pipeline.device.kind,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnxruntime", "numpy")},
        "geometry": {"size": f"{geometry.width}x{geometry.height}", "frames": geometry.frames},
        "bundle": sampler.manifest.id,
        "prompts": arguments.prompts,
        "steps": len(program.steps),
        "solver": program.solver,
        "guidance": program.guidance,
        "frame_rate": arguments.fps,
        "seed": arguments.seed,
    }


def main() -> int:
    """Measure, print, write, and check."""
    arguments = parser().parse_args()
    options, wanted, console = jobs(arguments), prompts(arguments.prompts, arguments.seed), Console()
    check_checkpoints(arguments.checkpoints, (FEATURES,) if arguments.bundle else ("large", "small", FEATURES))
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    make_folder(out)
    with bundle(arguments, console) as folder, api.open(folder, threads=arguments.threads) as sampler:
        programs = {name: compile_job(job, sampler.manifest) for name, job in options.items()}
        details = run_details(sampler, programs[REFERENCE], arguments)
        measured = make_clips(sampler, wanted, options, arguments, console)
        costs = {name: cost_of(program, sampler.manifest) for name, program in programs.items()}
    every = rows(
        measured,
        np.asarray([prompt.held_out for prompt in wanted]),
        runs={name: program.schedule for name, program in programs.items()},
        flops={name: cost.flops / cost.flops_all_large for name, cost in costs.items()},
    )
    claims = check(measured.samples, measured.frechet) if options.keys() >= set(NEEDED) else []
    settings = (
        f"{details['prompts']} prompts, {details['geometry']['size']}, {details['geometry']['frames']} frames, "
        f"{details['steps']} steps, {details['solver']}, guidance {details['guidance']:g}."
    )
    for columns, lines in tables(every):
        console.table(settings, columns, lines)
    for claim in claims:
        console.log(str(claim))
    content = details | as_json(every, claims)
    write_whole(out / "schedules.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(out / "schedules.md", markdown(every, claims, settings).encode())
    save_picture(out / "schedules.jpg", picture(measured, [wanted[index] for index in shown(len(wanted))]))
    if arguments.check and (missed := [claim for claim in claims if not claim.holds]):
        sentences = "; ".join(f"{claim.text} ({claim.numbers})" for claim in missed)
        raise FlowBlendingError(f"{len(missed)} of {len(claims)} claims do not hold: {sentences}")
    return 0


if __name__ == "__main__":
    run_program(main)
