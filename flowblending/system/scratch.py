"""Temporary folders of processes that may be killed: the next such process removes what they left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from flowblending.engine.bundle.bundle import alive

_PREFIX: Final = "flowblending-worker-"
"""The process's number and a random part follow."""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that goes with its block."""
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")


def sweep_scratch() -> None:
    """Remove the folders of processes on this machine that have ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdecimal() and not alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
