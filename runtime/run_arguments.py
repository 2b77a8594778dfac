"""What ``fb-run`` is told: its command line, and which of its options contradict one another or do nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import (
    add_machine,
    add_noise,
    add_options,
    check_distinct,
    check_machine,
    command_line,
    given,
)
from flowblending.runtime.machine_options import MACHINE
from flowblending.runtime.option import RUN
from flowblending.runtime.options import FAMILY_HELP, HOW, OUTPUT, WHAT
from flowblending.system.command_line import add_console

if TYPE_CHECKING:
    from flowblending.system.console import Console

DEFAULT_OUT = Path("video.mp4")
DEFAULT_FOLDER = Path("videos")
VIDEO_SUFFIXES = (".mp4", ".npy")


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-run``. Defaults that depend on the model family come from the bundle."""
    parser = command_line(
        RUN,
        "Generate a video from a bundle that fb-build-engines made.",
        'fb-run wan --prompt "A cat walks on the grass" --schedule LSL --out cat.mp4',
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that fb-build-engines wrote")
    what = parser.add_argument_group(WHAT)
    add_options(what, RUN, [WHAT])
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many videos: one prompt a line, or one JSON object a line with prompt, seed, steps, ...; "
        "finished videos are skipped when run again",
    )
    what.add_argument(
        "--shard", metavar="I/N", help="with --prompts: only every N-th line, from line I on; for N runs at a time"
    )
    add_noise(what)
    what.add_argument(
        "--decode",
        type=Path,
        metavar="FILE",
        help="no prompt, but latents that --save-latents or the C++ library wrote (.npy); sample nothing",
    )
    add_options(parser.add_argument_group(HOW, FAMILY_HELP), RUN, [HOW])
    where = parser.add_argument_group(OUTPUT)
    where.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="video.mp4, frames.npy (uint8 [F, H, W, 3]) or a new folder for PNG files; "
        "with --prompts the folder for the videos (default: video.mp4, or videos/)",
    )
    add_options(where, RUN, [OUTPUT])
    where.add_argument(
        "--save-latents", type=Path, metavar="FILE", help="also write the final latents (.npy), for --decode"
    )
    where.add_argument(
        "--emit-program",
        type=Path,
        metavar="FILE",
        help="write the sampling program (.json) for other interpreters; without a prompt, nothing else is done",
    )
    where.add_argument(
        "--emit-inputs",
        type=Path,
        metavar="FILE",
        help="write the prompt's embeddings, the initial latents and what is made of images (.safetensors) for other "
        "interpreters, and sample nothing",
    )
    where.add_argument("--dry-run", action="store_true", help="print the plan and its cost; run nothing")
    add_console(where)
    machine = parser.add_argument_group(MACHINE)
    add_machine(machine, RUN)
    machine.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with --prompts: N processes with an engine pair each, one per GPU or sharing the CPU's cores",
    )
    machine.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='with --prompts: on a Ray cluster: its address, "auto", or "local" for one on this machine',
    )
    machine.add_argument(
        "--verify", action="store_true", help="check every file's checksum, also if unchanged since the last run"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that contradict one another."""
    if arguments.decode is not None:
        from flowblending.runtime.decode_file import check_decode

        check_decode(parser(), arguments)
    neither = arguments.prompt is None and arguments.prompts is None and arguments.decode is None
    if neither and not (arguments.dry_run or (arguments.emit_program and not arguments.emit_inputs)):
        raise UsageError("Give --prompt TEXT, --prompts FILE or --decode FILE.")
    if arguments.prompt is not None and arguments.prompts is not None and not arguments.dry_run:
        raise UsageError("Give either --prompt TEXT or --prompts FILE.")
    if arguments.prompts is not None and (arguments.noise or arguments.save_latents or arguments.emit_inputs):
        raise UsageError(
            "--noise, --save-latents and --emit-inputs are for a single --prompt; leave them out with --prompts."
        )
    if arguments.prompts is None and (arguments.workers is not None or arguments.shard or arguments.ray):
        raise UsageError("--workers, --shard and --ray are for --prompts FILE; leave them out with a single --prompt.")
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"{arguments.workers} workers were asked for, but at least 1 is needed; try --workers 2.")
    check_machine(arguments)
    given(arguments, RUN)
    out = out_of(arguments)
    if arguments.prompts is not None and out.suffix.lower() in VIDEO_SUFFIXES:
        raise UsageError(f"--out {out} names one video, but --prompts makes a folder of them; name a folder.")
    options = {"--save-latents": arguments.save_latents, "--emit-program": arguments.emit_program}
    check_distinct(
        {"--out": out, **options, "--emit-inputs": arguments.emit_inputs},
        {"--noise": arguments.noise, "--decode": arguments.decode, "--prompts": arguments.prompts},
    )


def idle(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """An option beside which others do nothing, and those."""
    files, machine = ["out", "save_latents"], ["threads", "verify"]
    if arguments.dry_run:
        both = [] if arguments.prompts is None else ["prompt"]
        return "--dry-run", [*files, "emit_program", "emit_inputs", "noise", *machine, "workers", "ray", *both]
    if arguments.emit_inputs is not None:
        return "--emit-inputs", [*files, "cuda_graph"]
    if arguments.prompt is None and arguments.prompts is None and arguments.decode is None:
        rest = ["noise", *machine, "cuda_graph", "seed", "negative_prompt", "frame_rate"]
        return "--emit-program without a prompt", [*files, *rest]
    return "", []


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse names that cannot be written, before there is anything to write."""
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.runtime.media.video import check_video_name
    from flowblending.system.output import check_file, check_folder

    check_outside(out_of(arguments))
    for path in (arguments.emit_program, arguments.emit_inputs, arguments.save_latents):
        if path is not None:
            check_outside(path)
            check_file(path)
    if arguments.prompts is not None:
        check_folder(out_of(arguments))
    elif (arguments.prompt or arguments.decode) is not None and arguments.emit_inputs is None:
        check_video_name(out_of(arguments))


def choose_out(arguments: argparse.Namespace, console: Console) -> None:
    """Have PNG images in place of an MP4 file that nobody asked for where none can be written."""
    writes = (arguments.prompt or arguments.decode) is not None and arguments.prompts is None
    if arguments.out is None and writes and not (arguments.dry_run or arguments.emit_inputs):
        arguments.out = DEFAULT_OUT.with_suffix(video_suffix(console))


def video_suffix(console: Console) -> str:
    """Of videos that nobody named: none, for a folder of PNG images, where no MP4 can be written."""
    from flowblending.runtime.media.video import why_no_mp4

    why = why_no_mp4()
    if why:
        console.warn(f"{why.rstrip('.')}: PNG images are written in place of MP4 files.")
    return "" if why else DEFAULT_OUT.suffix


def out_of(arguments: argparse.Namespace) -> Path:
    """Where the video goes, or the videos."""
    default = DEFAULT_OUT if arguments.prompts is None else DEFAULT_FOLDER
    out: Path = arguments.out or default
    return out


def is_timed(out: Path) -> bool:
    """Whether the file has a frame rate."""
    return out.suffix.lower() == ".mp4"
