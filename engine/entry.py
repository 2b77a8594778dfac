"""An entry of the component cache: a component's files in a folder, and ``entry.json``, which describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flowblending.engine.checksum import ChecksumCache
from flowblending.engine.manifest import Component

FORMAT = 1
ENTRY = "entry.json"


class Entry(BaseModel):
    """``entry.json``: a component, and for people who read the list, what it was built from.

    Attributes:
        component: as a bundle's manifest has it.
        family: ``wan`` or ``ltx``.
        source: the checkpoint, as it was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    component: Component
    family: str
    source: str


def read_entry(folder: Path) -> Entry | None:
    """What ``entry.json`` in ``folder`` says; None if it is not there, damaged, or another version's."""
    try:
        entry = Entry.model_validate_json((folder / ENTRY).read_bytes())
    except (OSError, ValidationError):
        return None
    return entry if entry.format == FORMAT else None


def damaged_file(
    folder: Path, component: Component, checksums: ChecksumCache, progress: Callable[[int], None] | None = None
) -> str | None:
    """What is wrong with the first of a component's files that is not as it was written; None if all are."""
    for file in component.files:
        path = folder / file.path
        try:
            size = path.stat().st_size
            if size != file.bytes:
                return f"{file.path} has {size} bytes, not {file.bytes}"
            if checksums.sha256(path, progress=progress) != file.sha256:
                return f"{file.path} was altered"
        except OSError as error:
            return f"{file.path} cannot be read ({error.strerror})"
    return None
