"""Where an output lies while it is made, and what a killed process leaves of it.

A temporary folder lies beside the output, on its file system, under a name of fixed length:
``.flowblending-TARGET-RANDOM.part``, TARGET being a digest of the output's name. While its process lives, it holds a
lock in the folder (flock), which the system takes back when the process ends, however it ends. So whoever makes the
same output again can tell what was left behind from what is being written: a process's number would not do, which
means another process in every container, and on every machine that shares a disk.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = re.compile(r"\.flowblending-[0-9a-f]{8}-[0-9a-f]{8}\.part")
"""The names of temporary folders."""

NEW: Final = "new"
"""In a temporary folder: what is being made."""

OLD: Final = "old"
"""In a temporary folder: what it replaces, between two renames."""

_OWNER: Final = "owner"
"""In a temporary folder: where `OLD` belongs, from the folder in which the temporary one lies."""

_OWN: Final[dict[Path, int]] = {}
"""Temporary folders that are to be removed, and the process that made them."""

_LOCK: Final = "lock"
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without locks answer; nobody can tell what was left there, and nothing is swept."""


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """A folder for what becomes ``output``; it is removed with all that is in it when the block ends.

    What killed processes left of the same output is removed first.

    Args:
        output: in a folder that exists. A link is followed, so that both lie on the disk that the user means.

    Raises:
        OSError: the folder cannot be made.
    """
    sweep(output)
    home, prefix = _place(output)
    folder, lock = home / _name(prefix), None
    _OWN[folder] = os.getpid()
    try:
        # Within the block, so that a signal at any moment finds what it has to remove.
        while True:
            try:
                lock = _make(folder)
                break
            except (FileExistsError, _SweptError):
                del _OWN[folder]
                folder = home / _name(prefix)  # never the same again: its sweeper may not be through with it
                _OWN[folder] = os.getpid()
        yield folder
    finally:
        _remove(folder)
        _OWN.pop(folder, None)
        if lock is not None:
            os.close(lock)


@atexit.register
def _remove_own() -> None:
    """Remove what is left when the process ends: a signal may come before a block is entered that was to remove it.

    That is between a generator's ``yield`` and the ``with`` which would leave it again, where a thread that goes on may
    keep the generator from being closed.
    """
    for folder, process in list(_OWN.items()):
        if process == os.getpid():  # a forked process has the others' names, too
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, also if the first signal that ends the program comes in the middle of it."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def set_aside(target: Path, folder: Path) -> Path:
    """Move what is at ``target`` into a temporary folder; if the process dies now, `sweep` puts it back."""
    (folder / _OWNER).write_bytes(os.fsencode(os.path.relpath(target, folder.parent)))
    return target.rename(folder / OLD)


def sweep(output: Path) -> None:
    """Remove what killed processes left of an output, and put back what one of them had set aside."""
    sweep_folder(*_place(output))


def sweep_folder(folder: Path, prefix: str = "") -> None:
    """`sweep` the outputs of a folder: those that are there, too, which nobody makes again.

    Args:
        prefix: of the temporary folders' names.
    """
    try:
        found = [path for path in folder.iterdir() if path.name.startswith(prefix) and NAME.fullmatch(path.name)]
    except OSError:
        return
    for each in found:
        # Whose lock cannot be tried, another user's for one, is left alone.
        with contextlib.suppress(OSError):
            _sweep(each)


def _sweep(folder: Path) -> None:
    lock = _open(folder)
    try:
        if not _acquired(lock):
            return
        if (folder / OLD).exists():
            target = folder.parent / os.fsdecode((folder / _OWNER).read_bytes())
            if not target.exists():
                (folder / OLD).rename(target)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _place(output: Path) -> tuple[Path, str]:
    """The folder for an output's temporary ones, and what their names begin with."""
    target = Path(os.path.realpath(output))
    return target.parent, f".flowblending-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def _name(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(4)}.part"


class _SweptError(Exception):
    """Another process took a folder that had no lock yet for a dead one's."""


def _make(folder: Path) -> int | None:
    """Make a folder and return the lock that is held in it; None on a file system that knows no locks.

    Raises:
        FileExistsError: somebody else's is there.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700)
    try:
        lock = _open(folder)
    except FileNotFoundError:
        raise _SweptError from None
    try:
        if _acquired(lock) and os.fstat(lock).st_nlink:
            return lock
    except OSError as error:
        os.close(lock)
        if error.errno in _NO_LOCKS:
            return None
        raise
    os.close(lock)
    raise _SweptError


def _open(folder: Path) -> int:
    # For writing, as NFS wants it of an exclusive lock. Temporary folders lie in /tmp too, where links may be traps.
    return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _acquired(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
