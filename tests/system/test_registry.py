"""Rows by name: the project's own, those registered, and those of installed packages."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.system.registry import Registry

GROUP = "flowblending.toys"


@dataclass(frozen=True)
class Toy:
    name: str


def toys() -> Registry[Toy]:
    return Registry("toy", GROUP, (Toy("ball"), Toy("kite")))


def install(folder: Path, module: str, target: str) -> None:
    """A package as pip leaves it: a module, and metadata with an entry point."""
    (folder / "toybox.py").write_text(module)
    info = folder / "toybox-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toybox\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {target}\n")


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toybox", raising=False)
    return tmp_path


def test_rows_are_found_by_name_in_order() -> None:
    table = toys()
    assert table.get("kite") == Toy("kite")
    table.register(Toy("top"))
    assert table.names() == ("ball", "kite", "top")
    assert table.built_in == ("ball", "kite")


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="The toy doll is unknown; choose one of ball, kite"):
        toys().get("doll")
    with pytest.raises(argparse.ArgumentTypeError, match="The toy doll is unknown"):
        toys().argument("doll")


def test_two_rows_of_one_name_are_refused() -> None:
    table, again = toys(), Toy("top")
    table.register(again)
    table.register(again)
    with pytest.raises(FlowBlendingError, match="Two packages register a toy named kite; rename or uninstall"):
        table.register(Toy("kite"))


def test_installed_packages_add_rows(importable: Path) -> None:
    install(
        importable,
        "from tests.system.test_registry import Toy\nTOYS = [Toy('drum'), Toy('doll')]\n",
        "toybox:TOYS",
    )
    assert toys().names() == ("ball", "kite", "drum", "doll")
    assert toys().argument("doll") == "doll"


def test_a_package_that_cannot_be_loaded_is_named(importable: Path) -> None:
    install(importable, "raise ValueError('no batteries')\n", "toybox:TOYS")
    with pytest.raises(FlowBlendingError, match=r"The toy mine of toybox:TOYS cannot be loaded \(ValueError: no batt"):
        toys().get("doll")
    assert toys().get("kite") == Toy("kite")


def test_names_of_the_projects_own_rows_look_for_no_packages() -> None:
    code = (
        "import sys\nfrom flowblending.runtime.program.solvers.registry import SOLVERS, METAVAR\n"
        "SOLVERS.get('euler')\nprint(METAVAR, *({'importlib.metadata', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "{unipc,dpm++,euler}\n"
