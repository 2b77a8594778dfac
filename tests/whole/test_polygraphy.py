"""The documents' lines of Polygraphy, on a bundle that shares its files with the component cache."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.system.console import Console
from tests.support.documents import ROOT, Command, blocks, commands

LINES = commands("polygraphy")
ON_GPU = [command for command in LINES if any(word.endswith(".plan") for word in command.words)]
HERE = [command for command in LINES if command not in ON_GPU]


def test_there_is_something_to_run() -> None:
    assert [command.words[:2] for command in LINES].count(("inspect", "model")) >= 2
    assert len(HERE) >= 3
    assert len(ON_GPU) >= 2


@pytest.fixture(scope="module")
def cached(checkpoints: Callable[[str], Path], engine_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles ``A`` and ``B``, the second of which is taken from the cache, and ``kept.py``."""
    folder, pair = tmp_path_factory.mktemp("polygraphy"), checkpoints("wan")
    request = BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")),
        out=folder / "A",
        size="32x48",
        frames=9,
        precision=None,
        backend="onnxruntime",
        targets=(),
        cache=engine_cache,
    )
    build_bundle(request, Console(quiet=True))
    build_bundle(dataclasses.replace(request, out=folder / "B"), Console(quiet=True))
    (folder / "BUNDLE").symlink_to("A")
    (data_loader,) = [block for block in blocks("python") if "BUNDLE/large.golden.npz" in block.text]
    (folder / "kept.py").write_text(data_loader.text)
    return folder


def polygraphy(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    # Its program is beside this Python, and may not be on the path.
    program = Path(sys.executable).with_name("polygraphy")
    return subprocess.run(
        [program, *command.words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_every_line_runs_as_it_stands_there(cached: Path) -> None:
    """In the order of the page, as one line's files are the next one's."""
    pytest.importorskip("polygraphy")
    for command in HERE:
        done = polygraphy(command, cached)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        said = done.stdout
        assert "PASSED" in said or "Graph Input(s)" in said
        if "--load-outputs" in command.words:
            assert "Pass Rate: 100.00%" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_onnx_reads_every_graph_with_its_weights(cached: Path, name: str) -> None:
    bundle: Bundle = open_bundle(cached / name)
    bundle.verify(recompute=True)
    graphs = sorted(bundle.folder.glob("*.onnx"))
    assert {path.stem for path in graphs} == set(bundle.manifest.components)
    for path in graphs:
        weights = [each for each in onnx.load(path).graph.initializer if each.raw_data]
        assert weights, path


def test_lines_for_the_gpu_are_accepted() -> None:
    """Without one: Polygraphy's own parser takes them, and they stop at the plan that is not there."""
    pytest.importorskip("polygraphy")
    for command in ON_GPU:
        done = polygraphy(command, Path("/"))
        assert done.returncode == 1, command
        assert "usage:" not in done.stderr
