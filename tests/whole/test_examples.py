"""Every example runs on a bundle, as its README says; that of a server is run by the tests of Triton."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending.engine.bundle.bundle import Bundle

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*.sh")])


def test_the_readme_lists_every_example() -> None:
    listed = re.findall(r"\| \[(\S+)\]\(\1\) \|", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in SCRIPTS]


@pytest.mark.slow
@pytest.mark.parametrize("script", [each for each in SCRIPTS if "http" not in each.name], ids=lambda path: path.name)
def test_it_runs(script: Path, build: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = build("wan").folder
    programs = tmp_path / "bin"
    programs.mkdir()
    run = programs / "fb-run"
    run.write_text(f'#!/bin/sh\nexec {sys.executable} -m flowblending.runtime.cli "$@"\n')
    run.chmod(0o755)
    python = [sys.executable] if script.suffix == ".py" else ["sh"]
    prompt = [] if script.suffix == ".sh" else ["a red circle"]
    done = subprocess.run(
        [*python, str(script), str(bundle), *prompt, *([str(tmp_path / "a.mp4")] if "mp4" in script.name else [])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "mp4" in script.name:
        assert (tmp_path / "a.mp4").stat().st_size > 0
