"""Files that two folders hold: as two names of one file, as a clone that shares its blocks, or as a copy.

A clone (``FICLONE``: XFS, Btrfs, bcachefs) costs no space and is a file of its own. A second name costs none either,
but the onnx package opens no external data that has several (it takes them for an attack), and so neither does
Polygraphy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

FICLONE = 0x40049409
"""The request of linux/fs.h: _IOW(0x94, 9, int)."""


def link_or_copy(source: Path, target: Path) -> int:
    """A second name for a file, or a file of its own where there can be none; returns the bytes that were copied."""
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links, or a file of somebody else's.
        return clone_or_copy(source, target)
    return 0


def clone_or_copy(source: Path, target: Path) -> int:
    """A file of its own with the content of another; returns the bytes that were copied, none of a clone's."""
    if _clone(source, target):
        return 0
    shutil.copyfile(source, target)
    return target.stat().st_size


def can_clone(source: Path, target: Path) -> bool:
    """Whether files of one folder can be cloned into another: tried, as only the file systems know.

    Raises:
        OSError: a folder cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=source) as file, tempfile.TemporaryDirectory(dir=target) as folder:
        file.write(b"1")
        file.flush()
        return _clone(Path(file.name), Path(folder, "clone"))


def _clone(source: Path, target: Path) -> bool:
    """Clone a file if the file system can; nothing is left if it cannot."""
    try:
        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except FileExistsError:
        raise
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True
