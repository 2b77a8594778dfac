"""An entry of the component cache: files in a folder, and ``entry.json``, which describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade
from flowblending.contracts.manifest import BundleFile, Component
from flowblending.system.checksum import ChecksumCache

FORMAT = upgrade.ENTRY.number
ENTRY = "entry.json"


class Entry(BaseModel):
    """``entry.json``: what was made, and for people who read the list, what from.

    Attributes:
        name: of what was made.
        made: a component, or another file of a bundle, as the bundle's manifest has it.
        family: ``wan`` or ``ltx``.
        source: the checkpoint, as it was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    made: Component | BundleFile
    family: str
    source: str

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """Its files beside ``entry.json``."""
        return files_of(self.made)


def files_of(made: Component | BundleFile) -> tuple[BundleFile, ...]:
    """The files of a component, or the one file."""
    return made.files if isinstance(made, Component) else (made,)


def read_entry(folder: Path) -> Entry | None:
    """What ``entry.json`` in ``folder`` says; None if it is not there, damaged, or a later version's."""
    try:
        content = upgrade.ENTRY.upgrade(json.loads((folder / ENTRY).read_bytes()), folder / ENTRY, "remove it")
        return Entry.model_validate_json(json.dumps(content))
    except (OSError, ValidationError, ValueError, FlowBlendingError):
        return None


def damaged_file(
    folder: Path,
    files: Sequence[BundleFile],
    checksums: ChecksumCache,
    progress: Callable[[int], None] | None = None,
) -> str | None:
    """What is wrong with the first of ``files`` that is not as it was written; None if all are."""
    for file in files:
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
