"""``fb-client``: a prompt to a Triton server, a video back, with progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import flowblending
from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.arguments import add_noise, add_options, check_distinct, command_line, given, take_noise
from flowblending.runtime.option import CLIENT, Option
from flowblending.runtime.options import FAMILY_HELP, HOW, OUTPUT, WHAT, served_options
from flowblending.runtime.serve.triton.signature import FRAMES, LATENTS, MP4, dtype_of
from flowblending.system.command_line import add_console

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flowblending.runtime.serve.triton.client import Arrays
    from flowblending.system.console import Console


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
    add_options(what, CLIENT, [WHAT], required=["prompt"])
    add_noise(what)
    add_options(parser.add_argument_group(HOW, FAMILY_HELP), CLIENT, [HOW])
    where = parser.add_argument_group(OUTPUT)
    where.add_argument(
        "--out",
        type=Path,
        default=Path("video.mp4"),
        metavar="FILE",
        help="video.mp4, or frames.npy (uint8 [F, H, W, 3]) (default: %(default)s)",
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


def run(arguments: argparse.Namespace) -> None:
    """Send the request that the arguments make, and save the answer."""
    from contextlib import closing

    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.runtime.media.latents import npy_bytes
    from flowblending.runtime.media.video import check_output
    from flowblending.runtime.serve.triton.client import responses
    from flowblending.system.console import Console

    console = Console(quiet=arguments.quiet, document=arguments.json)
    take_noise(arguments, console.warn)
    inputs = _inputs(arguments)
    if arguments.out.suffix.lower() not in (".mp4", ".npy"):
        raise UsageError(f"Cannot save a video as {arguments.out}; use .mp4 or .npy.")
    if arguments.save_latents is not None and arguments.save_latents.suffix.lower() != ".npy":
        raise UsageError(f"Cannot save latents as {arguments.save_latents}; use .npy.")
    check_distinct({"--out": arguments.out, "--save-latents": arguments.save_latents}, {"--noise": arguments.noise})
    for path in filter(None, (arguments.out, arguments.save_latents)):
        check_outside(path)
        check_output(path, width=2, height=2)  # the server knows the real size
    answers = responses(arguments.url, arguments.model, inputs, priority=arguments.priority, timeout=arguments.timeout)
    with closing(answers):
        result = show(answers, console)
    report = json.loads(result["report"][0])
    for warning in report["warnings"]:
        console.warn(warning)
    if arguments.save_latents is not None:
        _save(arguments.save_latents, npy_bytes(result["latents"]))
    _save(arguments.out, result["video"][0] if arguments.out.suffix.lower() == ".mp4" else npy_bytes(result["frames"]))
    console.result(f"{arguments.out}: {report['schedule']}, {report['seconds']['total']:.1f} s on the server")
    console.document(CLIENT, {"video": arguments.out, "latents": arguments.save_latents, "server": report})


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


def _inputs(arguments: argparse.Namespace) -> Arrays:
    import numpy as np

    results = [MP4 if arguments.out.suffix.lower() == ".mp4" else FRAMES]
    if arguments.save_latents is not None:
        results.append(LATENTS)
    inputs: dict[str, npt.NDArray[np.generic]] = {
        "result": np.array([each.encode() for each in results], np.object_),
        "progress": np.array([True]),
    }
    fields = given(arguments, CLIENT)
    for option in served_options():
        if (value := fields.get(option.name)) is not None:
            inputs[option.name] = _tensor(option, value)
    if arguments.noise is not None:
        inputs["latents"] = _latents(arguments.noise)
    return inputs


def _tensor(option: Option, value: Any) -> npt.NDArray[np.generic]:
    import numpy as np

    if option.kind is str:
        return np.array([value.encode()], np.object_)
    kind = np.dtype(dtype_of(option))
    try:
        return np.array([value], kind)
    except OverflowError:
        raise UsageError(
            f"{value} was given to {option.option}, but it must fit in {kind}; give a smaller one."
        ) from None


def _latents(path: Path) -> npt.NDArray[np.float32]:
    import numpy as np

    from flowblending.runtime.media.latents import read_latents

    content = read_latents(path)
    if content.dtype.kind != "f":
        raise UsageError(f"{path} holds {content.dtype}, but float32 was expected; convert it.")
    with np.errstate(over="ignore"):  # the model refuses infinite numbers
        return np.asarray(content, np.float32)


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
