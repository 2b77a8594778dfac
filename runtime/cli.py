"""``fb-run``: a bundle and a prompt in, a video out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import (
    add_machine,
    add_noise,
    add_options,
    check_machine,
    command_line,
    given,
    take_noise,
)
from flowblending.runtime.option import RUN
from flowblending.runtime.option_values import make_job
from flowblending.runtime.options import FAMILY_HELP, HOW, MACHINE, OUTPUT, WHAT, Job

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.runtime.pipeline import Pipeline
    from flowblending.runtime.prompt_file import PromptLine
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
        help="write the prompt's embeddings and the initial latents (.safetensors) for other interpreters, "
        "and sample nothing",
    )
    where.add_argument("--dry-run", action="store_true", help="print the plan and its cost; run nothing")
    where.add_argument("--quiet", action="store_true", help="print errors and warnings only")
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


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit code."""
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet)
    take_noise(arguments, console.warn)
    _choose_out(arguments, console)
    _check(arguments)
    bundle = open_bundle(arguments.bundle)
    _warn_unused(arguments, bundle, console)
    if arguments.dry_run:
        _dry_run(arguments, bundle, console)
        return 0
    _check_outputs(arguments)
    if arguments.emit_program is not None:
        _emit_program(arguments, bundle)
        if arguments.prompt is None and arguments.prompts is None:
            return 0
    total = sum(file.bytes for file in bundle.files())
    with console.progress("checking the bundle", total=total, unit="B") as advance:
        bundle.verify(recompute=arguments.verify, progress=advance)
    if arguments.decode is not None:
        return _decode(arguments, bundle, console)
    if arguments.prompts is not None:
        return _run_many(arguments, bundle, console)
    if arguments.emit_inputs is not None:
        return _emit_inputs(arguments, bundle, console)
    return _run_one(arguments, bundle, console)


def _check(arguments: argparse.Namespace) -> None:
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
    out = _out(arguments)
    if arguments.prompts is not None and out.suffix.lower() in VIDEO_SUFFIXES:
        raise UsageError(f"--out {out} names one video, but --prompts makes a folder of them; name a folder.")
    options = {"--save-latents": arguments.save_latents, "--emit-program": arguments.emit_program}
    named = {"--out": out, **options, "--emit-inputs": arguments.emit_inputs}
    written = {name: path.resolve() for name, path in named.items() if path is not None}
    for (one, path), (other, same) in combinations(written.items(), 2):
        if path == same:
            raise UsageError(f"{one} and {other} both name {named[one]}; give two files.")
    for name, path in written.items():
        if arguments.bundle.resolve() in path.parents:
            raise UsageError(
                f"{named[name]} lies in the bundle, which holds nothing but engines; choose another place."
            )


def _idle(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """An option beside which others do nothing, and those."""
    files, machine = ["out", "save_latents"], ["threads", "verify"]
    if arguments.dry_run:
        both = [] if arguments.prompts is None else ["prompt"]
        return "--dry-run", [*files, "emit_program", "emit_inputs", "noise", *machine, "workers", "ray", *both]
    if arguments.emit_inputs is not None:
        return "--emit-inputs", files
    if arguments.prompt is None and arguments.prompts is None and arguments.decode is None:
        rest = ["noise", *machine, "seed", "negative_prompt", "frame_rate"]
        return "--emit-program without a prompt", [*files, *rest]
    return "", []


def _warn_unused(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> None:
    """Tell of options that do nothing beside the others, or on this bundle."""
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.unused import unused_flags, unused_threads

    beside, names = _idle(arguments)
    for flag in unused_flags(parser(), arguments, names):
        console.warn(f"{flag} does nothing with {beside}.")
    if "threads" not in names:
        unused_threads(arguments.threads, device_kind(arguments.device, bundle.manifest), bundle.manifest, console.warn)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse names that cannot be written, before there is anything to write."""
    from flowblending.runtime.media.video import check_video_name
    from flowblending.system.output import check_file, check_folder

    for path in (arguments.emit_program, arguments.emit_inputs, arguments.save_latents):
        if path is not None:
            check_file(path)
    if arguments.prompts is not None:
        check_folder(_out(arguments))
    elif (arguments.prompt or arguments.decode) is not None and arguments.emit_inputs is None:
        check_video_name(_out(arguments))


def _choose_out(arguments: argparse.Namespace, console: Console) -> None:
    """Have PNG images in place of an MP4 file that nobody asked for where none can be written."""
    writes = (arguments.prompt or arguments.decode) is not None and arguments.prompts is None
    if arguments.out is None and writes and not (arguments.dry_run or arguments.emit_inputs):
        arguments.out = DEFAULT_OUT.with_suffix(_suffix(console))


def _suffix(console: Console) -> str:
    """Of videos that nobody named: none, for a folder of PNG images, where no MP4 can be written."""
    from flowblending.runtime.media.video import why_no_mp4

    why = why_no_mp4()
    if why:
        console.warn(f"{why.rstrip('.')}: PNG images are written in place of MP4 files.")
    return "" if why else DEFAULT_OUT.suffix


def _out(arguments: argparse.Namespace) -> Path:
    """Where the video goes, or the videos."""
    default = DEFAULT_OUT if arguments.prompts is None else DEFAULT_FOLDER
    out: Path = arguments.out or default
    return out


def _timed(out: Path) -> bool:
    """Whether the file has a frame rate."""
    return out.suffix.lower() == ".mp4"


def _job(arguments: argparse.Namespace) -> Job:
    """The job of the command line; its prompt is empty where a file has the prompts."""
    return make_job({"prompt": "", **given(arguments, RUN)})


def _dry_run(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> None:
    """Print what would be done, for every prompt of a file too, after every check that needs no engine."""
    from flowblending.runtime.dry_run import plan_lines
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.unused import unused_options

    job = _job(arguments)
    lines = [] if arguments.prompts is None else _lines(arguments, console)
    for line in lines:
        if line.job is None:
            raise UsageError(f"Line {line.number} of {arguments.prompts}: {line.error}")
    for number, each in [(line.number, line.job) for line in lines if line.job is not None] or [(0, job)]:
        if number:
            print(f"line      {number}: {each.prompt}")
        print("\n".join(plan_lines(bundle, each, arguments.device)))
        program, timed = compile_job(each, bundle.manifest), arguments.prompts is not None or _timed(_out(arguments))
        given_latents = arguments.noise is not None
        for sentence in unused_options(each, program, bundle.manifest, timed=timed, latents_given=given_latents):
            console.warn(sentence)


def _open(arguments: argparse.Namespace, bundle: Bundle) -> Pipeline:
    from flowblending.runtime.devices.open import open_device
    from flowblending.runtime.pipeline import Pipeline

    device = open_device(arguments.device, bundle.manifest)
    return Pipeline(bundle=bundle, device=device, threads=arguments.threads)


def _emit_program(arguments: argparse.Namespace, bundle: Bundle) -> None:
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.program.program_file import ProgramFile

    program = compile_job(_job(arguments), bundle.manifest)
    ProgramFile.for_bundle(program, bundle.manifest).write(arguments.emit_program)


def _emit_inputs(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.generate import write_inputs
    from flowblending.runtime.media.latents import read_latents

    latents = read_latents(arguments.noise) if arguments.noise else None
    pipeline = _open(arguments, bundle)
    try:
        write_inputs(pipeline, _job(arguments), arguments.emit_inputs, console, latents=latents)
    finally:
        pipeline.close()
    return 0


def _decode(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.decode_file import decode_file

    pipeline = _open(arguments, bundle)
    try:
        decode_file(pipeline, arguments.decode, _job(arguments), _out(arguments), console)
    finally:
        pipeline.close()
        pipeline.device.close()
    return 0


def _run_one(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.engine.bundle.geometry import geometry_of
    from flowblending.runtime.generate import generate
    from flowblending.runtime.media.latents import read_latents
    from flowblending.runtime.stage_times import show_times

    job = _job(arguments)
    latents = read_latents(arguments.noise) if arguments.noise else None
    out = _out(arguments)
    pipeline = _open(arguments, bundle)
    try:
        outcome = generate(pipeline, job, out, console, latents=latents, latents_out=arguments.save_latents)
    finally:
        pipeline.close()
        pipeline.device.close()
    show_times(outcome.program, outcome.sample, outcome.seconds, console)
    console.log(f"{out}: {geometry_of(bundle.manifest.pipeline, outcome.program.latent_shape)}")
    return 0


def _lines(arguments: argparse.Namespace, console: Console) -> list[PromptLine]:
    """The lines of the prompt file that this run makes."""
    from flowblending.runtime.batch.tasks import Shard
    from flowblending.runtime.prompt_file import read_jobs

    lines = read_jobs(arguments.prompts, _job(arguments), console.log)
    if arguments.shard is None:
        return lines
    shard = Shard.parse(arguments.shard)
    return [line for line in lines if shard.holds(line.number)]


def _run_many(arguments: argparse.Namespace, bundle: Bundle, console: Console) -> int:
    from flowblending.runtime.batch.tasks import Batch, run_batch
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import job_check

    batch = Batch(
        _lines(arguments, console),
        _out(arguments),
        bundle.manifest.edition,
        console,
        check=job_check(bundle.manifest),
        suffix=_suffix(console),
    )
    batch.write_index(f"index{f'-{arguments.shard}'.replace('/', '-of-') if arguments.shard else ''}.json")
    if not batch.unfinished:
        return batch.finish()
    if arguments.ray is not None:
        from flowblending.runtime.batch.cluster import ClusterOptions
        from flowblending.runtime.batch.ray_pool import run_on_ray

        options = ClusterOptions(
            address=arguments.ray, device=arguments.device, workers=arguments.workers, threads=arguments.threads
        )
        return run_on_ray(bundle, batch, options, console)
    if arguments.workers is not None:
        from flowblending.runtime.batch.workers import plan_workers, run_workers

        device = device_kind(arguments.device, bundle.manifest)
        configs = plan_workers(bundle.folder, count=arguments.workers, device=device, threads=arguments.threads)
        return run_workers(configs, batch, console)
    pipeline = _open(arguments, bundle)
    try:
        return run_batch(pipeline, batch, console)
    finally:
        pipeline.close()
        pipeline.device.close()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-run``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
