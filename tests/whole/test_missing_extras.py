"""What every program says where an extra is not installed: one sentence, with a command that works."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.system.extras import MODULES, check_installed, install, missing_extra
from tests.support import without
from tests.support.documents import PAGES, ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SHAPES = ROOT / "benchmarks" / "shapes" / "checkpoints"
PAIR = ("--large", SHAPES / "large", "--small", SHAPES / "small")
BUILD = ("flowblending.engine.cli", *PAIR, "--size", "64x64", "--frames", "13")

PROMPTS = ("--prompts", "prompts.txt")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a program ended with."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1]
    told = re.findall(r"pip install '\.\[([\w,-]+)\]'", line)
    assert told, line
    assert {extra for extras in told for extra in extras.split(",")} <= set(EXTRAS)
    return line


def test_every_extra_has_its_modules_and_its_hint() -> None:
    assert set(MODULES) == set(EXTRAS) - {"dev"}
    for extra, names in MODULES.items():
        for name in names:
            told = missing_extra(ModuleNotFoundError(f"No module named {name!r}", name=f"{name}.part"))
            assert told is not None
            assert f"needs {name}," in told
            assert f"pip install '.[{extra}]'" in told
    assert install("cpu", "cuda") == "run pip install '.[cpu]' or pip install '.[cuda]' in a checkout of FlowBlending"
    assert missing_extra(ModuleNotFoundError("No module named 'numpy'", name="numpy")) is None
    assert missing_extra(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None


def test_all_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "build", ("json", "no_such_torch", "no_such_diffusers"))
    with pytest.raises(FlowBlendingError) as told:
        check_installed("Building", "build")
    assert str(told.value) == (
        "Building needs no_such_torch and no_such_diffusers, not installed here; "
        "run pip install '.[build]' in a checkout of FlowBlending."
    )


@pytest.mark.parametrize(
    ("hidden", "backend", "needs", "extras"),
    [
        (["torch", "diffusers", "transformers"], "onnxruntime", "torch, diffusers and transformers", "[build]"),
        (["diffusers"], "onnxruntime", "diffusers", "[build]"),
        (["onnxruntime"], "onnxruntime", "onnxruntime", "[cuda]"),
        (["torch", "onnxruntime"], "onnxruntime", "torch and onnxruntime", "[build,cpu]"),
        (["tensorrt"], "tensorrt", "TensorRT", "[tensorrt]"),
    ],
)
def test_a_build_is_refused_before_any_work(
    hidden: list[str], backend: str, needs: str, extras: str, tmp_path: Path
) -> None:
    options = ("--backend", backend, *(("--target", "sm89") if backend != "onnxruntime" else ()))
    line = sentence(without.run(hidden, *BUILD, *options, "--out", tmp_path / "bundle", "--no-cache"))
    assert needs in line
    assert extras in line
    assert list(tmp_path.iterdir()) == []


def test_a_client_without_its_library() -> None:
    done = without.run(
        ["tritonclient"], "flowblending.runtime.serve.triton.client_cli", "--model", "wan", "--prompt", "a cat"
    )
    assert "[client]" in sentence(done)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "module", "options", "extra"),
    [
        ("onnxruntime", "flowblending.runtime.cli", ("--prompt", "x", "--out", "x.npy", "--steps", 2), "[cpu]"),
        ("av", "flowblending.runtime.cli", ("--prompt", "x", "--out", "x.mp4", "--steps", 2), "[video]"),
        ("ray", "flowblending.runtime.cli", (*PROMPTS, "--ray", "local"), "[ray]"),
        ("onnxruntime", "flowblending.runtime.calibrate.cli", (*PROMPTS, "--no-plot"), "[cpu]"),
        ("matplotlib", "flowblending.runtime.calibrate.cli", PROMPTS, "[calibrate]"),
        ("onnxruntime", "flowblending.runtime.compare.cli", (*PROMPTS, "--out", "page"), "[cpu]"),
        ("av", "flowblending.runtime.compare.cli", (*PROMPTS, "--out", "page"), "[video]"),
    ],
)
def test_runs_without_an_extra(
    hidden: str, module: str, options: tuple[object, ...], extra: str, build: Callable[..., Bundle], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    here = {"x.npy", "x.mp4", "prompts.txt", "page"}
    given = [tmp_path / str(each) if each in here else each for each in options]
    assert extra in sentence(without.run([hidden], module, build("wan").folder, *given))
    # fb-compare begins its page before it opens an engine, and goes on there the next time.
    assert {path.name for path in tmp_path.iterdir()} - {"page"} == {"prompts.txt"}
    assert [path.name for path in tmp_path.glob("page/**/*") if path.is_file()] in ([], ["report.json"])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Dockerfile"], ids=lambda page: page.name)
def test_no_document_installs_a_package_of_that_name(page: Path) -> None:
    """Which is not ours on any index: whoever registers it would be installed."""
    assert not re.search(r"pip install [^`\n]*\bflowblending\b", page.read_text())


def test_no_message_names_a_package_that_is_not_published() -> None:
    for room in ("flowblending", "engine", "export", "runtime"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".py", ".sh", ".html"):
                assert "flowblending[" not in path.read_text(), path
