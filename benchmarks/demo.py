"""The whole path in one go, on a CPU: the trained shapes pair -> bundle -> videos of LLL, LSL and SSS side by side.

It runs the same two programs as a user would, and prints each command before it runs it. Then it opens the bundle
from Python and makes a few more videos: every prompt with all three schedules, from the same noise.

    python -m benchmarks.demo --out demo
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.contact_sheet import Pixels, layout
from benchmarks.schedules.run import (
    CHECKPOINTS,
    FRAME_RATE,
    FRAMES,
    GUIDANCE,
    SIZE,
    STEPS,
    Made,
    Prompt,
    check_checkpoints,
    make,
    make_folder,
    prompts,
    stages,
)
from flowblending.runtime import api
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.video import open_writer
from flowblending.runtime.options import Job
from flowblending.system.console import Console, run_program

PROGRAMS = {"fb-build-engines": "flowblending.engine.cli", "fb-run": "flowblending.runtime.cli"}
VIDEOS = {"LLL": "LLL.mp4", "LSL": "video.mp4", "SSS": "SSS.mp4"}
"""Schedule -> file with its video of the first prompt."""
TOGETHER = "side-by-side.mp4"
PROMPTS, SEED = 4, 6
"""Of the seeds from 1 on, the first that draws two single shapes and two pairs which LLL gets right, all of them: what
is wrong in another column is its schedule's doing. The last prompt names a combination that training never shows."""
TIMES = 2
"""So often each clip is made; the schedules take turns, so that what else the machine does meets all of them alike."""
SCALE = 4
"""Every pixel of a 64x64 clip becomes a square of this many where the clips are side by side."""
ROUNDS = 4
"""So often a clip is played in the file with all of them: once lasts 1.6 s."""
WHY = """\
Why switch at all? On this toy a step cache alone goes further (LLL with MagCache: 38% of the FLOPs at 50.7 dB to LLL;
LSL: 66% at 34.1 dB), as its 40 steps are more than it needs; but a cache makes fewer calls and switching cheaper ones,
so that they multiply (LSL with MagCache: 32%), and at 12 steps too LSL takes 65% of LLL's
(benchmarks/results/caches.md)."""


def run(*command: str | Path) -> None:
    """Print a command and run it with this interpreter; a failing one ends the demo with its exit code."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", PROGRAMS[words[0]], *words[1:]], check=False).returncode
    if code:
        raise SystemExit(code)


def run_programs(checkpoints: Path, out: Path, prompt: Prompt) -> None:
    """Build the pair, show the plan, and make one prompt's video with every schedule."""
    run(
        *("fb-build-engines", "--large", checkpoints / "large", "--small", checkpoints / "small"),
        *("--out", out / "bundle", "--backend", "onnxruntime", "--size", SIZE, "--frames", str(FRAMES)),
    )
    job = ("fb-run", out / "bundle", "--prompt", prompt.text, "--steps", str(STEPS), "--guidance", f"{GUIDANCE:g}")
    run(*job, "--schedule", stages("LSL"), "--dry-run")
    for schedule, name in VIDEOS.items():
        options = ("--schedule", stages(schedule), "--seed", str(prompt.seed), "--fps", f"{FRAME_RATE:g}")
        run(*job, *options, "--out", out / name)


def make_all(bundle: Path, wanted: Sequence[Prompt], console: Console) -> dict[str, list[Made]]:
    """Every prompt's clip with every schedule, `TIMES` over; prints what the judge reads in them, and the times."""
    options = Job(prompt="", steps=STEPS, guidance=GUIDANCE, frame_rate=FRAME_RATE)
    jobs = {name: dataclasses.replace(options, schedule=stages(name)) for name in VIDEOS}
    made: dict[str, list[Made]] = {name: [] for name in jobs}
    turns = [(number, name) for _ in range(TIMES) for number in range(len(wanted)) for name in jobs]
    with api.open(bundle) as sampler:
        programs = {name: compile_job(job, sampler.manifest) for name, job in jobs.items()}
        # Engines are opened before any clock is read.
        make(sampler.pipeline, jobs["LSL"])
        with console.progress("videos", total=len(turns)) as advance:
            for number, name in turns:
                made[name].append(make(sampler.pipeline, wanted[number].job(jobs[name])))
                advance(1)
    runs = {name: program.schedule for name, program in programs.items()}
    console.table(
        f"{len(wanted)} prompts, {STEPS} steps; medians of {TIMES * len(wanted)} runs, with all engines loaded",
        ("schedule", "stages", "sampling", "whole video", "against LLL", "FLOPs", "attributes right"),
        times(wanted, made, runs),
    )
    return made


def times(
    wanted: Sequence[Prompt],
    made: Mapping[str, Sequence[Made]],
    runs: Mapping[str, str],
) -> list[tuple[str, ...]]:
    """A row for every schedule: median seconds, and how many of the prompts' attributes the judge finds.

    Args:
        wanted: the prompts.
        made: by schedule, the clips of all prompts in turn, once or more often.
        runs: by schedule, its stages.
    """
    shares, loops = flops_shares(made), loop_seconds(made)
    medians = {name: statistics.median(each.total for each in clips) for name, clips in made.items()}
    rows: list[tuple[str, ...]] = []
    for name, clips in made.items():
        verdicts = [
            prompt.judge(each.frames).attributes for prompt, each in zip(wanted, clips[: len(wanted)], strict=True)
        ]
        right, asked = sum(map(sum, verdicts)), sum(map(len, verdicts))
        rows.append(
            (
                name,
                runs[name],
                f"{loops[name]:.3f} s",
                f"{medians[name]:.3f} s",
                f"{medians[name] / medians['LLL']:.0%}",
                f"{shares[name]:.0%}",
                f"{right} of {asked}",
            )
        )
    return rows


def flops_shares(made: Mapping[str, Sequence[Made]]) -> dict[str, float]:
    """By schedule, the transformers' operations as a share of LLL's."""
    flops = {name: statistics.mean(each.flops for each in clips) for name, clips in made.items()}
    return {name: flops[name] / flops["LLL"] for name in made}


def loop_seconds(made: Mapping[str, Sequence[Made]]) -> dict[str, float]:
    """By schedule, the median seconds of the sampling loop."""
    return {name: statistics.median(each.loop for each in clips) for name, clips in made.items()}


def side_by_side(made: Mapping[str, Sequence[Made]], wanted: Sequence[Prompt]) -> list[Pixels]:
    """One picture for every frame: a column for each schedule with its cost above it, a row for each prompt."""
    clips = {name: [np.rint(255 * each.frames).astype(np.uint8) for each in every] for name, every in made.items()}
    count = len(next(iter(clips.values()))[0])
    captions = [prompt.text for prompt in wanted]
    shares, loops = flops_shares(made), loop_seconds(made)
    return [
        layout(
            [[clips[name][row][index] for name in clips] for row in range(len(wanted))],
            above=[f"{name}: {shares[name]:.0%} of the FLOPs, sampled in {loops[name]:.2f} s" for name in clips],
            left=captions,
            scale=SCALE,
        )
        for index in range(count)
    ]


def write_video(path: Path, pictures: Sequence[Pixels]) -> None:
    """The pictures as an MP4 at the clips' rate, `ROUNDS` times over."""
    height, width, _ = pictures[0].shape
    clip = np.stack(pictures)
    with open_writer(path, width=width, height=height, frame_rate=FRAME_RATE, metadata={}) as writer:
        for _ in range(ROUNDS):
            writer.write(clip)


def main() -> int:
    """Build the pair, generate, and put the videos side by side."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description="Build and run the trained shapes pair on the CPU."
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="the trained pair")
    arguments = parser.parse_args()
    out: Path = arguments.out
    check_checkpoints(arguments.checkpoints, ("large", "small"))
    make_folder(out)
    wanted = prompts(PROMPTS, SEED)
    run_programs(arguments.checkpoints, out, wanted[0])
    print(f"\nThe same from Python, for {PROMPTS} prompts:", flush=True)
    made = make_all(out / "bundle", wanted, Console())
    write_video(out / TOGETHER, side_by_side(made, wanted))
    print(f"\nDone: {out / TOGETHER} shows LLL, LSL and SSS side by side; {out / VIDEOS['LSL']} is LSL alone.")
    print(WHY)
    return 0


if __name__ == "__main__":
    run_program(main)
