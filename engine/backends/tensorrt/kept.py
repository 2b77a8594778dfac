"""What TensorRT and TensorRT-RTX find out once for a GPU: kernels compiled for it, and which of them are the fastest.

Each is kept in a file of the user's cache folder, written whole: it is read by every later process, and the worst that
can come of losing it, or of two processes writing it at once, is that the work is done again. The libraries themselves
refuse what was kept by another version, driver or GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Final

from flowblending.system.checksum import cache_folder
from flowblending.system.whole_file import whole_file

_FOLDER: Final = "tensorrt"
_NAME: Final = re.compile(r"[a-z]+-[\d.]+-sm\d+(-[0-9a-f]{16})?")
_SAMPLE: Final = 1 << 16


def kept_files() -> list[Path]:
    """Everything that is kept. Names say what, the version of the library, the GPU, and a digest of the plan."""
    folder = cache_folder()
    try:
        return [] if folder is None else [path for path in (folder / _FOLDER).iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


class Kept:
    """A file of the cache folder.

    Args:
        kind: what it holds.
        version: of the library.
        architecture: of the GPU (``sm89``).
        plan: a plan that it belongs to; None if it serves all.
    """

    def __init__(self, kind: str, version: str, architecture: str, plan: Path | None = None) -> None:
        folder = cache_folder()
        name = "-".join([kind, version, architecture, *([] if plan is None else [_fingerprint(plan)])])
        self.path: Final = None if folder is None else folder / _FOLDER / name
        self._read: bytes | None = None

    def read(self) -> bytes:
        """Its content; empty if there is none."""
        self._read = b""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self._read = self.path.read_bytes()
                os.utime(self.path)  # it is in use, for --prune
        return self._read

    def write(self, content: bytes) -> None:
        """Replace it, if it is another content; a disk that does not let us costs time and nothing else."""
        if self.path is None or not content or content == self._read:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path, durable=False) as temporary:
                temporary.write_bytes(content)
        self._read = content


def _fingerprint(plan: Path) -> str:
    """Tells plans apart without reading gigabytes: their sizes, beginnings and ends."""
    size = plan.stat().st_size
    with plan.open("rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
