"""An image that was uploaded for a video to begin with: OpenAI's ``input_reference``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.conditions.given import GivenClip
from flowblending.runtime.conditions.registry import plan_given
from flowblending.runtime.jobs import compile_job, job_geometry
from flowblending.runtime.media.frame_source import opened_still
from flowblending.runtime.media.read_clip import read_still
from flowblending.runtime.options import Job
from flowblending.system.printable import printable

_DECODING: Final = threading.Lock()
"""A small file may be a picture of hundreds of megabytes: the service has one of them in its memory at a time."""


def read_reference(file: Path, name: str, size: tuple[int, int], *, fit: str) -> GivenClip:
    """The image, as the first frame of a video at strength 1.

    Args:
        file: where it is kept, of which messages and notes tell nothing.
        name: that they tell.
        size: width and height of the video.
        fit: how it comes to them.

    Raises:
        FlowBlendingError: it is no image, damaged, animated, or of a size that is not taken.
    """
    with hidden(file, name):
        clip = read_still(file, size, fit=fit)
    notes = tuple(note.replace(printable(file), name) for note in clip.notes)
    return GivenClip(name=name, frames=clip.frames, notes=notes)


def check_reference(file: Path, name: str, job: Job, manifest: Manifest) -> None:
    """Refuse an image that cannot be read, or that the bundle does not take so.

    Raises:
        FlowBlendingError: it is refused.
    """
    program, geometry = compile_job(job, manifest), job_geometry(job, manifest)
    with _DECODING:
        clip = read_reference(file, name, (geometry.width, geometry.height), fit=job.fit)
    plan_given(manifest, program, [clip])


def check_still(file: Path, name: str) -> None:
    """Refuse what does not begin as an image, so that it is opened as no other kind of media; nothing is decoded.

    Raises:
        FlowBlendingError: it is refused.
    """
    with _DECODING, hidden(file, name), opened_still(file):
        pass


@contextmanager
def hidden(file: Path, name: str) -> Iterator[None]:
    """Errors of the block tell a file by another name than its own."""
    try:
        yield
    except FlowBlendingError as error:
        raise type(error)(str(error).replace(printable(file), name)) from None
