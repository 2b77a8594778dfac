"""What messages call files and folders: what the user gave, and not where a cache keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def shown(path: Path) -> str:
    """A path as the user knows it: ``Org/Name/vae`` for what came from the hub.

    The cache of huggingface_hub keeps it as ``models--Org--Name/snapshots/COMMIT/vae``.
    """
    parts = path.parts
    for index, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[index + 1] == "snapshots":
            return "/".join((*part.removeprefix("models--").split("--"), *parts[index + 3 :]))
    return str(path)


def listed(names: Iterable[str]) -> str:
    """Three names and the number of the others."""
    every = list(names)
    text = ", ".join(every[:3])
    return f"{text} and {len(every) - 3} more" if len(every) > 3 else text
