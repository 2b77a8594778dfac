"""What the documents show works: snippets run, commands are accepted, and print what stands there."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending.contracts.graph import WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.engine.bundle.bundle import Bundle
from tests.support import documents
from tests.support.documents import ROOT, Block, Command, blocks, commands

PROGRAMS = {
    "fb-build-engines": "flowblending.engine.cli",
    "fb-run": "flowblending.runtime.cli",
    "fb-calibrate": "flowblending.runtime.calibrate.cli",
    "fb-compare": "flowblending.runtime.compare.cli",
    "fb-export-triton": "flowblending.runtime.serve.triton.cli",
    "fb-client": "flowblending.runtime.serve.triton.client_cli",
    "fb-serve": "flowblending.runtime.serve.http.cli",
}
ALL = [(program, command) for program in PROGRAMS for command in commands(program)]
PYTHON = blocks("python")
GPU = re.compile(r"cuda|cupy")
ELSEWHERE = re.compile(rf"{GPU.pattern}|openai")
"""Blocks that need a GPU, or a server: those run in tests/runtime/serve."""


def ids(cases: list[tuple[str, Command]]) -> list[str]:
    return [f"{program} {command.block}" for program, command in cases]


def test_there_is_something_to_test() -> None:
    assert len(ALL) > 25
    assert len(PYTHON) > 6
    assert {program for program, _ in ALL} == set(PROGRAMS)
    assert any(command.output for _, command in ALL)


@pytest.mark.parametrize(("program", "command"), ALL, ids=ids(ALL))
def test_commands_are_accepted(program: str, command: Command) -> None:
    parser = importlib.import_module(PROGRAMS[program]).parser()
    parser.parse_args(command.words)


PLANS = [
    (program, command)
    for program, command in ALL
    if program == "fb-run" and command.words[0] in ("wan", "ltx") and "--decode" not in command.words
]
"""Runs of a real pair that sample. Its size and frames are not those of the small bundle that stands for it here."""


@pytest.mark.slow
@pytest.mark.parametrize(("program", "command"), PLANS, ids=ids(PLANS))
def test_runs_are_planned(
    program: str,
    command: Command,
    build: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = {"wan": "wan", "ltx": "ltx-condition"}[command.words[0]]
    stand_in(build(kind).folder, tmp_path / command.words[0])
    (tmp_path / "prompts.txt").write_text("A cat walks on the grass\n" * 2)
    (tmp_path / "noise.npy").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    words = [word for word in command.words if word != "--dry-run"]
    if "--size" in words:
        pytest.skip("a size of the real pair's")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(PROGRAMS[program]).main([*words, "--dry-run"])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    if "--json" in words:
        assert json.loads(shown.out)["plans"]
    else:
        assert "FLOPs" in shown.out


def stand_in(bundle: Path, folder: Path) -> None:
    """A small bundle under the name of a real pair, and with the architectures whose constants are published."""
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).symlink_to(path)
    if folder.name == "wan":
        manifest = json.loads((bundle / "manifest.json").read_text())
        for name, architecture in (("large", WAN_T2V_14B), ("small", WAN_T2V_1_3B)):
            manifest["components"][name]["architecture"] = architecture
        # The pages on models have a third one.
        draft = json.dumps(manifest["components"]["small"]).replace('"small', '"draft')
        manifest["components"]["draft"] = json.loads(draft)
        manifest["models"].append({"name": "draft", "letter": "D", "components": ["draft"]})
        for path in bundle.glob("small.*"):
            (folder / path.name.replace("small", "draft", 1)).symlink_to(path)
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest))


SHOWN = [(program, command) for program, command in ALL if command.output and "demo/bundle" in command.words]


def shape_of(lines: list[str]) -> list[str]:
    """Lines without what differs from machine to machine: numbers, and the width of columns."""
    text = [re.sub(r"\b[0-9a-f]{16}\b|[0-9]+(\.[0-9]+)?(e-?[0-9]+)?", "0", line) for line in lines]
    return [re.sub(r"\s+", " ", line).strip() for line in text]


@pytest.mark.long
def test_what_the_readme_shows_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    shown = [each for each in SHOWN if each[1].block.page == ROOT / "README.md"]
    assert len(shown) >= 3
    for program, command in shown:
        done = subprocess.run(
            [sys.executable, "-m", PROGRAMS[program], *command.words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stderr
        printed = shape_of((done.stdout + done.stderr).splitlines())
        missing = [line for line in shape_of(list(command.output)) if line not in printed and line != "..."]
        assert missing == [], "\n".join(printed)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("block", [each for each in PYTHON if not ELSEWHERE.search(each.text)], ids=str)
def test_python_runs(
    block: Block, build: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("wan").folder
    for name in ("wan", "BUNDLE"):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("snippet")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for their annotations
    names = vars(module)
    exec(compile(block.text, str(block), "exec"), names)
    if "load_data" in names:
        loaded = names["load_data"]
        assert callable(loaded)
        assert list(loaded())


@pytest.mark.slow
def test_python_is_right_by_its_types(tmp_path: Path) -> None:
    """What needs a GPU is checked by mypy alone; foreign libraries may be missing."""
    snippets = tmp_path / "snippets"  # pyproject.toml knows them: they are not strict
    snippets.mkdir()
    (snippets / "__init__.py").touch()
    for number, block in enumerate(PYTHON):
        (snippets / f"block_{number}.py").write_text(block.text)
    done = subprocess.run(
        # By the project's own settings, of which `make lint` has kept what is known of its files.
        [sys.executable, "-m", "mypy", snippets],
        capture_output=True,
        text=True,
        check=False,
        cwd=documents.ROOT,
    )
    assert done.returncode == 0, done.stdout


def test_links_lead_somewhere() -> None:
    broken = []
    for page in documents.PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
