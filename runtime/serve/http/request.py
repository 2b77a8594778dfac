"""From the body of a request for a video to a job, with one sentence for whatever makes none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.jobs import check_given, compile_job, job_geometry
from flowblending.runtime.option import Option
from flowblending.runtime.option_values import HTTP, make_job, read_options, read_value, shown, unknown
from flowblending.runtime.options import AUTO, Job, served_options
from flowblending.runtime.serve.http.errors import ApiError, bad_request
from flowblending.runtime.serve.http.models import ServedModel
from flowblending.runtime.serve.http.reference import IMAGE, REFERENCE, SEVERAL, check_files, check_kinds, told
from flowblending.runtime.serve.uploads import Kept

MODEL: Final = Option(name="model", section="", help="name of one of the service's models", example="wan")
SECONDS: Final = Option(
    name="seconds",
    kind=float,
    section="",
    help="length of the video, in place of frames; one that the model makes, rounded to whole seconds",
    unit="seconds",
    least=0,
    example=5,
)
PRIORITY: Final = Option(
    name="priority",
    kind=int,
    default=0,
    section="",
    help="among the videos of the same API key, 9 is made first",
    least=0,
    most=9,
    example=5,
)
START_WITHIN: Final = Option(
    name="start_within",
    kind=float,
    section="",
    help="fail if it still waits after so long",
    unit="seconds",
    least=0,
    most=10**9,
    example=60,
)
BESIDE: Final = (MODEL, SECONDS, PRIORITY, START_WITHIN)
"""Fields that are no options of the job."""
KEPT: Final = "kept"
"""What of a job's ``about`` is the service's own: where uploads are, as `Kept.stored` tells."""

MOST_CHARACTERS: Final = 32768
"""Of a prompt. Text encoders take 512 tokens, and tell of what they leave out."""


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A request that can be done.

    Attributes:
        fields: of the job that were given, and what ``seconds`` came to.
        about: size, frames and seconds of the video, and of files that were uploaded their names, and where they are.
        start_within: seconds; None for any.
    """

    model: str
    fields: Mapping[str, Any]
    about: Mapping[str, Any]
    priority: int
    start_within: float | None


def read_json(body: bytes) -> dict[str, object]:
    """The fields of a JSON body.

    Raises:
        ApiError: it is no JSON object, or has a field twice.
    """
    try:
        found = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is no JSON object ({error}); send one, with a prompt.") from None
    if not isinstance(found, dict):
        raise bad_request(f"The body is {shown(found)}, but a JSON object was expected.")
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def read_form(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The fields of a form: numbers and truth values where the field is one and the text reads so.

    What may be there several times is a list.

    Raises:
        ApiError: another field is there twice.
    """
    kinds = {each.name: each.kind for each in (*served_options(), *BESIDE)}
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in SEVERAL:
            several = found.setdefault(name, [])
            assert isinstance(several, list)
            several.append(value)
            continue
        if name in found:
            raise bad_request(f"The field {name[:60]!r} is there twice; give it once.")
        found[name] = _plain(value, kinds.get(name, str)) if isinstance(value, str) else value
    return found


def _plain(text: str, kind: type) -> object:
    try:
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        return int(text) if kind is int else float(text) if kind is float else text
    except ValueError:
        return text


def read_request(
    values: Mapping[str, object],
    models: Mapping[str, ServedModel],
    kept: Kept | None = None,
    *,
    reference: bool = False,
) -> VideoRequest:
    """What the fields of a request ask for.

    Args:
        values: without files; see `take_uploads`.
        models: by name; the first is that of requests that name none.
        kept: the files that were uploaded; None if there are none.
        reference: whether the first image is an ``input_reference``.

    Raises:
        ApiError: a field is unknown or wrong, or the model makes no such video.
    """
    given = {name: value for name, value in values.items() if value is not None or name not in _names()}
    model = _model(given.get(MODEL.name), models)
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _names():
            known = sorted(_names())
            raise bad_request(str(unknown(name[:60], HTTP, known)), code="unknown_parameter", param=name[:60])
        fields |= _field(name, value)
    beside = {each.name: fields.pop(each.name, each.default) for each in BESIDE}
    if "prompt" not in fields:
        raise bad_request('The request has no prompt; give "prompt": "...".', param="prompt")
    for name in ("prompt", "negative_prompt"):
        if len(fields.get(name) or "") > MOST_CHARACTERS:
            raise bad_request(f"{name} is longer than {MOST_CHARACTERS} characters; shorten it.", param=name)
    try:
        if beside[SECONDS.name] is not None:
            fields["frames"] = _frames(beside[SECONDS.name], fields, model.manifest)
        if kept is None:
            about = describe(make_job(fields), model.manifest)
            check_given(make_job(fields), model.manifest)
        else:
            about = _with_files(fields, kept, model.manifest, reference=reference)
    except UsageError as error:
        raise bad_request(str(error)) from None
    return VideoRequest(
        model=model.name,
        fields=fields,
        about=about,
        priority=beside[PRIORITY.name],
        start_within=beside[START_WITHIN.name],
    )


def describe(job: Job, manifest: Manifest) -> dict[str, Any]:
    """Size, frames and seconds of a job's video.

    Raises:
        UsageError: the bundle cannot make it.
    """
    compile_job(job, manifest)
    geometry = job_geometry(job, manifest)
    rate = manifest.pipeline.frame_rate if job.frame_rate is None else job.frame_rate
    return {"size": geometry.size, "frames": geometry.frames, "seconds": f"{geometry.frames / rate:.4g}"}


def _with_files(fields: dict[str, Any], kept: Kept, manifest: Manifest, *, reference: bool) -> dict[str, Any]:
    """What `describe` tells of a video that is made of files, their names, and where they are.

    Args:
        fields: of the job, whose size is a plain one afterwards.
        reference: whether the first image is an ``input_reference``.

    Raises:
        ApiError: a file is none that can be read, or the bundle takes none such.
        UsageError: the bundle cannot make the video.
    """
    param = REFERENCE if reference else next(iter(kept.fields))
    with _wrong(param), kept.told():
        check_kinds(kept, manifest, reference=reference)
    job = make_job({**fields, **kept.fields})
    with kept.told():
        about = describe(job, manifest)
    if str(fields.get("size")).strip().lower() == AUTO:
        fields |= {"size": about["size"], "frames": about["frames"]}
    with _wrong(param), kept.told():
        check_files(make_job({**fields, **kept.fields}), manifest)
    files = told(kept, job)
    begins = {REFERENCE: files[IMAGE][0]} if reference else {}
    folder = Path(next(iter(kept.names))).parent
    return {**about, **begins, "files": files, KEPT: kept.stored(folder)}


@contextmanager
def _wrong(param: str) -> Iterator[None]:
    try:
        yield
    except FlowBlendingError as error:
        raise bad_request(str(error), param=param) from None


def _names() -> set[str]:
    return {each.name for each in (*served_options(), *BESIDE)}


def _field(name: str, value: object) -> dict[str, Any]:
    """One field, read."""
    beside = {each.name: each for each in BESIDE}
    try:
        if name not in beside:
            return read_options({name: value}, HTTP)
        if name == SECONDS.name and isinstance(value, str):  # as OpenAI's clients give it
            value = _plain(value, float)
        return {name: read_value(value, beside[name], HTTP)}
    except UsageError as error:
        raise bad_request(str(error), param=name) from None


def _model(name: object, models: Mapping[str, ServedModel]) -> ServedModel:
    if name is None:
        return next(iter(models.values()))
    if isinstance(name, str) and name in models:
        return models[name]
    raise no_model(name, models)


def no_model(name: object, models: Iterable[str]) -> ApiError:
    """There is no such model."""
    message = f"The model {shown(name)} is not served here; there {_are(tuple(models))}."
    return ApiError(HTTPStatus.NOT_FOUND, message, code="model_not_found", param="model")


def _are(names: tuple[str, ...]) -> str:
    return f"is {names[0]}" if len(names) == 1 else f"are {', '.join(names)}"


def _frames(seconds: float, fields: Mapping[str, Any], manifest: Manifest) -> int:
    """The frames of a video that is as long, to the nearest second.

    Raises:
        UsageError: the bundle makes none such, or frames were given as well.
    """
    if fields.get("frames") is not None:
        raise UsageError("seconds and frames were both given; leave one of them out.")
    rate: float = fields.get("frame_rate") or manifest.pipeline.frame_rate
    step = manifest.pipeline.temporal_factor
    found: set[int] = {
        frames
        for each in manifest.profiles
        for frames in (*range(each.min.frames, each.max.frames + 1, step), each.opt.frames)
    }
    fitting = [frames for frames in sorted(found) if round(frames / rate) == round(seconds)]
    for frames in sorted(fitting, key=lambda each: abs(each / rate - seconds)):
        try:
            job_geometry(make_job({**fields, "frames": frames}), manifest)
        except UsageError:
            continue
        return frames
    lengths = ", ".join(dict.fromkeys(f"{frames / rate:.4g}" for frames in sorted(found)))
    raise UsageError(f"{seconds:g} seconds were asked for, but this model makes videos of {lengths} seconds.")
