"""What messages call files and folders: what the user gave, and not where a cache keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STAND_INS = "stand-ins-for-files"
"""A folder of folders, each of which stands for a file; the rest of its path is the file's own."""


def shown(path: Path) -> str:
    """A path as the user knows it: ``Org/Name/vae`` for what came from the hub.

    The cache of huggingface_hub keeps it as ``models--Org--Name/snapshots/COMMIT/vae``.
    """
    parts = path.parts
    if STAND_INS in parts:
        parts = ("/", *parts[parts.index(STAND_INS) + 1 :])
        path = Path(*parts)
    for index, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[index + 1] == "snapshots":
            return "/".join((*part.removeprefix("models--").split("--"), *parts[index + 3 :]))
    return str(path)


def listed(names: Iterable[str], most: int = 3) -> str:
    """Some names and the number of the others."""
    every = list(names)
    text = ", ".join(every[:most])
    return f"{text} and {len(every) - most} more" if len(every) > most else text
