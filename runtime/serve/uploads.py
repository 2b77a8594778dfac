"""Files that come with a request to a server: images, videos and masks, kept under names that the server chose.

A client's names are told in messages and metadata, and never opened. What a file is, is told by its content, by the
same readers as in fb-run. A folder of images comes as a ZIP file of them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.conditions.given import tail_of
from flowblending.runtime.media.frame_source import SUFFIXES
from flowblending.runtime.options import Job, options
from flowblending.system.printable import printable

MOST_BYTES: Final = 2**26
"""Of all files of a request, unpacked: 64 MiB."""
MOST_FILES: Final = 16
"""Images of one request."""
_MOST_FRAMES: Final = 4096
"""In a folder of images."""
_MOST_NAME: Final = 100
_ODD: Final = re.compile(r"[^\w.-]+")
_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,8}")
_ZIP: Final = b"PK\x03\x04"
_DATA: Final = re.compile(rb"data:[\w/+.-]{0,100};base64,")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file of a request.

    Attributes:
        name: for messages and the video's metadata; no file is opened by it.
        at: of an image, where it stands, as `flowblending.runtime.conditions.given.read_given` has it behind the file's
            name: ``@120:0.8``.
    """

    name: str
    content: bytes = field(repr=False)
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Uploads as files of this machine.

    Attributes:
        fields: of a job: the files' names here.
        names: by these, what their clients call them.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Any], folder: Path) -> Kept:
        """What `stored` told, of the same folder."""

        def beside(value: Any) -> Any:
            return tuple(map(beside, value)) if isinstance(value, list) else f"{folder}/{value}"

        return cls(
            fields={name: beside(value) for name, value in stored["fields"].items()},
            names={beside(file): name for file, name in stored["names"].items()},
        )

    def stored(self, folder: Path) -> dict[str, Any]:
        """The files of a folder as plain data, without its name."""

        def inside(value: Any) -> Any:
            return value.removeprefix(f"{folder}/") if isinstance(value, str) else list(map(inside, value))

        return {
            "fields": {name: inside(value) for name, value in self.fields.items()},
            "names": {inside(file): name for file, name in self.names.items()},
        }

    def tell(self, text: str) -> str:
        """A message about the files, with their clients' names."""
        for file, name in self.names.items():
            text = text.replace(file, name).replace(printable(Path(file)), name)
        return text

    def named(self, job: Job) -> Job:
        """A job of these fields as its metadata tells it."""
        told: dict[str, Any] = {
            name: tuple(map(self.tell, value)) if isinstance(value, tuple) else self.tell(value)
            for name, value in self.fields.items()
        }
        return dataclasses.replace(job, **told)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of the block tell the files by their clients' names."""
        try:
            yield
        except FlowBlendingError as error:
            raise type(error)(self.tell(str(error))) from None


def shown_name(given: str | None, otherwise: str = "image") -> str:
    """The last part of a name that a client gave, of letters, digits, dots and dashes alone."""
    last = re.split(r"[/\\]", given or "")[-1]
    return _ODD.sub("_", last)[-_MOST_NAME:].strip(".") or otherwise


def content_of(value: bytes) -> bytes:
    """The bytes of a file, which text protocols have as a URL of its data in Base64 (RFC 2397).

    Raises:
        UsageError: such a URL is damaged.
    """
    match = _DATA.match(value[:120])
    if match is None:
        return value
    try:
        return base64.b64decode(value[match.end() :], validate=True)
    except binascii.Error as error:
        raise UsageError(f"A file was given as Base64 that is none ({error}); encode it again.") from None


def read_at(text: str) -> str:
    """Where an image stands, ``120`` or ``120:0.8``, as it is written behind a file's name.

    Raises:
        UsageError: it says something else.
    """
    place = text.strip()
    if place and place[0] not in "@:":
        place = f"@{place}"
    if place and tail_of(f"image{place}") != place:
        raise UsageError(
            f"An image was given for {text[:60]!r}, but a frame or a frame and a strength were expected; give 120, or "
            "120:0.8."
        )
    return place


def check_bytes(total: int) -> None:
    """Refuse more bytes than the files of a request may have.

    Raises:
        UsageError: there are more.
    """
    if total > MOST_BYTES:
        raise UsageError(
            f"The files of the request have {total} bytes, but at most {MOST_BYTES} are taken; give smaller ones."
        )


def keep(uploads: Mapping[str, Sequence[Upload]], folder: Path) -> Kept:
    """Write uploads into a folder.

    Args:
        uploads: by the options that name their files.

    Raises:
        UsageError: they are too many or too large, or a ZIP file is none of images.
        OSError: they cannot be written.
    """
    every = [each for given in uploads.values() for each in given]
    check_bytes(sum(len(each.content) for each in every))
    if len(every) > MOST_FILES:
        raise UsageError(f"{len(every)} files were given, but at most {MOST_FILES} are taken; give fewer.")
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for option in options():
        paths = []
        for number, upload in enumerate(uploads.get(option.name, ())):
            is_folder = upload.content.startswith(_ZIP)
            match = _SUFFIX.fullmatch(Path(upload.name).suffix)
            path = folder / f"{option.name}-{number}{'' if match is None or is_folder else match[0]}"
            if is_folder:
                _unpack(upload, path)
            else:
                path.write_bytes(upload.content)
            names[str(path)] = upload.name.removesuffix(".zip") if is_folder else upload.name
            paths.append(f"{path}{upload.at}")
        if paths:
            fields[option.name] = tuple(paths) if option.several else paths[0]
    # Of names that begin alike, the longer one first.
    return Kept(fields=fields, names=dict(sorted(names.items(), key=lambda each: -len(each[0]))))


def _unpack(upload: Upload, folder: Path) -> None:
    """The images of a ZIP file, each with no more bytes than the file says that it has."""
    try:
        with zipfile.ZipFile(io.BytesIO(upload.content)) as archive:
            images = [each for each in archive.infolist() if _is_image(each.filename)]
            check_bytes(sum(each.file_size for each in images))
            names = [shown_name(each.filename) for each in images]
            if not images or len(images) > _MOST_FRAMES or len(set(names)) < len(names):
                raise UsageError(
                    f"{upload.name} holds {len(images)} images, {len(set(names))} of different names, but from 1 to "
                    f"{_MOST_FRAMES} were expected ({', '.join(SUFFIXES)}), each with a name of its own; pack it again."
                )
            folder.mkdir()
            for each, name in zip(images, names, strict=True):
                with archive.open(each) as file:
                    (folder / name).write_bytes(file.read(each.file_size))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UsageError(f"{upload.name} is a ZIP file that cannot be read ({error}); pack it again.") from None


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts
