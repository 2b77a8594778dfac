"""Locks between processes: a file that one of them holds with flock, which the system takes back when it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _never() -> None:
    """Nobody wants to know."""


@contextmanager
def exclusive(path: Path, *, waiting: Callable[[], None] = _never) -> Iterator[None]:
    """Hold a lock file for a block, after whoever holds it has let go. It is made if need be, and left there.

    Args:
        path: of the lock file.
        waiting: called once if the lock is not free.

    Raises:
        OSError: the file cannot be made, or the file system knows no locks.
    """
    descriptor = _acquire(path, wait=False)
    if descriptor is None:
        waiting()
        descriptor = _acquire(path, wait=True)
    assert descriptor is not None  # it has waited
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock file for a block if nobody else does; tells whether."""
    descriptor = _acquire(path, wait=False)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def shared(path: Path) -> int:
    """A descriptor that keeps a file, which is there, in use until it is closed; see `in_use`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Somebody may be asking `in_use`, which takes no time.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def in_use(path: Path) -> bool:
    """Whether some process keeps a file in use, or holds it as a lock; not if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        # NFS locks nothing that was opened so, but here nobody can write, and build, anyway.
        descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None if it is not free and was not to be waited for."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Who held it may have removed the file: then this lock excludes nobody who comes later.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
