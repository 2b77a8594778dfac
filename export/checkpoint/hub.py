"""A repository of the hub: what it lists, its JSON files, headers of its weights by ranged requests, and its weights.

Everything that can be told from JSON files and headers is told before weights are fetched. Until then a file of weights
has a stand-in: a sparse file of its size with its header, which every reader of headers takes as it is.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.gguf_file import HEADER_BYTES
from flowblending.export.checkpoint.gguf_file import SUFFIX as GGUF
from flowblending.export.checkpoint.model_files import (
    AUTHORS_STATISTICS,
    STATISTICS,
    WEIGHT_SUFFIXES,
    weight_map,
    weights_listing,
)

COMPONENTS = (
    "transformer",
    "transformer_2",
    "text_encoder",
    "vae",
    "scheduler",
    "image_encoder",
    "image_processor",
)
TOKENIZER = "tokenizer"
EXPECTED = "give a folder with model_index.json as diffusers' save_pretrained writes it, or a hub id"

Answer = TypeVar("Answer")

_FIRST_READ = 100_000
"""Bytes that hold most headers, so that one request is enough."""

_LONGEST_HEADER = 100_000_000
"""That of the safetensors format."""

_READERS = 8


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and its SHA-256, which the hub knows of large ones."""

    size: int
    checksum: str | None


@dataclass(frozen=True, kw_only=True)
class Address:
    """A folder on the hub.

    Attributes:
        name: what the user gave.
        repository: ``Org/Name``.
        inside: the folder in it that was asked for, or the file of weights; empty for its root.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    name: str
    repository: str
    inside: str = ""
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at a commit.

    Attributes:
        address: what was asked for.
        commit: what everything is read at.
        files: by path.
        folder: stands for the repository: links to the files that are here, and stand-ins for the others.
        wanted: folders in ``inside`` whose headers are needed; the empty one is ``inside`` itself, if that has weights
            and no transformer's folder.
        checksums: of stand-ins, by path.
    """

    address: Address
    commit: str
    files: Mapping[str, RemoteFile]
    folder: Path
    wanted: Sequence[str]
    checksums: dict[Path, str] = field(default_factory=dict)

    def read_headers(self, components: Sequence[str] | None = None) -> None:
        """Put stand-ins in the places of the weights that are not here yet.

        Args:
            components: in place of ``wanted``.

        Raises:
            FlowBlendingError: the hub does not give them, or a file is none of safetensors.
        """
        wanted = self.wanted if components is None else components
        missing = [name for name in self._weights(wanted) if not (self.folder / name).is_symlink()]
        known = {name: checksum for name in missing if (checksum := self.files[name].checksum) is not None}
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(self._stand_in, known):
                pass
        self.checksums.update({self.folder / name: checksum for name, checksum in known.items()})
        small = [name for name in missing if name not in known]
        if small:
            _link(self.folder, _download(self.address, self.commit, small), small)

    def left(self, components: Sequence[str]) -> int:
        """Bytes of the weights of these folders that are not here yet."""
        names = self._weights(components)
        return sum(self.files[name].size for name in names if not (self.folder / name).is_symlink())

    def fetch(self, components: Sequence[str]) -> Path:
        """Bring the weights of these folders to the cache of huggingface_hub: the folder that was asked for.

        Raises:
            FlowBlendingError: the hub does not give them.
        """
        names = [*small_files(self.files, self.address.inside), *self._weights(components)]
        return _download(self.address, self.commit, names) / self.address.inside

    def fetch_beside(self, name: str) -> None:
        """Bring a small file to where the one that was asked for is, if there is one of that name.

        Raises:
            FlowBlendingError: the hub does not give it.
        """
        path = str(PurePosixPath(self.address.inside).parent / name)
        if path in self.files:
            _download(self.address, self.commit, [path])

    def _weights(self, components: Sequence[str]) -> list[str]:
        """Paths of the weights in these folders that are listed; where a file was asked for, that and its shards."""
        found = []
        inside = PurePosixPath(self.address.inside)
        if self.address.inside in self.files:
            if inside.suffix != ".json":
                return [str(inside)]
            return self._shards(self.folder / inside, inside.parent)
        for component in components:
            if not component and str(inside / "transformer/config.json") in self.files:
                continue
            names = {
                path.name: str(path) for path in map(PurePosixPath, self.files) if path.parent == inside / component
            }
            listing = weights_listing(names)
            if listing is not None and listing.endswith(".json"):
                found += self._shards(self.folder / names[listing], inside / component)
            elif listing is not None:
                found.append(names[listing])
        return found

    def _shards(self, index: Path, folder: PurePosixPath) -> list[str]:
        """Paths of the files that an index names, of those that are there."""
        shards = (str(folder / name) for name in sorted(set(weight_map(index).values())))
        return [shard for shard in shards if shard in self.files]

    def _stand_in(self, name: str) -> None:
        """A sparse file with the header of a file of weights, and with the VAE's statistics, which are read, too."""
        size = self.files[name].size
        if name.endswith(GGUF):
            self._write_sparse(name, {0: self._read(name, 0, min(HEADER_BYTES, size))})
            return
        content = self._read(name, 0, min(_FIRST_READ, size))
        length = 8 + int.from_bytes(content[:8], "little")
        if length > min(size, _LONGEST_HEADER):
            raise FlowBlendingError(
                f"{self.address.name} holds {name}, which is no safetensors file; give another checkpoint or revision."
            )
        if length > len(content):
            content += self._read(name, len(content), length - len(content))
        pieces = {0: content[:length]}
        for first, last in _statistics(content[8:length]):
            pieces[length + first] = self._read(name, length + first, last - first)
        self._write_sparse(name, pieces)

    def _write_sparse(self, name: str, pieces: Mapping[int, bytes]) -> None:
        with (self.folder / name).open("wb") as file:
            file.truncate(self.files[name].size)
            for place, piece in pieces.items():
                file.seek(place)
                file.write(piece)

    def _read(self, name: str, first: int, count: int) -> bytes:
        """Bytes of a file, by a ranged request; a server that ignores the range is read as far as is needed."""
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined] # documented as its own
            build_hf_headers,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.address.repository, name, revision=self.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}

        def read() -> bytes:
            session = get_session()
            with session.stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
                hf_raise_for_status(response)
                before = 0 if response.status_code == 206 else first
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) >= before + count:
                        break
            return bytes(content[before : before + count])

        return _asked(self.address, read)


def open_repository(address: Address, wanted: Sequence[str], scratch: Path) -> Repository | Path:
    """What the hub has of that name, its JSON files fetched; or the folder in the cache, where the hub is out of reach.

    Args:
        address: of it.
        wanted: see `Repository`.
        scratch: an empty folder, for links and stand-ins.

    Raises:
        FlowBlendingError: it is not there, not for this user, or out of reach and not in the cache.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(address.repository, revision=address.revision, files_metadata=True)
    except Exception as error:  # the errors of its HTTP library, which changes between versions, pass through it
        cached = _cached(address)
        if cached is None:
            raise _refusal(address, error) from None
        return cached
    commit = str(info.sha)
    files = {
        sibling.rfilename: RemoteFile(
            size=sibling.size or 0,
            checksum=None if sibling.lfs is None else sibling.lfs.sha256,
        )
        for sibling in info.siblings or ()
    }
    small = small_files(files, address.inside)
    # By the name of the revision, so that the cache knows it when the hub is out of reach.
    snapshot = _download(address, address.revision, small)
    folder = scratch / f"models--{address.repository.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(WEIGHT_SUFFIXES):
            # So that messages can name what there is.
            (folder / path).touch()
    _link(folder, snapshot, [path for path in files if (snapshot / path).is_file()])
    return Repository(address=address, commit=commit, files=files, folder=folder, wanted=wanted)


def cache_folder() -> Path:
    """Where weights are fetched to."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def small_files(names: Iterable[str], inside: str) -> list[str]:
    """The files beside the weights that a checkpoint is read from."""
    found = []
    for name in names:
        path = PurePosixPath(name)
        if not path.is_relative_to(inside):
            continue
        folder = str(path.relative_to(inside).parent)
        index = ".safetensors.index." in path.name and path.suffix == ".json"
        read = folder in (".", *COMPONENTS) and (index or path.name.endswith(("model_index.json", "config.json")))
        asked = name == inside and path.suffix == ".json"
        if read or asked or folder == TOKENIZER:
            found.append(name)
    return found


def _link(folder: Path, snapshot: Path, names: Iterable[str]) -> None:
    """Let files of the cache stand in a folder."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((snapshot / name).resolve())


def _statistics(header: bytes) -> list[tuple[int, int]]:
    """Where a VAE's statistics are among the data of a file."""
    try:
        tensors = json.loads(header)
        names = (*STATISTICS, *AUTHORS_STATISTICS)
        return [tuple(tensors[name]["data_offsets"]) for name in names if name in tensors]
    except (ValueError, LookupError, TypeError):
        return []  # the reader of the stand-in says what is wrong


def _download(address: Address, revision: str | None, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(each) for each in names]
    return _asked(
        address, lambda: Path(snapshot_download(address.repository, revision=revision, allow_patterns=patterns))
    )


def _asked(address: Address, ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except Exception as error:  # as above
        raise _refusal(address, error) from None


def _cached(address: Address) -> Path | None:
    """The folder in the cache of huggingface_hub, where any of its JSON files is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in ("model_index.json", "config.json", "transformer/config.json", ""):
        try:
            # The last is what was asked for itself, where that is a file.
            path = str(PurePosixPath(address.inside) / file)
            found = try_to_load_from_cache(address.repository, path, revision=address.revision)
        except HFValidationError:
            return None  # no such name can be on the hub, as whoever asked it was told
        if isinstance(found, str):
            return Path(found).parents[file.count("/")] if file else Path(found)
    return None


def _refusal(address: Address, error: Exception) -> FlowBlendingError:
    from huggingface_hub import errors

    name, repository = address.name, address.repository

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return FlowBlendingError(
            f"{name} is open to those who accepted its terms; accept them at {page} and log in (hf auth login)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FlowBlendingError(f"{repository} has no revision of the name in {name}; see {page}/tree/main for those.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FlowBlendingError(
            f"{name} is no folder here, and the hub has no {repository} that you may read; {EXPECTED}, "
            "and log in (hf auth login) where it is private."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return FlowBlendingError(
            f"{name} is no folder here and not in the cache of huggingface_hub, and HF_HUB_OFFLINE forbids asking the "
            f"hub; {EXPECTED} that was fetched before."
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return FlowBlendingError(f"{name} is no folder here and could not be fetched from the hub ({reason}); {EXPECTED}.")
