"""What a process that was killed leaves of an output."""

from __future__ import annotations

import shutil
from pathlib import Path

from flowblending.system.temporary import temporary_folder


def left_behind(output: Path) -> Path:
    """A temporary folder of an output that nobody holds."""
    with temporary_folder(output) as folder:
        return let_go(folder)


def let_go(folder: Path) -> Path:
    """A copy of a temporary folder, as of a process that was killed: nobody holds its lock."""
    left = folder.with_name(f"{folder.name.removesuffix('.part')[:-8]}00000000.part")
    shutil.copytree(folder, left)
    return left
