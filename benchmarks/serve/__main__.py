"""Throughput, latency and endurance of fb-serve on the CPU.

python -m benchmarks.serve demo/bundle --json benchmarks/results/serve.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve.endurance import endurance
from benchmarks.serve.speed import latency, polls, throughput
from flowblending import UsageError
from flowblending.system.console import Console, run_program

PARTS = ("throughput", "latency", "polls", "endurance")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.serve", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder that fb-build-engines wrote")
    parser.add_argument("--parts", default=",".join(PARTS), help="of the measurement (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="(default: one per core)")
    parser.add_argument(
        "--steps", type=int, default=30, help="of a video, where speed is measured (default: %(default)s)"
    )
    parser.add_argument("--videos", type=int, default=20, help="of each worker and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=50, help="of latency (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1000, help="of endurance (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=4, help="of the service, and twice as many of workers")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    return parser


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for."""
    bundle, workers, parts = arguments.bundle, arguments.workers, arguments.parts.split(",")
    options, short = {"steps": arguments.steps}, {"steps": 2}
    if unknown := [each for each in parts if each not in PARTS]:
        raise UsageError(f"--parts names {', '.join(unknown)}, but {', '.join(PARTS)} are known.")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder = Path(name)
        for part in parts:
            load = os.getloadavg()[0]
            began = time.monotonic()
            match part:
                case "throughput":
                    count = arguments.videos
                    found[part] = throughput(
                        bundle, folder, options, workers=workers, count=count, rounds=arguments.rounds
                    )
                case "latency":
                    found[part] = latency(bundle, folder, options, count=arguments.requests)
                case "polls":
                    found[part] = polls(bundle, folder, options, clients=4, seconds=10)
                case "endurance":
                    jobs = arguments.jobs
                    found[part] = endurance(bundle, folder, short, jobs=jobs, workers=workers, kills=arguments.kills)
            about = {"bundle": bundle.name, "steps": (short if part == "endurance" else options)["steps"]}
            machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load_before": load}
            found[part] |= {**about, **machine, "took_seconds": time.monotonic() - began}
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parser().parse_args(words)
    console = Console()
    earlier = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    text = json.dumps(earlier | measure(arguments), indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    console.result(text)


if __name__ == "__main__":
    run_program(main)
