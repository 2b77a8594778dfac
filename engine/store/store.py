"""The component cache: finished engines in one folder that all bundles share, and what interrupted builds left there.

What the folder holds for every key (DIGEST is a SHA-256 of the component's name and key):

    DIGEST/       an entry: a component's files and ``entry.json``. It appears whole, by a rename.
    DIGEST.work/  a component in work, or what a killed build left of it.
    DIGEST.lock   held by the process that looks for, makes or removes either; a process that dies holds nothing.

What took long to make and is no component, such as a calibration, may be an entry too.

Bundles share the files of entries by hard link, so that they cost their disk space once and a bundle stays a folder
of ordinary files; where links are impossible (another file system), files are copied. Weights beside an ONNX file are
cloned or copied (see `share`), except where `Store.apart` says that the disk has no room for that. The time stamp of
``entry.json`` is that of the last use, and its lock is held by the builds that have used it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from flowblending import FlowBlendingError
from flowblending.contracts.graph import EXTERNAL_DATA
from flowblending.contracts.manifest import BundleFile, Component
from flowblending.engine.store.entry import ENTRY, Entry, damaged_file, files_of, read_entry
from flowblending.engine.store.unfinished import clear, remove
from flowblending.system.checksum import ChecksumCache
from flowblending.system.console import Console
from flowblending.system.lock import exclusive, shared
from flowblending.system.share import clone_or_copy, link_or_copy
from flowblending.system.whole_file import flush

# numpy writes weights with C's fwrite, and of a short write it knows no more than that it was short.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, None)

Made = TypeVar("Made", Component, BundleFile)


@dataclass(frozen=True, kw_only=True)
class Order(Generic[Made]):
    """Something to be had: a component, or another file of a bundle.

    Attributes:
        kind: which of the two.
        name: of it.
        key: everything that determines it.
        family: as in `Entry`.
        source: as in `Entry`.
        into: the folder of the bundle that it is for.
        make: builds it in the folder given, where ``unfinished.EXPORT`` may hold the graph of an earlier attempt.
    """

    kind: type[Made]
    name: str
    key: Mapping[str, str]
    family: str
    source: str
    into: Path
    make: Callable[[Path], Made]

    @property
    def digest(self) -> str:
        """The name of its entry."""
        described = json.dumps([self.name, dict(self.key)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()


@contextmanager
def open_store(folder: Path | None, within: Path, console: Console) -> Iterator[Store]:
    """The store of one build; what it uses stays in use until the block ends.

    Args:
        folder: the cache; None for none.
        within: without a cache, components are made in here, and nothing is left of that.
        console: told what is found and what is waited for.
    """
    store = Store(folder or within / ".work", lasting=folder is not None, console=console)
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        yield store
        if store.copied:
            console.log(
                f"{store.copied / 1e6:.1f} MB were copied, because the bundle cannot share the files of the cache "
                f"{store.folder} by hard link; a --cache-dir on the bundle's file system needs no copy"
            )
    finally:
        store.close()


class Store:
    """Hands out components: from the cache, or made in it.

    Args:
        folder: exists.
        lasting: whether it is a cache; else every component is moved out of it.
        console: as for `open_store`.
    """

    def __init__(self, folder: Path, *, lasting: bool, console: Console) -> None:
        self.folder = folder
        self.copied = 0
        """Bytes that could not be linked into the bundle."""
        self.apart = True
        """Whether a bundle gets weights beside ONNX files as files of its own, or as second names of the cache's."""
        self.lasting = lasting
        self._console = console
        self._checksums = ChecksumCache()
        self._used: list[int] = []

    def obtain(self, order: Order[Made]) -> tuple[Made, bool]:
        """Put the files of a component into a bundle, and make them first if no whole ones are there.

        Who asks for a component that another process is making waits for it and shares it.

        Returns:
            What was ordered, and whether it was there.

        Raises:
            FlowBlendingError: the cache cannot be written; and what ``order.make`` raises.
            OSError: the bundle cannot be written.
        """
        entry = self.folder / order.digest

        def waiting() -> None:
            self._console.log(f"{order.name}: another process is working on it; waiting for that")

        with self._named(), contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(entry.with_suffix(".lock"), waiting=waiting))
            made = self._find(entry, order)
            found = made is not None
            if made is None:
                made = self._make(entry, order)
            if self.lasting:
                self._used.append(shared(entry / ENTRY))
                with contextlib.suppress(OSError):
                    os.utime(entry / ENTRY)
            held = stack.pop_all()
        with held:
            self._deliver(entry, made, order.into)
        return made, found

    def holds(self, name: str, key: Mapping[str, str]) -> bool:
        """Whether there is a component whose key has at least these parts; whether it is whole is not looked at."""
        entries = (read_entry(folder) for folder in self.folder.iterdir())
        made = (entry.made for entry in entries if entry is not None and entry.name == name)
        return any(isinstance(each, Component) and key.items() <= each.key.items() for each in made)

    def has(self, order: Order[Made]) -> bool:
        """Whether there is an entry of this very order; whether it is whole is not looked at."""
        return (self.folder / order.digest / ENTRY).is_file()

    def close(self) -> None:
        """Let go of what was used."""
        while self._used:
            os.close(self._used.pop())
        if not self.lasting:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _find(self, entry: Path, order: Order[Made]) -> Made | None:
        """What a whole entry holds; one that is damaged is removed."""
        if not entry.is_dir():
            return None
        found = read_entry(entry)
        if found is None or not isinstance(found.made, order.kind):
            damage: str | None = f"its {ENTRY} cannot be read"
        else:
            damage = damaged_file(entry, found.files, self._checksums)
            if damage is None:
                _tidy(entry, found.files)
                return found.made
        self._console.warn(f"{order.name} is in the cache, but damaged ({damage}); it is built anew.")
        remove(entry)
        return None

    def _make(self, entry: Path, order: Order[Made]) -> Made:
        """Make a component; what goes wrong leaves no more than a verified graph, and that to one more attempt."""
        work = entry.with_suffix(".work")
        resumed = clear(work, order.name)
        work.mkdir(exist_ok=True)
        try:
            made = order.make(work)
            self._publish(entry, order, made)
        except Exception:
            # Often memory or a disk ran out. If it happens again, the graph itself may be what is wrong.
            if resumed:
                remove(work)
            elif clear(work, order.name) and self.lasting:
                self._console.log(f"{order.name}: its verified graph is kept in {self.folder} for one more attempt")
            raise
        except BaseException:
            clear(work, order.name)
            raise
        return made

    def _publish(self, entry: Path, order: Order[Made], made: Made) -> None:
        """Turn the folder of a component in work into an entry."""
        work = entry.with_suffix(".work")
        files: Sequence[BundleFile] = files_of(made)
        described = Entry(name=order.name, made=made, family=order.family, source=order.source)
        (work / ENTRY).write_text(described.model_dump_json(indent=2) + "\n")
        if self.lasting:
            # Before the checksums are remembered: after a power cut, a file may have its size without its content.
            for name in [ENTRY, *(file.path for file in files)]:
                flush(work / name)
            flush(work)
        # Whoever is killed before this still finds the graph there, and after it the entry.
        work.rename(entry)
        _tidy(entry, files)
        if self.lasting:
            flush(self.folder)
            for file in files:
                self._checksums.remember(entry / file.path, file.sha256)

    def _deliver(self, entry: Path, made: Component | BundleFile, into: Path) -> None:
        for file in files_of(made):
            source, target = entry / file.path, into / file.path
            if not self.lasting:
                source.rename(target)
            elif isinstance(made, Component):
                self._share(source, target)
            else:
                # Small, and for people, who may edit the bundle's.
                shutil.copyfile(source, target)
        if not self.lasting:
            remove(entry)

    def _share(self, source: Path, target: Path) -> None:
        if not (self.apart and source.name.endswith(EXTERNAL_DATA)):
            self.copied += link_or_copy(source, target)
        elif source.stat().st_dev == target.parent.stat().st_dev:
            clone_or_copy(source, target)
        else:
            self.copied += clone_or_copy(source, target)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the cache's disk as sentences that name it; without a cache it is the bundle's disk."""
        try:
            yield
        except OSError as error:
            if not self.lasting:
                raise
            if error.errno in DISK_FULL:
                raise FlowBlendingError(
                    f"The disk of the cache {self.folder} is full; free some space there (fb-build-engines --prune), "
                    "or choose another --cache-dir, or --no-cache. What was finished is kept."
                ) from None
            raise FlowBlendingError(
                f"Cannot work in the cache {self.folder} ({error}); choose another --cache-dir, or --no-cache."
            ) from None


def _tidy(entry: Path, files: Sequence[BundleFile]) -> None:
    """Remove from an entry what a build needed that made it, the exported graph."""
    expected = {ENTRY, *(file.path for file in files)}
    for path in entry.iterdir():
        if path.name not in expected:
            remove(path)


def take_over(files: Sequence[BundleFile], source: Path, target: Path) -> None:
    """Put files of one folder into another."""
    for file in files:
        link_or_copy(source / file.path, target / file.path)
