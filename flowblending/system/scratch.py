"""Temporary folders of processes that may be killed: the next such process removes what they left."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from flowblending.system.temporary import sweep, temporary_folder


def scratch() -> AbstractContextManager[Path]:
    """A temporary folder that goes with its block."""
    return temporary_folder(_target())


def sweep_scratch() -> None:
    """Remove the folders of processes that have ended without doing so."""
    sweep(_target())


def _target() -> Path:
    # Nothing of that name is ever there: it only tells these folders from others' outputs.
    return Path(tempfile.gettempdir()) / "flowblending-worker"
