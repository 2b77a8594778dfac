"""What a user names a checkpoint by: a folder, a file of weights, or ``ORG/NAME[/FOLDER or FILE][@REVISION]``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.hub import EXPECTED, Address, Repository, open_repository
from flowblending.export.checkpoint.weights_file import SUFFIXES, check_suffix

PIPELINE_WEIGHTS = ("text_encoder", "vae", "image_encoder")
"""Folders with the weights that a pipeline gives beside its transformer."""
WHOLE_WEIGHTS = ("transformer", "transformer_2", *PIPELINE_WEIGHTS)
TRANSFORMER_WEIGHTS = ("", "transformer", "transformer_2")
TRANSFORMER_HEADERS = (*TRANSFORMER_WEIGHTS, "vae")
"""Folders with weights; a transformer may be a repository or a folder of its own, which is the empty one.

Of a VAE that is not the bundle's nothing is needed but the statistics, which may be among its weights.
"""

_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<inside>\w[\w.-]*(?:/\w[\w.-]*)*)/?)?"
    r"(?:@(?P<revision>\w[\w./-]*))?"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint.

    Attributes:
        folder: with JSON files and, after `read_headers`, with files whose headers are those of the weights; or a file
            of weights.
        remote: the repository that weights are still to be fetched from; None where they are here.
    """

    folder: Path
    remote: Repository | None = None

    def read_headers(self, components: Sequence[str] | None = None) -> None:
        """Fetch the headers of weights that are still on the hub.

        Args:
            components: folders whose weights are needed; None for those that it was located for.
        """
        if self.remote is not None:
            self.remote.read_headers(components)

    @property
    def checksums(self) -> Mapping[Path, str]:
        """SHA-256 of the files that are still on the hub, by their paths in ``folder``."""
        return {} if self.remote is None else self.remote.checksums

    def left(self, components: Sequence[str]) -> int:
        """Bytes that `fetch` will fetch."""
        return 0 if self.remote is None else self.remote.left(components)

    def fetch(self, components: Sequence[str]) -> Path:
        """The folder, or the file, with the weights of its folders ``components``, fetched where they were not here."""
        return self.folder if self.remote is None else self.remote.fetch(components)


def locate(source: str, wanted: Sequence[str], scratch: Path) -> Source:
    """Find a checkpoint, and fetch its JSON files where it is on the hub.

    Args:
        source: what the user gave.
        wanted: folders whose weights are needed.
        scratch: an empty folder, for as long as the checkpoint is looked at.

    Raises:
        FlowBlendingError: it is neither here nor on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Source(folder=path)
    if path.exists():
        check_suffix(source)
        return Source(folder=path)
    match = _HUB_ID.fullmatch(source)
    if match is None:
        kind = "file" if source.endswith(SUFFIXES) else "folder"
        raise FlowBlendingError(f"There is no {kind} {source}; {EXPECTED}.")
    inside = match["inside"] or ""
    if not inside and source.endswith(SUFFIXES):
        # No repository has such a name.
        raise FlowBlendingError(
            f"There is no file {source}; give one that is there, or {EXPECTED.removeprefix('give ')}."
        )
    address = Address(name=source, repository=match["repository"], inside=inside, revision=match["revision"])
    found = open_repository(address, wanted, scratch)
    if isinstance(found, Path):
        return Source(folder=found)
    if inside in found.files:
        check_suffix(inside)
    elif inside and not any(name.startswith(f"{inside}/") for name in found.files):
        raise FlowBlendingError(
            f"{match['repository']} has no folder {inside}, and no file of that name; give ORG/NAME, or a folder or "
            "file that it has."
        )
    return Source(folder=found.folder / inside, remote=found)
