"""The API's objects: OpenAI's, with fields of our own beside theirs; and the schema of a request."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from flowblending.runtime.option import Option
from flowblending.runtime.options import options, served_options
from flowblending.runtime.serve.http.messages import Progress
from flowblending.runtime.serve.http.models import ServedModel
from flowblending.runtime.serve.http.record import COMPLETED, IN_PROGRESS, QUEUED, JobRecord
from flowblending.runtime.serve.http.reference import AT, REFERENCE
from flowblending.runtime.serve.http.request import BESIDE, MOST_CHARACTERS


class VideoError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class Video(BaseModel):
    """A job and its video."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Percent.", ge=0, le=100)
    created_at: int = Field(description="Seconds since 1970, like all times.")
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    seconds: str = Field(description="Length of the video.")
    size: str
    error: VideoError | None = None
    remixed_from_video_id: None = None
    frames: int
    input_reference: str | None = Field(None, description="Name of the image that was uploaded to begin with.")
    files: dict[str, str | list[str]] = Field({}, description="Names of all files that were uploaded, by field.")
    options: dict[str, Any] = Field(description="The fields that were given, beside the prompt.")
    queue_position: int | None = Field(None, description="0 is next among the videos of the same API key.")
    stage: str | None = Field(None, description="loading, encoding, sampling or decoding.")
    step: int | None = None
    steps: int | None = None
    transformer: str | None = Field(None, description="That the last step ran.")
    seconds_left: float | None = Field(None, description="Of sampling.")
    plan: list[str] | None = Field(None, description="The transformer of every step.")
    warnings: list[str] = []
    timings: dict[str, float] = Field({}, description="Seconds by stage.")


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    """A bundle."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["flowblending"] = "flowblending"
    family: str
    videos: list[dict[str, str]] = Field(description="Sizes and frames that it makes.")
    input_reference: bool = Field(description="Whether an image may be uploaded for a video to begin with.")
    takes: list[str] = Field(description="Of image, video and mask, the files that may be uploaded.")
    preview: bool = Field(description="Whether a video's events can bring small pictures of what is made.")
    defaults: dict[str, Any] = Field(description="Of the fields that depend on the model.")


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """What went wrong, in OpenAI's shape."""

    error: ErrorBody


def video_of(job: JobRecord, live: Progress | None, ahead: int | None) -> Video:
    """A job as clients see it.

    Args:
        live: how far it is, if a worker has it.
        ahead: of the same owner's jobs, those that will be made before.
    """
    progress = 100 if job.status == COMPLETED else 0
    now: dict[str, Any] = {}
    if live is not None and job.status == IN_PROGRESS:
        progress = live.percent
        left = None if live.seconds_left is None else round(live.seconds_left, 3)
        now = {
            "stage": live.stage,
            "step": live.step,
            "steps": live.steps or None,
            "transformer": live.model or None,
            "seconds_left": left,
            "plan": list(live.plan) or None,
        }
    return Video(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=progress,
        created_at=int(job.created),
        completed_at=int(job.ended) if job.ended is not None and job.status == COMPLETED else None,
        expires_at=None if job.expires is None else int(job.expires),
        prompt=job.fields["prompt"],
        seconds=job.about["seconds"],
        size=job.about["size"],
        frames=job.about["frames"],
        input_reference=job.about.get(REFERENCE),
        files=job.about.get("files", {}),
        error=None if job.code is None else VideoError(code=job.code, message=job.message or ""),
        options={name: value for name, value in job.fields.items() if name != "prompt"},
        queue_position=ahead if job.status == QUEUED else None,
        warnings=list(job.warnings),
        timings={stage: round(seconds, 6) for stage, seconds in job.seconds.items()},
        **now,
    )


def model_of(model: ServedModel) -> Model:
    """A bundle as clients see it."""
    return Model(id=model.name, created=model.created, **model.about)


_KINDS: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _property(option: Option) -> dict[str, Any]:
    kind = _KINDS[option.kind]
    found: dict[str, Any] = {"type": [kind, "null"] if option.nullable else kind, "description": option.help}
    if option.usual:
        found["description"] += f" (default: {option.usual})"
    found["description"] = found["description"].replace("%%", "%")  # argparse's
    bounds = {"minimum": option.least, "maximum": option.most, "enum": list(option.choices) or None}
    found |= {name: value for name, value in bounds.items() if value is not None}
    if "prompt" in option.name:
        found["maxLength"] = MOST_CHARACTERS
    if option.name == "seconds":
        found["type"] = ["number", "string"]
    return found | {"examples": [option.example]}


def _file(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "binary", "description": description.replace("%%", "%")}


def _uploads() -> dict[str, Any]:
    """Files, as forms have them."""
    found = {each.name: _file(each.help) for each in options() if each.file}
    several = {each.name for each in options() if each.file and each.several}
    found = {name: {"type": "array", "items": each} if name in several else each for name, each in found.items()}
    places = {"type": "string", "description": "where an image stands: 120, or 120:0.8 with a strength"}
    return {
        REFERENCE: _file("image file that the video begins with, of models that say input_reference"),
        **found,
        AT: {"type": "array", "items": places},
    }


def request_schema(*, upload: bool = False) -> dict[str, Any]:
    """The schema of a request for a video, from the table of options.

    Args:
        upload: whether it may have a file, as forms may.
    """
    properties = {each.name: _property(each) for each in (*served_options(), *BESIDE)}
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": properties | (_uploads() if upload else {}),
    }
