"""What goes to a replica and what comes back, beside `runtime.serve.http.messages`: nodes have no folder in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowblending.runtime.batch.messages import Failed
from flowblending.runtime.cluster.node import NodeBundle
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.serve.http.messages import Cancelled, Made, Told, Work
from flowblending.runtime.serve.uploads import Kept


@dataclass(frozen=True, kw_only=True)
class ReplicaSetting:
    """What a replica needs to know.

    Attributes:
        bundles: by the models' names.
        checked: ids of the nodes whose bundles have been compared with their checksums.
        device: ``cpu`` or ``cuda``.
        machine: how it uses a node.
    """

    bundles: Mapping[str, NodeBundle]
    checked: frozenset[str]
    device: str
    machine: MachineSettings


@dataclass(frozen=True, kw_only=True)
class RemoteWork:
    """A video to make elsewhere: `Work` with its files.

    Attributes:
        uploads: as `Kept.stored` tells them.
        files: what was uploaded, by names in the folder of them.
    """

    id: str
    model: str
    fields: Mapping[str, Any]
    uploads: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    watched: bool

    @classmethod
    def of(cls, work: Work) -> RemoteWork:
        """Work of this machine.

        Raises:
            OSError: a file cannot be read.
        """
        folders = {Path(file).parent for file in work.uploads.names}  # one, or none
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(
            id=work.id,
            model=work.model,
            fields=work.fields,
            uploads=work.uploads.stored(next(iter(folders), Path())),
            files=files,
            watched=work.watched,
        )

    def unpacked(self, folder: Path) -> Work:
        """The work in a folder of this machine.

        Raises:
            OSError: a file cannot be written.
        """
        uploaded = folder / "upload"
        for name, content in self.files.items():
            path = uploaded / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Work(
            id=self.id,
            model=self.model,
            fields=self.fields,
            video=folder / "video.mp4",
            thumbnail=folder / "thumbnail.png",
            uploads=Kept.of(self.uploads, uploaded),
            watched=self.watched,
        )


@dataclass(frozen=True, kw_only=True)
class RemoteMade:
    """A video and its thumbnail, which are whole."""

    made: Made
    video: bytes = field(repr=False)
    thumbnail: bytes = field(repr=False)


Remote = Told | RemoteMade | Failed | Cancelled
"""What a replica tells of a video; all but the first is the last."""
