"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from flowblending import FlowBlendingError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, and rename it. What was there before stays if that fails.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    if path.is_dir():
        raise _cannot_write(path, "it is a folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Find out before a long run whether a file can be written afterwards.

    Raises:
        FlowBlendingError: the folder does not exist or is not writable, or ``path`` is a folder.
    """
    if path.is_dir():
        raise _cannot_write(path, "it is a folder")
    if not path.parent.is_dir():
        raise _cannot_write(path, f"{path.parent} is no folder")
    if not os.access(path.parent, os.W_OK):
        raise _cannot_write(path, f"{path.parent} is not writable")


def _cannot_write(path: Path, why: str) -> FlowBlendingError:
    return FlowBlendingError(f"Cannot write {path} ({why}); name a file in a folder that you can write to.")
