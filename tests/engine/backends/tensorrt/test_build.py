"""The compiler's process: progress, interruption, death."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from tests.support.graphs import linear
from tests.support.plans import build, needs_no_gpu, needs_rtx


def children(process: int | None = None) -> list[int]:
    tasks = Path(f"/proc/{process or os.getpid()}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@needs_rtx
def test_what_progress_raises_ends_the_compilation(tmp_path: Path) -> None:
    before, seen = set(children()), set[int]()

    def cancel(phase: str) -> None:
        if phase == "compiling":
            seen.update(set(children()) - before)
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        build(linear(tmp_path), tmp_path / "large.plan", "sm89", progress=cancel)
    assert len(seen) == 1
    assert set(children()) == before
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed while compiling large, most likely because memory ran out"),
        (signal.SIGSEGV, "SEGV"),
    ],
)
def test_a_compiler_that_dies_is_told(tmp_path: Path, number: signal.Signals, message: str) -> None:
    before = set(children())

    def kill(phase: str) -> None:
        if phase == "compiling":
            (compiler,) = set(children()) - before
            os.kill(compiler, number)

    # The child needs no core file.
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    try:
        with pytest.raises(FlowBlendingError, match=message):
            build(linear(tmp_path), tmp_path / "large.plan", "sm89", progress=kill)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert not list(tmp_path.glob("*plan*"))


_PROGRAM = """
import sys
from pathlib import Path
from flowblending.system.console import run_program
from flowblending.contracts.graph import ExportedGraph
from tests.support.plans import build
folder = Path(sys.argv[1])
graph = ExportedGraph.read(folder / "large.json")
run_program(lambda: build(graph, folder / "large.plan", "sm89", progress=lambda phase: print(phase, flush=True)))
"""


@contextmanager
def building(folder: Path, *, group: int | None = None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program in the midst of a build, and the process of its compiler, which is stopped and so never finishes."""
    linear(folder).write()
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, folder],
        cwd=Path(__file__).parents[4],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=group,
    ) as program:
        assert program.stdout is not None
        for phase in program.stdout:
            if phase == "compiling\n":
                break
        (compiler,) = children(program.pid)
        os.kill(compiler, signal.SIGSTOP)
        try:
            yield program, compiler
        finally:
            program.kill()
            with suppress(ProcessLookupError):
                os.kill(compiler, signal.SIGKILL)


def gone(process: int) -> bool:
    """Whether a process has ended; its parent need not have asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ")[-1].startswith("Z")
    except FileNotFoundError:
        return True


@needs_rtx
def test_ctrl_c_ends_a_build_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with building(tmp_path, group=0) as (program, compiler):
        # As a terminal does: to the program and to the compiler's process.
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=30)
        assert errors == "interrupted; nothing was left half-written\n"
        assert program.returncode == 130
        assert gone(compiler)
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
def test_a_compiler_does_not_outlive_its_program(tmp_path: Path) -> None:
    # Not in a process group of its own, in which the kernel would end a stopped orphan by itself.
    with building(tmp_path) as (program, compiler):
        program.kill()
        program.wait(timeout=30)
        deadline = time.monotonic() + 10
        while not gone(compiler) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(compiler)


@needs_no_gpu
@needs_rtx
def test_building_for_the_gpu_present_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --target"):
        build(linear(tmp_path), tmp_path / "large.plan")
