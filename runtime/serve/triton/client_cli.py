"""``fb-client``: a prompt to a Triton server, a video back, with progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.program.solvers.registry import METAVAR
from flowblending.runtime.serve.triton.signature import FRAMES, LATENTS, MP4

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flowblending.runtime.serve.triton.client import Arrays
    from flowblending.system.console import Console


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-client``. What is left out is decided by the model."""
    parser = argparse.ArgumentParser(
        prog="fb-client",
        description="Generate a video on a Triton server that serves a model of fb-export-triton.",
        epilog='Example: fb-client --model wan --prompt "A cat walks on the grass" --out cat.mp4',
    )
    parser.add_argument("--url", default="localhost:8001", metavar="HOST:PORT", help="gRPC (default: %(default)s)")
    parser.add_argument("--model", required=True, metavar="NAME", help="of the model in the server's repository")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the video shows")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what it should not show")
    parser.add_argument("--seed", type=int, help="of the noise (default: 0)")
    parser.add_argument("--size", metavar="WxH", help="of the video, if the bundle has several (default: its first)")
    parser.add_argument("--frames", type=int, metavar="N", help="of the video, likewise")
    parser.add_argument("--latents", type=Path, metavar="FILE", help="initial latents (.npy, fp32 [B, C, F, H, W])")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    parser.add_argument("--schedule", metavar="S", help='LSL, LLL, ... or "L20 S20 L10" (default: the bundle\'s)')
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale; 1 turns it off")
    parser.add_argument(
        "--batched-guidance", action=argparse.BooleanOptionalAction, help="both guidance branches in one call"
    )
    parser.add_argument("--solver", metavar=METAVAR)
    parser.add_argument("--cache", metavar="POLICY", help="leave out engine calls, as fb-run --cache (default: off)")
    parser.add_argument("--fps", type=float, dest="frame_rate", help="frames per second")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("video.mp4"),
        metavar="FILE",
        help="video.mp4, or frames.npy (uint8 [F, H, W, 3]) (default: %(default)s)",
    )
    parser.add_argument("--save-latents", type=Path, metavar="FILE", help="also write the final latents (.npy)")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="from 1, served first, as far as exported")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up when still in the queue after this")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Send the request that the arguments make, and save the answer."""
    from contextlib import closing

    from flowblending.runtime.media.latents import npy_bytes
    from flowblending.runtime.media.video import check_output
    from flowblending.runtime.serve.triton.client import responses
    from flowblending.system.console import Console

    if arguments.out.suffix not in (".mp4", ".npy"):
        raise UsageError(f"Cannot save a video as {arguments.out}; use .mp4 or .npy.")
    if arguments.save_latents is not None and arguments.save_latents.suffix != ".npy":
        raise UsageError(f"Cannot save latents as {arguments.save_latents}; use .npy.")
    if arguments.save_latents is not None and arguments.out.resolve() == arguments.save_latents.resolve():
        raise UsageError(f"--out and --save-latents both name {arguments.out}; give two files.")
    for path in filter(None, (arguments.out, arguments.save_latents)):
        check_output(path, width=2, height=2)  # the server knows the real size
    console = Console(quiet=arguments.quiet)
    answers = responses(
        arguments.url, arguments.model, _inputs(arguments), priority=arguments.priority, timeout=arguments.timeout
    )
    with closing(answers):
        result = show(answers, console)
    report = json.loads(result["report"][0])
    for warning in report["warnings"]:
        console.warn(warning)
    if arguments.save_latents is not None:
        _save(arguments.save_latents, npy_bytes(result["latents"]))
    _save(arguments.out, result["video"][0] if arguments.out.suffix == ".mp4" else npy_bytes(result["frames"]))
    console.log(f"{arguments.out}: {report['schedule']}, {report['seconds']['total']:.1f} s on the server")


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

    results = [MP4 if arguments.out.suffix == ".mp4" else FRAMES]
    if arguments.save_latents is not None:
        results.append(LATENTS)
    texts = {
        name: getattr(arguments, name) for name in ("prompt", "negative_prompt", "size", "schedule", "solver", "cache")
    }
    given: dict[str, npt.NDArray[np.generic]] = {
        name: np.array([text.encode()], np.object_) for name, text in texts.items() if text is not None
    }
    given["result"] = np.array([each.encode() for each in results], np.object_)
    types = {"seed": np.int64, "frames": np.int32, "steps": np.int32, "guidance": np.float64, "frame_rate": np.float64}
    for name, kind in types.items():
        if (value := getattr(arguments, name)) is not None:
            given[name] = _number(name, value, np.dtype(kind))
    if arguments.batched_guidance is not None:
        given["batched_guidance"] = np.array([arguments.batched_guidance])
    if arguments.latents is not None:
        given["latents"] = _latents(arguments.latents)
    return given


def _number(name: str, value: float, kind: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    import numpy as np

    try:
        return np.array([value], kind)
    except OverflowError:
        raise UsageError(f"{value} was given to --{name}, but it must fit in {kind}; give a smaller one.") from None


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
