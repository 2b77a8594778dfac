"""Files and folders that appear under their names only when they are whole, whatever happens before."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowblending.system.output import cannot_write
from flowblending.system.temporary import NEW, set_aside, temporary_folder


@contextmanager
def whole_file(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """A file to make, which becomes ``target`` when the block ends well and is removed when it does not.

    A file of that name is replaced only then; a link is followed, as by everything that opens a file to write it.

    Args:
        target: in a folder that exists.
        durable: wait until the content is on the disk, so that no power cut leaves the name without it.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        # A rename would put a file in the place of a pipe or a device, as root even of /dev/null.
        raise OSError(errno.EEXIST, "it is no file", str(target))
    with temporary_folder(target) as folder:
        yield folder / NEW
        if durable:
            flush(folder / NEW)
        (folder / NEW).replace(target)
        if durable:
            _flush_names(target.parent)


@contextmanager
def whole_folder(target: Path, *, replace: bool = False, beside: Path | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when the block ends well and is removed when it does not.

    Args:
        target: whose parent exists. A link is followed.
        replace: whether it takes the place of a folder that is there; else only of an empty one.
        beside: the folder next to which the new one is filled, and whose leftovers are removed; None takes the
            target itself.

    Raises:
        OSError: it cannot be written, or something is in its place.
    """
    target = Path(os.path.realpath(target))
    with temporary_folder(beside or target) as folder:
        new = folder / NEW
        new.mkdir()
        yield new
        for parent, _, names in os.walk(new):
            for name in names:
                flush(Path(parent, name))
            _flush_names(Path(parent))
        if replace and target.exists():
            _exchange(new, target, folder)
        else:
            new.rename(target)
        _flush_names(target.parent)


def _exchange(new: Path, target: Path, temporary: Path) -> None:
    """Put a folder in another's place. There is no one call for it: `temporary.sweep` mends what a kill leaves."""
    old = set_aside(target, temporary)
    try:
        new.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise


def replace_file(target: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file in one go; see `whole_file`.

    Raises:
        OSError: it cannot be written. What was there before stays.
    """
    with whole_file(target, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that the user named, in one go. What was there before stays if that fails.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def flush(path: Path) -> None:
    """Wait until a file is on the disk.

    Raises:
        OSError: it cannot be written there, for want of space perhaps.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # What some file systems say that have no disk to wait for.
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; what they name is there already, and whole."""
    with contextlib.suppress(OSError):
        flush(folder)
