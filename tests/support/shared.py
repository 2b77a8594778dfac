"""A folder that all processes of one test run have in common, and what is made in it once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = "FLOWBLENDING_TEST_SHARED"
"""Names the folder to a process that takes part in another's run."""


def shared_folder(config: pytest.Config) -> Path:
    """The folder, made if it is not there."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined] # pytest's own plugin sets it
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes out of what is made once."""
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
