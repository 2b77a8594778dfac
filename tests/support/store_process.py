"""A component that is made in milliseconds, for the tests of the component cache and for the processes they start.

As a program, it makes that component for a bundle and tells what it does, one word a line:

    python -m tests.support.store_process CACHE BUNDLE [pause]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from flowblending.contracts.graph import ExportedGraph
from flowblending.contracts.manifest import Component
from flowblending.engine.bundle.bundle import describe_file
from flowblending.engine.store.prune import show_list
from flowblending.engine.store.store import Order, open_store
from flowblending.engine.store.unfinished import EXPORT, mark_verified, verified_graph
from flowblending.system.console import Console
from tests.support import manifests

NAME = "large"
KEY = {"weights": "0123", "calibration": "none"}
PLAN = b"plan" * 1000


class Recorder(Console):
    """Remembers what the user would read."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")

    def result(self, line: str) -> None:
        self.lines.append(line)

    def table(self, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:  # noqa: ARG002
        self.lines += ["  ".join(row) for row in rows]


def listed(folder: Path) -> list[str]:
    """What ``--list-cache`` tells of a cache, a line for every entry."""
    recorder = Recorder()
    show_list(folder, recorder)
    return recorder.lines


def make(work: Path, tell: Callable[[str], object]) -> Component:
    """Export, verify and compile, as a build does."""
    graph = verified_graph(work, NAME)
    if graph is None:
        tell("export")
        folder = work / EXPORT
        folder.mkdir()
        graph = ExportedGraph(
            spec=manifests.spec(NAME), onnx=folder / f"{NAME}.onnx", opset=23, weights_sha256="", versions={}
        )
        graph.onnx.write_bytes(b"graph")
        graph.data.write_bytes(b"weights")
        graph.write()
        mark_verified(graph)
    assert graph.onnx.read_bytes() + graph.data.read_bytes() == b"graphweights"
    tell("compile")
    partial = work / f"{NAME}.plan.partial"
    partial.write_bytes(PLAN)
    plan = partial.rename(work / f"{NAME}.plan")
    return Component(
        spec=graph.spec, backend="tensorrt", backend_version="1", files=(describe_file(work, plan),), key=KEY
    )


def obtain(
    cache: Path | None, bundle: Path, tell: Callable[[str], object], console: Console | None = None
) -> tuple[Component, bool]:
    """What a build with this one component does."""
    bundle.mkdir(exist_ok=True)
    with open_store(cache, bundle, console or Recorder()) as store:
        result = store.obtain(order(bundle, lambda work: make(work, tell)))
        tell("done")
    return result


def order(bundle: Path, making: Callable[[Path], Component]) -> Order[Component]:
    """The order for that component."""
    return Order(kind=Component, name=NAME, key=KEY, family="wan", source="Org/Model", into=bundle, make=making)


def _tell(word: str) -> None:
    print(word, flush=True)
    if word in sys.argv[3:]:
        sys.stdin.readline()


if __name__ == "__main__":
    with mock.patch.object(os, "fsync"):
        obtain(Path(sys.argv[1]), Path(sys.argv[2]), _tell)
