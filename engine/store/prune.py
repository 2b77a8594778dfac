"""``fb-build-engines --list-cache`` and ``--prune``: what lies in the component cache, and removing some of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Component
from flowblending.engine.store.entry import ENTRY, Entry, damaged_file, read_entry
from flowblending.engine.store.unfinished import EXPORT, remove
from flowblending.system.checksum import ChecksumCache
from flowblending.system.console import Console
from flowblending.system.lock import exclusive_if_free, in_use

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOURS = {"h": 1, "d": 24}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
_HEADINGS = ("component", "of", "precision", "target", "back end", "size", "last used", "state")
_KEYS = ("component", "source", "precision", "target", "backend", "size", "last_used", "state")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to remove: of what was last used at least ``seconds`` ago, the oldest, until at most ``bytes`` are left."""

    seconds: float = -math.inf
    bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """An entry of the cache, what an interrupted build left there, or a file that a library keeps.

    Attributes:
        folder: of it, or the file.
        finished: whether it is an entry.
        entry: what the entry says of itself; None if it is none, or unreadable.
        bytes: of its files.
        alone: of those, the bytes of files that no bundle shares.
        used: seconds since the epoch at which it was last used or written.
    """

    folder: Path
    finished: bool
    entry: Entry | None
    bytes: int
    alone: int
    used: float

    @property
    def lock(self) -> Path:
        """The lock file of its key."""
        return self.folder.with_suffix(".lock")


def parse_rule(text: str) -> Rule:
    """``30d``, ``12h``, ``50GB`` or ``all``.

    Raises:
        UsageError: it is none of these.
    """
    if text.strip().lower() == "all":
        return Rule()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if unit.lower() in _HOURS:
        return Rule(seconds=number * _HOURS[unit.lower()] * 3600)
    if unit.upper() in _BYTES:
        return Rule(bytes=number * _BYTES[unit.upper()])
    raise UsageError(
        f"--prune {text!r} was given, but an age (30d, 12h), a size to leave (500MB, 50GB) or all was expected."
    )


def show_list(folder: Path, console: Console, kept: Sequence[Path] = ()) -> None:
    """Tell what is there; every entry is checked, and nothing in the folder is changed.

    What was checked before and is untouched since is not read again.

    Args:
        kept: files that back ends keep beside the cache.

    Raises:
        FlowBlendingError: the folder cannot be read.
    """
    items = _items(folder, kept)
    checksums = ChecksumCache()
    with console.progress("checking", total=sum(item.bytes for item in items), unit="B") as advance:
        rows = [_row(item, checksums, advance) for item in items]
    total, alone = sum(item.bytes for item in items), sum(item.alone for item in items)
    if items:
        console.result(f"The cache {folder}")
        console.result(f"{_size(total)}, of which {_size(alone)} share no disk space with a bundle")
        console.table("", _HEADINGS, rows)
    else:
        console.result(f"The cache {folder} is empty.")
    entries = [
        {**dict(zip(_KEYS, row, strict=True)), "bytes": item.bytes, "folder": item.folder}
        for item, row in zip(items, rows, strict=True)
    ]
    console.document("fb-build-engines", {"cache": folder, "bytes": total, "alone_bytes": alone, "entries": entries})


def prune(folder: Path, rule: Rule, console: Console, kept: Sequence[Path] = ()) -> None:
    """Remove what a rule names, except for what a running build uses, and say what that has freed.

    Args:
        kept: files that back ends keep beside the cache, which can go at any time.

    Raises:
        FlowBlendingError: something cannot be removed.
    """
    items = _items(folder, kept)
    left = sum(item.bytes for item in items)
    removed: list[Item] = []
    in_work = 0
    for item in reversed(items):
        if time.time() - item.used < rule.seconds or (rule.bytes is not None and left <= rule.bytes):
            break
        if not _remove(item):
            in_work += 1
            continue
        removed.append(item)
        left -= item.bytes
    _remove_idle_locks(folder)
    total, freed = sum(item.bytes for item in removed), sum(item.alone for item in removed)
    shared = f"; bundles still hold the other {_size(total - freed)} (hard links)" if freed < total else ""
    what = "entry" if len(removed) == 1 else "entries"
    console.result(f"Removed {len(removed)} {what} of {_size(total)} from {folder}: {_size(freed)} were freed{shared}.")
    if in_work:
        console.result(f"A running build uses {in_work} more, which were left alone.")
    console.result(f"{_size(left)} are left in the cache.")
    removed_items = [item.folder for item in removed]
    console.document(
        "fb-build-engines",
        {"cache": folder, "removed": removed_items, "removed_bytes": total, "freed_bytes": freed, "left_bytes": left},
    )


def _items(folder: Path, kept: Sequence[Path]) -> list[Item]:
    """What is in the cache, the last used first. Nothing is said of files that are not the cache's own."""
    items = []
    for path in kept:
        with suppress(FileNotFoundError):
            size, used = path.stat().st_size, path.stat().st_mtime
            items.append(Item(folder=path, finished=True, entry=None, bytes=size, alone=size, used=used))
    try:
        for path in folder.iterdir():
            if _is_item(path):
                # A build may just have finished it, under another name, or a --prune removed it.
                with suppress(FileNotFoundError):
                    items.append(_item(path, finished=path.suffix != ".work"))
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise FlowBlendingError(f"{folder} is no folder; give --cache-dir the folder of a cache.") from None
    except OSError as error:
        raise FlowBlendingError(f"Cannot read the cache {folder} ({error.strerror}); check its permissions.") from None
    return sorted(items, key=lambda item: item.used, reverse=True)


def _is_item(path: Path) -> bool:
    """Whether a folder is the cache's: other programs name theirs by checksums too, Docker its containers'."""
    name = path.stem if path.suffix == ".work" else path.name
    known = path.with_name(f"{name}.lock").exists() or (path / ENTRY).exists()
    return _DIGEST.fullmatch(name) is not None and path.is_dir() and known


def _item(folder: Path, *, finished: bool) -> Item:
    states = {}
    for path in folder.rglob("*"):
        # A build may be at work in there.
        with suppress(FileNotFoundError):
            if path.is_file():
                states[path] = path.stat()
    if folder / ENTRY in states:
        used = states[folder / ENTRY].st_mtime
    else:
        used = max(state.st_mtime for state in [folder.stat(), *states.values()])
    return Item(
        folder=folder,
        finished=finished,
        entry=read_entry(folder) if finished else None,
        bytes=sum(state.st_size for state in states.values()),
        alone=sum(state.st_size for state in states.values() if state.st_nlink == 1),
        used=used,
    )


def _row(item: Item, checksums: ChecksumCache, advance: Callable[[int], None]) -> tuple[str, ...]:
    last = (_size(item.bytes), _age(time.time() - item.used), _state(item, checksums, advance))
    if item.folder.is_file():
        kind, version, target = item.folder.name.split("-")[:3]
        return (kind, "", "", target, version, *last)
    if item.entry is None:
        exported = (path.stem for path in item.folder.glob(f"{EXPORT}/*.onnx"))
        return (next(exported, item.folder.name[:12]), "?", "?", "?", "?", *last)
    made = item.entry.made
    # Of a path what tells most; a hub id has two parts anyway.
    source = "/".join(Path(item.entry.source).parts[-2:])
    of = f"{item.entry.family} {source}"
    if not isinstance(made, Component):
        return (item.entry.name, of, "", "", "", *last)
    targets = " ".join(made.targets) or "any"
    return (item.entry.name, of, str(made.spec.precision), targets, f"{made.backend} {made.backend_version}", *last)


def _state(item: Item, checksums: ChecksumCache, advance: Callable[[int], None]) -> str:
    if item.folder.is_file():
        return "kept"
    if in_use(item.lock) or in_use(item.folder / ENTRY):
        return "in use"
    if not item.finished:
        return "interrupted"
    if item.entry is None:
        return "unreadable"
    return "damaged" if damaged_file(item.folder, item.entry.files, checksums, advance) else "whole"


def _remove(item: Item) -> bool:
    """Remove an item unless it is in use; tells whether."""
    if item.folder.is_file():
        try:
            item.folder.unlink(missing_ok=True)
        except OSError as error:
            raise FlowBlendingError(f"Cannot remove {item.folder} ({error.strerror}); check its permissions.") from None
        return True
    with _unused(item) as free:
        if free:
            try:
                if item.finished:
                    # So that what is left if this is interrupted is no entry. Another --prune may have been faster.
                    remove(item.folder.with_suffix(".work"))
                    with suppress(FileNotFoundError):
                        item.folder.rename(item.folder.with_suffix(".work"))
                remove(item.folder.with_suffix(".work"))
            except OSError as error:
                raise FlowBlendingError(
                    f"Cannot remove {item.folder} ({error.strerror}); check its permissions."
                ) from None
        return free


@contextmanager
def _unused(item: Item) -> Iterator[bool]:
    """Keeps builds from an item for a block, if none works on it or has used it for what it is making."""
    with ExitStack() as stack:
        try:
            free = stack.enter_context(exclusive_if_free(item.lock)) and not in_use(item.folder / ENTRY)
        except OSError as error:
            raise FlowBlendingError(f"Cannot lock {item.lock} ({error.strerror}); check its permissions.") from None
        yield free


def _remove_idle_locks(folder: Path) -> None:
    """Remove lock files of keys that have nothing in the cache any more."""
    for path in folder.glob("*.lock"):
        if not _DIGEST.fullmatch(path.stem) or path.with_suffix("").exists() or path.with_suffix(".work").exists():
            continue
        with exclusive_if_free(path) as free:
            if free:
                path.unlink(missing_ok=True)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _age(seconds: float) -> str:
    steps: Sequence[tuple[str, float]] = (("d", 86400), ("h", 3600), ("min", 60))
    for unit, length in steps:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "now"
