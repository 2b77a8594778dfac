"""Files that were uploaded with a request: taken out of its fields, and looked at before its job is accepted."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.contracts.manifest import Manifest
from flowblending.runtime import planned_job
from flowblending.runtime.conditions.registry import check_taken
from flowblending.runtime.media.frame_source import opened_still
from flowblending.runtime.option_values import shown
from flowblending.runtime.options import Job, options
from flowblending.runtime.serve.http.errors import bad_request
from flowblending.runtime.serve.uploads import Kept, Upload, read_at

REFERENCE: Final = "input_reference"
"""OpenAI's field of the image that a video begins with."""
IMAGE: Final = "image"
AT: Final = "image_at"
"""Where each ``image`` stands."""
FILES: Final = tuple(each.name for each in options() if each.file)
"""Options of a job that name files, which come with the request."""
SEVERAL: Final = frozenset({AT, *(each.name for each in options() if each.file and each.several)})
"""Fields that a form may have more than once."""

_DECODING: Final = threading.Lock()
"""A small file may be a picture of hundreds of megabytes: the service has one of them in its memory at a time."""


def take_uploads(values: Mapping[str, object]) -> tuple[dict[str, list[Upload]], dict[str, object]]:
    """The files of a request, by the options of a job that name them, and its other fields.

    Raises:
        ApiError: a name in the place of a file, or places without images.
    """
    rest = dict(values)
    found = {name: _uploads(rest, name) for name in (REFERENCE, *FILES)}
    places = rest.pop(AT, None)
    if places is not None:
        _place(found[IMAGE], places if isinstance(places, list) else [places])
    given = {name: found[name] for name in FILES}
    given[IMAGE] = [*found[REFERENCE], *found[IMAGE]]
    return {name: uploads for name, uploads in given.items() if uploads}, rest


def _uploads(values: dict[str, object], name: str) -> list[Upload]:
    """The files of one field, which is taken out."""
    value = values.pop(name, None)
    if value is None and name == REFERENCE:
        kinds = (f"{REFERENCE}[image_url]", f"{REFERENCE}[file_id]")
        value = next(({kind: values[kind]} for kind in kinds if kind in values), None)
    found = []
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(each, Upload):
            raise bad_request(
                f"{name} is {shown(value)}, but a file in the request was expected, and the service reads no other; "
                "upload it in a form.",
                param=name,
            )
        found.append(each)
    return found


def _place(images: list[Upload], places: list[object]) -> None:
    if len(places) != len(images):
        raise bad_request(
            f"{AT} has {len(places)} values, but there are {len(images)} images; give one for each.", param=AT
        )
    for number, (image, place) in enumerate(zip(images, places, strict=True)):
        try:
            images[number] = dataclasses.replace(image, at=read_at(str(place)))
        except UsageError as error:
            raise bad_request(str(error), param=AT) from None


def check_kinds(kept: Kept, manifest: Manifest, *, reference: bool) -> None:
    """Refuse what the bundle does not take, and a reference that does not begin as an image; nothing is decoded.

    Args:
        reference: whether the first image is one.

    Raises:
        FlowBlendingError: it is refused.
    """
    for name in kept.fields:
        if name in list(Source):  # of reference images, the job tells
            check_taken(manifest, Source(name))
    if reference:
        with _DECODING, opened_still(Path(kept.fields[IMAGE][0])):
            pass


def check_files(job: Job, manifest: Manifest) -> None:
    """Refuse images that cannot be read, or that the bundle does not take so, and videos that do not begin as one.

    Raises:
        FlowBlendingError: they are refused.
    """
    with _DECODING:
        planned_job.check_files(job, manifest)
        planned_job.plan_job(job, manifest)


def told(kept: Kept, job: Job) -> dict[str, Any]:
    """The files of a job as its client calls them: ``{"image": ["cat.png@8"], "video": "street.mp4"}``."""
    named = kept.named(job)
    return {name: getattr(named, name) for name in kept.fields}
