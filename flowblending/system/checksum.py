"""SHA-256 of large files, computed once: a file unchanged since it was last verified is not read again.

Hashing a 30 GB plan takes longer than generating a video from it. What was verified is remembered by
path, size, modification time and inode in the user's cache folder, so a second start costs nothing,
while a file that was touched in any way is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from flowblending.system.whole_file import replace_file

CHUNK = 1 << 22


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks; ``progress`` is told the bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Where things that can be computed again are kept, ``$XDG_CACHE_HOME/flowblending``; None for a homeless user."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowblending"
    except RuntimeError:
        return None


class ChecksumCache:
    """Remembers checksums between processes. Losing it, or never being able to write it, only costs time."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or cache_folder()
        self._path = None if folder is None else folder / "checksums.json"
        self._known = self._read()

    def sha256(self, path: Path, *, recompute: bool = False, progress: Callable[[int], None] | None = None) -> str:
        """The checksum of a file; ``recompute`` reads it even when it looks unchanged."""
        name, key = _names(path)
        if recompute or key not in self._known:
            self._add(name, key, sha256(path, progress))
        return self._known[key]

    def remember(self, path: Path, digest: str) -> None:
        """Take note of a checksum that was computed elsewhere, of the file as it is now."""
        self._add(*_names(path), digest)

    def _add(self, name: str, key: str, digest: str) -> None:
        # Another process may have added its own meanwhile; what the file was before is of no more use.
        known = {old: found for old, found in self._read().items() if not old.startswith(name)} | {key: digest}
        self._known |= known
        self._save(known)

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _save(self, known: dict[str, str]) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(known).encode(), durable=False)


def _names(path: Path) -> tuple[str, str]:
    """What all remembered states of a file begin with, and the name of its present state."""
    status = path.stat()
    name = f"{path.resolve()}|"
    return name, f"{name}{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
