"""The component cache with the real compiler: killed in its phases, and killed for its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Component
from flowblending.engine.backends.registry import backend_version, compile_engine
from flowblending.engine.bundle.bundle import describe_file
from flowblending.engine.store.store import open_store
from flowblending.engine.store.unfinished import EXPORT, mark_verified, verified_graph
from tests.engine.backends.tensorrt.test_build import children
from tests.support import store_process
from tests.support.graphs import PROFILE, linear
from tests.support.plans import RTX, build, needs_rtx
from tests.support.store_process import NAME, Recorder

pytestmark = [pytest.mark.slow, needs_rtx]

TARGETS = ("sm89", "sm120")
READING, COMPILING, COMPILED = "reading the graph", "compiling", "compiled"


def make(work: Path, tell: Callable[[str], None]) -> Component:
    """A component as a build makes it, but for the checkpoint."""
    graph = verified_graph(work, NAME)
    if graph is None:
        tell("exporting")
        (work / EXPORT).mkdir()
        graph = linear(work / EXPORT)
        graph.write()
        mark_verified(graph)
    compiled = compile_engine(
        backend=RTX, graph=graph, profiles=(PROFILE,), targets=TARGETS, folder=work, progress=tell
    )
    tell(COMPILED)
    return Component(
        spec=graph.spec,
        backend=RTX,
        backend_version=backend_version(RTX),
        targets=TARGETS,
        files=tuple(describe_file(work, path) for path in compiled.files),
        key=store_process.KEY,
    )


def obtain(cache: Path, bundle: Path, tell: Callable[[str], None], console: Recorder | None = None) -> Component:
    bundle.mkdir(exist_ok=True)
    with open_store(cache, bundle, console or Recorder()) as store:
        return store.obtain(store_process.order(bundle, lambda work: make(work, tell)))[0]


KILLED_IN_EVERY_PHASE = """
import os, signal, sys
from pathlib import Path
from tests.engine.store.test_plans import obtain
from tests.support import store_process
def tell(phase):
    print(phase, flush=True)
    if phase == where:
        os.kill(os.getpid(), signal.SIGKILL)
for where in sys.argv[3:]:
    child = os.fork()
    if child == 0:
        obtain(Path(sys.argv[1]), Path(sys.argv[2]), tell)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    print("killed", flush=True)
"""


def test_a_compilation_killed_in_any_phase_is_taken_up_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    phases: list[str] = []
    build(linear(tmp_path), tmp_path / "whole.plan", *TARGETS, progress=phases.append)
    # Reading, compiling, and what the compiler itself calls its first and its last phase.
    inner = [phase for phase in phases if phase not in (READING, COMPILING)]
    assert inner
    places = ["exporting", READING, COMPILING, inner[0], inner[-1], COMPILED]
    command = [sys.executable, "-c", KILLED_IN_EVERY_PHASE, cache, tmp_path / "killed", *places]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    runs = [run.splitlines() for run in result.stdout.split("killed\n")][:-1]
    assert [run[-1] for run in runs] == places
    # The first was killed before its graph was there, the second exported it, and nobody has to after that.
    assert [run[0] for run in runs] == ["exporting", "exporting", *[READING] * (len(places) - 2)]
    (work,) = (path for path in cache.iterdir() if path.is_dir())
    assert work.suffix == ".work"
    told: list[str] = []
    component = obtain(cache, tmp_path / "bundle", told.append)
    assert told[0] == READING
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    assert {path.name for path in entry.iterdir()} == {"entry.json", f"{NAME}.plan"}
    assert component.files[0].bytes == (tmp_path / "whole.plan").stat().st_size
    # A whole one is not compiled again.
    assert obtain(cache, tmp_path / "other", pytest.fail) == component
    assert (tmp_path / "other" / f"{NAME}.plan").samefile(tmp_path / "bundle" / f"{NAME}.plan")


def test_a_compiler_killed_for_its_memory_costs_no_second_export(tmp_path: Path) -> None:
    def starve(phase: str) -> None:
        told.append(phase)
        if phase == COMPILING:
            (compiler,) = set(children()) - before
            os.kill(compiler, signal.SIGKILL)

    # This process may have children of tests before.
    before = set(children())
    cache, told, console = tmp_path / "cache", list[str](), Recorder()
    for first in ("exporting", READING, "exporting"):
        told.clear()
        with pytest.raises(FlowBlendingError, match="most likely because memory ran out"):
            obtain(cache, tmp_path / "bundle", starve, console)
        assert told[0] == first
    assert console.lines == [f"large: its verified graph is kept in {cache} for one more attempt"] * 2
    told.clear()
    obtain(cache, tmp_path / "bundle", told.append)
    assert told[0] == READING
