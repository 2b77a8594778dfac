"""``fb-client``: a prompt to a Triton server, a video back, with progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import flowblending
from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.arguments import add_noise, add_options, check_distinct, command_line, given, take_noise
from flowblending.runtime.option import CLIENT
from flowblending.runtime.options import FAMILY_HELP, HOW, OUTPUT, WHAT
from flowblending.runtime.serve.triton.signature import FRAMES, LATENTS, MP4
from flowblending.system.command_line import add_console

if TYPE_CHECKING:
    from flowblending.runtime.serve.triton.client import Arrays
    from flowblending.system.console import Console

_VIDEOS = (".mp4", ".npy")


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-client``. What is left out is decided by the model."""
    parser = command_line(
        CLIENT,
        "Generate a video on a Triton server that serves a model of fb-export-triton.",
        'fb-client --model wan --prompt "A cat walks on the grass" --out cat.mp4',
    )
    parser.add_argument("--url", default="localhost:8001", metavar="HOST:PORT", help="gRPC (default: %(default)s)")
    parser.add_argument("--model", required=True, metavar="NAME", help="of the model in the server's repository")
    what = parser.add_argument_group(WHAT)
    add_options(what, CLIENT, [WHAT])
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many videos: one prompt a line, or one JSON object a line with prompt, seed, image, ...; finished videos "
        "are skipped when run again",
    )
    add_noise(what)
    add_options(parser.add_argument_group(HOW, FAMILY_HELP), CLIENT, [HOW])
    where = parser.add_argument_group(OUTPUT)
    where.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="video.mp4, or frames.npy (uint8 [F, H, W, 3]); with --prompts the folder for the videos (default: "
        "video.mp4, or videos/)",
    )
    add_options(where, CLIENT, [OUTPUT])
    where.add_argument(
        "--save-latents", type=Path, metavar="FILE", help="also write the final latents (.npy), for fb-run --decode"
    )
    add_console(where)
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="from 1, served first, as far as exported")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up when still in the queue after this")
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Send the requests that the arguments make, and save the answers; returns the exit code."""
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    take_noise(arguments, console.warn)
    check(arguments)
    out = out_of(arguments)
    check_distinct(
        {"--out": out, "--save-latents": arguments.save_latents},
        {"--noise": arguments.noise, "--prompts": arguments.prompts},
    )
    for path in filter(None, (out, arguments.save_latents)):
        check_outside(path)
    return _run_one(arguments, out, console) if arguments.prompts is None else _run_many(arguments, out, console)


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that contradict one another.

    Raises:
        UsageError: they do.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UsageError("Give either --prompt TEXT or --prompts FILE.")
    out, latents = out_of(arguments), arguments.save_latents
    if arguments.prompts is not None:
        if arguments.noise or latents:
            raise UsageError("--noise and --save-latents are for a single --prompt; leave them out with --prompts.")
        if out.suffix.lower() in _VIDEOS:
            raise UsageError(f"--out {out} names one video, but --prompts makes a folder of them; name a folder.")
        return
    if out.suffix.lower() not in _VIDEOS:
        raise UsageError(f"Cannot save a video as {out}; use .mp4 or .npy.")
    if latents is not None and latents.suffix.lower() != ".npy":
        raise UsageError(f"Cannot save latents as {latents}; use .npy.")


def out_of(arguments: argparse.Namespace) -> Path:
    """Where the video goes, or the videos."""
    out: Path = arguments.out or Path("video.mp4" if arguments.prompts is None else "videos")
    return out


def _run_one(arguments: argparse.Namespace, out: Path, console: Console) -> int:
    from flowblending.runtime.media.latents import npy_bytes
    from flowblending.runtime.media.video import check_output
    from flowblending.runtime.serve.triton.client_request import request_inputs

    latents = arguments.save_latents
    for path in filter(None, (out, latents)):
        check_output(path, width=2, height=2)  # the server knows the real size
    results = [MP4 if out.suffix.lower() == ".mp4" else FRAMES, *([] if latents is None else [LATENTS])]
    inputs = request_inputs(given(arguments, CLIENT), results, noise=arguments.noise)
    result, report = _ask(arguments, inputs, console)
    if latents is not None:
        _save(latents, npy_bytes(result["latents"]))
    _save(out, result["video"][0] if out.suffix.lower() == ".mp4" else npy_bytes(result["frames"]))
    console.result(f"{out}: {report['schedule']}, {report['seconds']['total']:.1f} s on the server")
    console.document(CLIENT, {"video": out, "latents": latents, "server": report})
    return 0


def _run_many(arguments: argparse.Namespace, out: Path, console: Console) -> int:
    """A video for every line of a prompt file; those of lines that fail are reported, and the others made."""
    import dataclasses

    from flowblending.runtime.batch.tasks import Batch, cause_of
    from flowblending.runtime.option_values import make_job
    from flowblending.runtime.prompt_file import read_jobs
    from flowblending.runtime.serve.triton.client_request import request_inputs
    from flowblending.system.output import check_folder

    check_folder(out)
    defaults = make_job({"prompt": "", **given(arguments, CLIENT)})
    lines = read_jobs(arguments.prompts, defaults, console.log)
    # A server does not say which bundle it serves: its model's name stands for it.
    batch = Batch(lines, out, arguments.model, console, program=CLIENT)
    batch.write_index("index.json")
    while task := batch.take(CLIENT, alone=True):
        try:
            fields = {each.name: getattr(task.job, each.name) for each in dataclasses.fields(task.job)}
            result, report = _ask(arguments, request_inputs(fields, [MP4]), console)
            _save(task.out, result["video"][0])
        except FlowBlendingError as error:
            batch.failed(task, str(error), cause_of(error))
        else:
            batch.made(task, report["seconds"]["total"])
    return batch.finish()


def _ask(arguments: argparse.Namespace, inputs: Arrays, console: Console) -> tuple[Arrays, Mapping[str, Any]]:
    """The last response to a request, and what it reports."""
    from contextlib import closing

    from flowblending.runtime.serve.triton.client import responses

    answers = responses(arguments.url, arguments.model, inputs, priority=arguments.priority, timeout=arguments.timeout)
    with closing(answers):
        result = show(answers, console)
    report: Mapping[str, Any] = json.loads(result["report"][0])
    for warning in report["warnings"]:
        console.warn(warning)
    return result, report


def show(answers: Iterator[Arrays], console: Console) -> Arrays:
    """Follow a request's responses with a progress bar, and return the last one.

    Raises:
        FlowBlendingError: the server ended the answer without a result.
    """
    with console.phase("waiting for the server"):
        latest = next(answers, {})
    if "step" in latest:
        with console.steps(int(latest["steps"][0])) as advance:
            while "step" in latest:
                step, steps = int(latest["step"][0]), int(latest["steps"][0])
                advance(step, latest["stage"][0].decode(), float(latest["seconds"][0]))
                if step == steps:
                    break
                latest = next(answers, {})
        with console.phase("decoding the video"):
            latest = next(answers, {})
    if "report" not in latest:
        raise FlowBlendingError("The server ended its answer without a result; look into its log.")
    return latest


def _save(path: Path, content: bytes) -> None:
    from flowblending.system.whole_file import write_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowBlendingError(f"Cannot make {path.parent} ({error.strerror}); give another place.") from None
    write_whole(path, content)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-client``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
