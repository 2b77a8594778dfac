"""Every test that is written is run: pytest leaves out folders by their names, and says nothing."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from tests.support.documents import ROOT


def left_out(folders: list[Path], patterns: list[str]) -> list[Path]:
    """The folders that pytest does not look into; it reads a pattern without a slash as one of names."""
    return [folder for folder in folders if any(fnmatch.fnmatch(folder.name, pattern) for pattern in patterns)]


def test_no_folder_of_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    tests = ROOT / "tests"
    folders = [tests, *(path for path in tests.rglob("*") if path.is_dir() and list(path.glob("test_*.py")))]
    assert tests / "engine" / "build" in folders
    assert left_out(folders, pytestconfig.getini("norecursedirs")) == []
    assert left_out(folders, ["build", "dist"]) == [tests / "engine" / "build"]


def test_every_file_of_tests_has_the_name_of_one() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if "def test_" in path.read_text()]
    assert [path for path in files if not path.name.startswith("test_")] == []
