"""``fb-export-triton``: bundles in, a model repository for NVIDIA Triton out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import add_machine, check_machine, command_line
from flowblending.runtime.machine_options import MACHINE, MachineSettings
from flowblending.runtime.option import EXPORT_TRITON
from flowblending.system.command_line import add_console


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-export-triton``."""
    parser = command_line(
        EXPORT_TRITON,
        "Write a model repository for NVIDIA Triton, one model per bundle.",
        "fb-export-triton wan --out models --max-queue 16 --timeout 600 --priorities 2\n"
        "tritonserver --model-repository models",
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder that fb-build-engines wrote")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="REPOSITORY", help="folder; other models in it stay as they are"
    )
    parser.add_argument(
        "--name", action="append", default=[], help="of the model, once per bundle (default: the bundle's folder name)"
    )
    parser.add_argument(
        "--plans",
        action="store_true",
        help="also NAME_large and NAME_small: the two plans as models of Triton's TensorRT backend, "
        "for a sampling loop of your own",
    )
    queue = parser.add_argument_group("requests that have to wait")
    queue.add_argument(
        "--max-queue", type=int, metavar="N", help="refuse a request when N of its priority wait (default: never)"
    )
    queue.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="refuse a request that waited so long (default: never)"
    )
    queue.add_argument(
        "--priorities",
        type=int,
        metavar="N",
        help="requests may ask for a priority from 1, served first, to N; those that do not have the middle one "
        "(default: all are served in the order of their arrival)",
    )
    machine = parser.add_argument_group(MACHINE)
    add_machine(machine, EXPORT_TRITON)
    machine.add_argument(
        "--gpus", metavar="0,1,...", help="the server's GPUs to use, one video at a time on each (default: all)"
    )
    add_console(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the repository that the arguments ask for."""
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.serve.model_names import model_names
    from flowblending.runtime.serve.triton.config import Placement, QueuePolicy
    from flowblending.runtime.serve.triton.repository import (
        check_repository,
        plan_models,
        video_model,
        write_repository,
    )
    from flowblending.runtime.unused import unused_machine
    from flowblending.system.console import Console
    from flowblending.system.shell import command

    queue = QueuePolicy(
        size=_positive(arguments.max_queue, "--max-queue") or 0,
        timeout=arguments.timeout,
        priorities=_positive(arguments.priorities, "--priorities") or 0,
    )
    check_machine(arguments)
    place = Placement(
        device=arguments.device,
        gpus=_gpus(arguments.gpus),
        machine=MachineSettings.of(vars(arguments)),
    )
    if place.gpus and place.device == "cpu":
        raise UsageError("--gpus was given with --device cpu; leave one of them out.")
    console = Console(quiet=arguments.quiet, document=arguments.json)
    bundles = [open_bundle(folder) for folder in arguments.bundles]
    models = []
    for name, bundle in zip(model_names(arguments.bundles, arguments.name), bundles, strict=True):
        kind = device_kind(arguments.device, bundle.manifest)
        for sentence in unused_machine(place.machine, kind, bundle.manifest).values():
            console.warn(sentence)
        models.append(video_model(name, bundle, queue, place))
        if arguments.plans:
            models += plan_models(name, bundle, place)
    check_repository(models, arguments.out)
    total = sum(file.bytes for bundle in bundles for file in bundle.files())
    with console.progress("checking", total=total, unit="B") as advance:
        for bundle in bundles:
            bundle.verify(progress=advance)
    total = sum(path.stat().st_size for model in models for path in model.links.values())
    with console.progress("writing", total=total, unit="B") as advance:
        write_repository(models, arguments.out, advance)
    for model in models:
        console.result(f"{arguments.out / model.name}")
    console.document(
        EXPORT_TRITON,
        {
            "repository": arguments.out,
            "models": [{"name": model.name, "folder": arguments.out / model.name} for model in models],
        },
    )
    console.result(f"Serve it: {command('tritonserver', '--model-repository', arguments.out.absolute())}")


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise UsageError(f"{value} was given to {option}, but at least 1 is needed; leave it out for no limit.")
    return value


def _gpus(text: str | None) -> tuple[int, ...]:
    numbers = (text or "").split(",") if text is not None else []
    if not all(each.strip().isdecimal() for each in numbers):
        raise UsageError(f"GPUs {text!r} were given, but numbers were expected; give --gpus 0,1.")
    return tuple(dict.fromkeys(map(int, numbers)))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-export-triton``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
