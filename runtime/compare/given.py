"""What a prompt gave beside its text, for the page: the first frame of every image and video, small."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flowblending.runtime.compare.report import GivenPicture
from flowblending.runtime.conditions.given import read_given
from flowblending.runtime.given_files import given_files
from flowblending.runtime.media.thumbnail import thumbnail
from flowblending.runtime.options import Job

_EDGE: Final = 240
"""Pixels that a picture has at most, either way."""


def given_pictures(job: Job) -> tuple[GivenPicture, ...]:
    """The images, the video, the mask and the reference images of a job.

    Raises:
        FlowBlendingError: one cannot be read.
    """
    found = []
    for option, paths in given_files(job).items():
        for path, about in zip(paths, _abouts(job, option, paths), strict=True):
            found.append(GivenPicture(option=option, file=str(path), about=about, picture=_picture(path)))
    return tuple(found)


def _abouts(job: Job, option: str, paths: Sequence[Path]) -> list[str]:
    """What each is, in words."""
    if option != "image":
        return [f"{option} {path.name}" for path in paths]
    read = [read_given(each) for each in job.image]
    return [
        f"{each.path.name} from frame {each.frame} on{'' if each.strength == 1 else f', strength {each.strength:g}'}"
        for each in read
    ]


def _picture(path: Path) -> str:
    """A JPEG as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(thumbnail(path, _EDGE)).decode()}"
