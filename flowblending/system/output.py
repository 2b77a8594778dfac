"""Names of outputs, looked at before the work that makes them: each can be written afterwards, or is refused.

What is decided from a name is decided from it alone; whether the disk takes it is tried, in a temporary folder beside
it: no list of rules knows what every file system makes of a name, a length, a permission or a quota.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

from flowblending import DiskError, FlowBlendingError, UsageError
from flowblending.system.temporary import NEW, temporary_folder

_LINKS = 40
"""As many links in a row as Linux follows."""

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


_OF_THE_NAME = {
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ELOOP,
}
"""What is wrong with one name alone; everything else, other files there meet as well."""


_READ_ONLY = "name one in a folder that you can write to"
_FULL = "free some space there, or give a name on another disk"
_REMEDIES = {
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EROFS: _READ_ONLY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""How an address such as ``https://host/file`` begins, whose two slashes are one in a `Path`."""


def check_file(path: Path, *, parents: bool = False) -> None:
    """Find out before a long run whether a file can be written afterwards; what is there now may be a file.

    Args:
        parents: whether folders on the way will be made; else they must be there.

    Raises:
        UsageError: the name stands for something that no file can replace.
        FlowBlendingError: the disk does not take it.
    """
    target = resolve(path)
    kind = _kind(target)
    if kind not in {None, "file"}:
        raise UsageError(f"{path} is a {kind}, but a file was expected; give another name.")
    made = parents and not path.is_symlink()  # nobody makes the folders to which a link leads
    if not made and not target.parent.is_dir():
        raise cannot_write(path, OSError(errno.ENOTDIR, f"{target.parent} is no folder"))
    _try(path, target)


def check_new_folder(path: Path) -> None:
    """The same of a folder that is to be made, or to be filled if it is empty.

    Raises:
        UsageError, FlowBlendingError: as `check_file`.
    """
    target = resolve(path)
    kind = _kind(target)
    if kind not in {None, "folder"}:
        raise UsageError(f"{path} is a {kind}, but the name of a new folder was expected; give another name.")
    if kind is not None and any(target.iterdir()):
        raise UsageError(f"{path} exists already and is not empty; give the name of a new folder.")
    _try(path, target)


def check_replaceable(path: Path) -> None:
    """The same of a folder that is there and is to be replaced whole.

    Raises:
        UsageError, FlowBlendingError: as `check_file`.
    """
    _try(path, resolve(path))


def check_folder(path: Path, *, beside: bool = False) -> None:
    """The same of a folder into which outputs are to be written, and which will be made if it is not there.

    Args:
        beside: whether they are made beside the folder and moved into it, so that it must be on the same disk.

    Raises:
        UsageError, FlowBlendingError: as `check_file`.
    """
    target = resolve(path)
    kind = _kind(target)
    if kind not in {None, "folder"}:
        raise UsageError(f"{path} is a {kind}, but a folder was expected; give another name.")
    if beside and _is_mount(target):
        raise cannot_write(path, "it is a mount point, and what goes into it is made beside it; name a folder in it")
    _try(path, target / "file")
    if beside:
        _try(path, target.with_name("file"))


def resolve(path: Path) -> Path:
    """Where a name leads: links are followed, also those that lead nowhere yet.

    Raises:
        UsageError: it is ``-``, no text, an address, begins with a ``~``, or leads to a process's open file.
        FlowBlendingError: it is too long, or leads in circles.
    """
    text = str(path)
    if text == "-":
        raise UsageError("- was given as an output, but no file goes to standard output; name a file or a folder.")
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise UsageError(f"The name {text!a} is no UTF-8 text; give another one.")
    if len(path.parts) > 1 and not os.path.lexists(path.parts[0]):
        _check_first(path)
    try:
        target = _end_of_links(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()
    except OSError as error:
        raise cannot_write(path, error) from None
    if target.parts[:2] == ("/", "proc"):
        raise UsageError(f"{path} is a process's open file, not a place for one; name a file or a folder.")
    return target


def _check_first(path: Path) -> None:
    """Refuse what means another place than the folder that it would make here."""
    if path.parts[0].startswith("~"):
        raise UsageError(
            f"{path} begins with {path.parts[0]}, which the shell left as it is; write the home folder's whole name."
        )
    if _ADDRESS.fullmatch(path.parts[0]):
        raise UsageError(
            f"{path} begins as an address does, but a file or a folder of this machine was expected; write it here, "
            "and send it there afterwards."
        )


def _end_of_links(path: Path) -> Path:
    target = path
    for _ in range(_LINKS):
        target = Path(os.path.realpath(target.parent), target.name) if target.name else Path(os.path.realpath(target))
        # What lies in /proc looks like a link to a file, and is an open one.
        if target.parts[:2] == ("/", "proc") or not target.is_symlink():
            return target
        target = target.parent / target.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def cannot_write(path: Path, why: OSError | str) -> FlowBlendingError:
    """The sentence for a file that cannot be written; a `DiskError` unless its name is what is wrong."""
    reason = why if isinstance(why, str) else why.strerror or str(why)
    kind = FlowBlendingError if isinstance(why, str) or why.errno in _OF_THE_NAME else DiskError
    remedy = "give another name" if isinstance(why, str) else _REMEDIES.get(why.errno or 0, "give another name")
    return kind(f"Cannot write {path} ({reason}); {remedy}.")


def _kind(target: Path) -> str | None:
    """What is there; None if there is nothing."""
    try:
        return _KINDS[stat.S_IFMT(target.stat().st_mode)]
    except OSError:
        return None  # `_try` finds the reason


def _try(path: Path, target: Path) -> None:
    """Make a file of that name, and the folders above it that are missing, in a temporary folder, and remove it."""
    if target in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"{path} is the folder that this runs in, which cannot be replaced; give another name.")
    try:
        if _is_mount(target):
            raise cannot_write(path, "it is a mount point, which nothing can replace")
        home = next(each for each in target.parents if os.path.lexists(each))
        if not home.is_dir():
            raise OSError(errno.ENOTDIR, f"{home} is no folder")
        with temporary_folder(home / target.relative_to(home).parts[0]) as folder:
            trial = folder / NEW / target.relative_to(home)
            trial.parent.mkdir(parents=True)
            trial.touch()
    except OSError as error:
        raise cannot_write(path, error) from None


def _is_mount(target: Path) -> bool:
    """Whether something is mounted there, a file too, as containers do; `Path.is_mount` sees no bind mounts."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return target.is_mount()
    # Blanks and the like are in octal (proc(5)).
    escaped = str(target).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    return any(line.split(" ")[4] == escaped for line in lines)
