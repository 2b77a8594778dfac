"""How much disk a build takes: said before it starts, and refused when it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError


@dataclass(frozen=True, kw_only=True)
class ComponentDisk:
    """One component, in the order in which they are built.

    Attributes:
        kept: bytes that stay in the bundle.
        beside: bytes that lie beside it while it is built, and are removed before the next one is.
    """

    kept: int
    beside: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that stay, and the most that there are at any moment of the build."""

    kept: int
    most: int


def need(steps: Sequence[ComponentDisk]) -> Need:
    """What a build needs in all."""
    kept = most = 0
    for step in steps:
        kept += step.kept
        most = max(most, kept + step.beside)
    return Need(kept=kept, most=most)


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def check_disk(needed: Need, folder: Path, out: Path, *, cache: bool = False) -> str:
    """A line about what is needed and what is there.

    Args:
        needed: by the build.
        folder: on the disk that will be written to.
        out: what the user calls the bundle.
        cache: whether ``folder`` is the component cache.

    Raises:
        FlowBlendingError: it is not there.
    """
    free = free_bytes(folder)
    if needed.most > free:
        where = f"in the cache {folder}" if cache else "there"
        advice = " (fb-build-engines --prune), or choose another --cache-dir" if cache else " or choose another --out"
        raise FlowBlendingError(
            f"Building {out} takes up to {_size(needed.most)} of disk, but {_size(free)} are free {where}; "
            f"free some space{advice}. Nothing was written."
        )
    passing = needed.most - needed.kept
    then = f", {_size(passing)} of it only meanwhile" if passing else ""
    where = " in the cache" if cache else ""
    return f"disk: up to {_size(needed.most)} are needed{where}{then}, {_size(free)} are free"


def check_download(count: int, folder: Path, sources: str) -> None:
    """Whether there is room for weights that are still to be fetched.

    Args:
        count: their bytes.
        folder: that they are fetched to; it need not be there yet.
        sources: what the user calls them.

    Raises:
        FlowBlendingError: there is not.
    """
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = free_bytes(there)
    if count > free:
        raise FlowBlendingError(
            f"The weights of {sources} are {_size(count)} more to fetch, but {_size(free)} are free in {folder}; "
            "free some space or set HF_HOME to a larger disk. Nothing was fetched."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
