"""``fb-serve``: bundles in, a service with OpenAI's video API out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import flowblending
from flowblending import UsageError
from flowblending.runtime.arguments import add_machine, check_machine, command_line
from flowblending.runtime.machine_options import MACHINE, MachineSettings
from flowblending.runtime.option import SERVE
from flowblending.runtime.serve.http.scale import read_workers

if TYPE_CHECKING:
    from flowblending.contracts.manifest import Manifest
    from flowblending.runtime.serve.http.replicas.application import ClusterService

_HOUR = 3600.0


def parser() -> argparse.ArgumentParser:
    """The command line of ``fb-serve``."""
    parser = command_line(
        SERVE,
        "Serve bundles over HTTP with OpenAI's video API (/v1/videos).",
        "fb-serve wan --port 8000",
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder that fb-build-engines wrote")
    parser.add_argument(
        "--name", action="append", default=[], help="of the model, once per bundle (default: the bundle's folder name)"
    )
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at (default: %(default)s)")
    where.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: %(default)s)")
    where.add_argument(
        "--data",
        type=Path,
        default=Path("served"),
        metavar="FOLDER",
        help="for jobs and videos, which survive a restart (default: %(default)s)",
    )
    who = parser.add_argument_group("who and how much")
    who.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="one key a line; also from the environment, FB_SERVE_API_KEYS=KEY,KEY (default: none, and only this "
        "machine is let in)",
    )
    who.add_argument(
        "--max-queue", type=int, default=100, metavar="N", help="refuse a video when N wait (default: %(default)s)"
    )
    who.add_argument("--rate", type=int, metavar="N", help="videos a minute for each API key (default: any number)")
    who.add_argument(
        "--keep-hours", type=float, default=24.0, metavar="H", help="a result; 0 for ever (default: %(default)s)"
    )
    who.add_argument(
        "--keep-gb", type=float, metavar="GB", help="of videos, the newest of them; 0 keeps all (default: all)"
    )
    who.add_argument(
        "--drain",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="that videos in the making have after SIGTERM; what is not finished waits for the next start (default: "
        "%(default)s)",
    )
    who.add_argument("--log-prompts", action="store_true", help="also write prompts to the log")
    who.add_argument("--quiet", action="store_true", help="log errors only")
    machine = parser.add_argument_group(MACHINE)
    add_machine(machine, SERVE)
    machine.add_argument(
        "--workers",
        metavar="N",
        help="processes with all engines each, one video at a time (default: one per GPU, or one); with --ray "
        "replicas, the fewest and the most of them (default: 1..N, N being the GPUs, or on CPUs the nodes)",
    )
    cluster = parser.add_argument_group("on more than one machine")
    cluster.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="make videos by Ray Serve on a cluster: 'auto', HOST:PORT, or 'local' for one on this machine",
    )
    cluster.add_argument(
        "--models-per-replica", type=int, metavar="N", help="bundles that a replica has open at a time (default: 1)"
    )
    cluster.add_argument(
        "--scale-down",
        type=float,
        metavar="SECONDS",
        help="after which a replica that is not needed ends (default: 600)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {flowblending.__version__}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    workers = _check(arguments)
    from flowblending.system.extras import check_installed

    if arguments.ray is None:
        check_installed("fb-serve", "serve", "video")
    else:
        check_installed("fb-serve --ray", "serve", "video", "ray", "ray-serve")
    from flowblending.engine.bundle.bundle import open_bundle
    from flowblending.runtime.serve.http.keeping import Keeping
    from flowblending.runtime.serve.http.keys import read_keys
    from flowblending.runtime.serve.http.server import ServeOptions, serve
    from flowblending.runtime.serve.http.service import Limits
    from flowblending.runtime.serve.model_names import model_names
    from flowblending.runtime.unused import unused_machine
    from flowblending.system.console import Console

    names = model_names(arguments.bundles, arguments.name)
    machine = MachineSettings.of(vars(arguments))
    keys = read_keys(arguments.api_keys, os.environ)
    console = Console(quiet=arguments.quiet)
    bundles = {name: open_bundle(folder) for name, folder in zip(names, arguments.bundles, strict=True)}
    total = sum(file.bytes for bundle in bundles.values() for file in bundle.files())
    with console.progress("checking", total=total, unit="B") as advance:
        for bundle in bundles.values():
            bundle.verify(progress=advance)
            kind = _kind(arguments, bundle.manifest)
            for sentence in unused_machine(machine, kind, bundle.manifest).values():
                console.warn(sentence)
    serve(
        bundles,
        ServeOptions(
            host=arguments.host,
            port=arguments.port,
            data=arguments.data,
            device=arguments.device,
            machine=machine,
            workers=None if workers is None or arguments.ray is not None else workers[1],
            cluster=None if arguments.ray is None else _cluster(arguments, workers),
            keys=keys,
            keeping=Keeping(
                seconds=arguments.keep_hours * _HOUR or None,
                most_bytes=int((arguments.keep_gb or 0) * 1e9) or None,
            ),
            limits=Limits(waiting=arguments.max_queue, rate=arguments.rate, log_prompts=arguments.log_prompts),
            drain=arguments.drain,
            quiet=arguments.quiet,
        ),
    )


def _kind(arguments: argparse.Namespace, manifest: Manifest) -> str:
    """``cpu`` or ``cuda``, where a bundle runs: here, or on nodes of a cluster."""
    if arguments.ray is not None:
        from flowblending.runtime.cluster.share import node_kind

        return node_kind(arguments.device, [manifest])
    from flowblending.runtime.devices.open import device_kind

    return device_kind(arguments.device, manifest)


def _cluster(arguments: argparse.Namespace, workers: tuple[int, int] | None) -> ClusterService:
    """Replicas on a cluster, as they were asked for."""
    from flowblending.runtime.cluster.share import ClusterOptions
    from flowblending.runtime.serve.http.replicas.application import ClusterService
    from flowblending.runtime.serve.http.replicas.deployment import Scale

    scale = Scale()
    fewest, most = workers or (scale.fewest, None)
    return ClusterService(
        cluster=ClusterOptions(
            address=arguments.ray,
            device=arguments.device,
            workers=most,
            machine=MachineSettings.of(vars(arguments)),
        ),
        scale=Scale(
            fewest=fewest,
            models=arguments.models_per_replica or scale.models,
            idle=scale.idle if arguments.scale_down is None else arguments.scale_down,
        ),
    )


def _check(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Refuse numbers that are out of bounds, and options that do nothing; returns the fewest and the most workers.

    Raises:
        UsageError: there is one.
    """
    check_machine(arguments)
    workers = read_workers(arguments.workers)
    bounds = {
        "--port": (arguments.port, 0, 65535),
        "--max-queue": (arguments.max_queue, 1, 10**6),
        "--rate": (arguments.rate, 1, 10**6),
        "--keep-hours": (arguments.keep_hours, 0, 10**6),
        "--keep-gb": (arguments.keep_gb, 0, 10**6),
        "--drain": (arguments.drain, 0, 10**6),
        "--models-per-replica": (arguments.models_per_replica, 1, 1024),
        "--scale-down": (arguments.scale_down, 0, 10**6),
    }
    for option, (value, least, most) in bounds.items():
        if value is not None and not least <= value <= most:
            raise UsageError(f"{option} is {value:g}, but a number from {least} to {most} was expected.")
    if arguments.ray is None:
        given = {"--models-per-replica": arguments.models_per_replica, "--scale-down": arguments.scale_down}
        for option in [each for each, value in given.items() if value is not None]:
            raise UsageError(f"{option} is for replicas on a cluster; leave it out, or give --ray ADDRESS.")
        if workers is not None and workers[0] != workers[1]:
            raise UsageError(
                f"--workers {arguments.workers} is for replicas on a cluster, but processes stay as many as they are; "
                "give one number, or --ray ADDRESS."
            )
    return workers


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``fb-serve``."""
    parsed = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from flowblending.system.console import run_program

    run_program(lambda: run(parsed))


if __name__ == "__main__":
    main()
