"""The application: OpenAI's video API, and `operations`."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, StreamingResponse

import flowblending
from flowblending.runtime.serve.http.dependencies import OwnerOf, ServiceOf
from flowblending.runtime.serve.http.errors import ApiError, bad_request, no_video
from flowblending.runtime.serve.http.events import server_sent, wait_for_end
from flowblending.runtime.serve.http.gate import MOST_BODY, Gate
from flowblending.runtime.serve.http.operations import operations
from flowblending.runtime.serve.http.record import COMPLETED, JobRecord
from flowblending.runtime.serve.http.request import no_model, read_form, read_json
from flowblending.runtime.serve.http.schema import (
    Deleted,
    Error,
    Model,
    ModelList,
    Video,
    VideoList,
    model_of,
    request_schema,
)
from flowblending.runtime.serve.http.service import Service
from flowblending.runtime.serve.uploads import MOST_FILES, Upload, shown_name

_POLL: Final = {"openai-poll-after-ms": "500"}
"""How long OpenAI's clients wait between two looks."""

_FIELDS: Final = 100
"""Of a form."""

_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": request_schema()},
            "multipart/form-data": {"schema": request_schema(upload=True)},
        },
    }
}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Error} for status in (400, 401, 403, 404, 413, 429, 503)
}
_MP4: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"video/mp4": {}, "image/png": {}}, "description": "The file."}
}
_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {}}, "description": "progress, then completed, failed or deleted."}
}


router = APIRouter(prefix="/v1", responses=_ERRORS)


async def _accepted(request: Request, service: Service, owner: str) -> JobRecord:
    """The job that a request's body asks for, in the queue."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        try:
            async with request.form(max_files=MOST_FILES, max_fields=_FIELDS, max_part_size=MOST_BODY) as form:
                values = read_form([(name, await _received(value)) for name, value in form.multi_items()])
        except HTTPException as error:
            raise bad_request(f"The form cannot be read ({error.detail}); send one with a prompt.") from None
    elif kind in ("application/json", ""):
        values = read_json(await request.body())
    else:
        message = f"The body is {kind[:60]!r}, but application/json or multipart/form-data was expected."
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)

    return await run_in_threadpool(service.ask, values, owner)


async def _received(value: UploadFile | str) -> Upload | str:
    """A field of a form; what was uploaded is no larger than a body may be."""
    if isinstance(value, str):
        return value
    return Upload(name=shown_name(value.filename), content=await value.read())


@router.post("/videos", openapi_extra=_BODY)
async def create_video(request: Request, response: Response, service: ServiceOf, owner: OwnerOf) -> Video:
    """Ask for a video. It is made when a worker has time; see its status."""
    job = await _accepted(request, service, owner)
    response.headers.update(_POLL)
    return await run_in_threadpool(service.show, job)


@router.post("/videos/sync", openapi_extra=_BODY, response_class=FileResponse, responses=_MP4)
async def create_video_and_wait(request: Request, service: ServiceOf, owner: OwnerOf) -> Response:
    """Ask for a video and wait for the file. A client that goes gives the video up."""
    job = await _accepted(request, service, owner)
    async with _departure(request) as gone:
        done = await wait_for_end(service, job.id, owner, gone)
    if gone.is_set():
        with contextlib.suppress(ApiError):
            await run_in_threadpool(service.forget, job.id, owner)
        return Response(status_code=499)
    if done is None:
        message = f"The service ends; the video {job.id} will be made when it is there again."
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="draining")
    if done.status != COMPLETED:
        raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, done.message or "", code=done.code)
    return _file(service.data.video(job.id), "video/mp4", f"{job.id}.mp4", {"x-video-id": job.id})


@contextlib.asynccontextmanager
async def _departure(request: Request) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client has gone."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    task = asyncio.ensure_future(watch())
    try:
        yield gone
    finally:
        task.cancel()


@router.get("/videos")
def list_videos(
    service: ServiceOf,
    owner: OwnerOf,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """The videos of this API key, page by page."""
    number = None if after is None else service.find(after, owner).number
    jobs, more = service.store.page(owner, after=number, limit=limit, ascending=order == "asc")
    videos = [service.show(job) for job in jobs]
    first, last = (videos[0].id, videos[-1].id) if videos else (None, None)
    return VideoList(data=videos, first_id=first, last_id=last, has_more=more)


@router.get("/videos/{video_id}")
def retrieve_video(video_id: str, response: Response, service: ServiceOf, owner: OwnerOf) -> Video:
    """A video's status, and how far it is."""
    response.headers.update(_POLL)
    return service.show(service.find(video_id, owner))


@router.delete("/videos/{video_id}")
def delete_video(video_id: str, service: ServiceOf, owner: OwnerOf) -> Deleted:
    """Delete a video and its file; one that is not finished is given up at the next step."""
    service.forget(video_id, owner)
    return Deleted(id=video_id)


@router.get("/videos/{video_id}/content", response_class=FileResponse, responses=_MP4)
@router.head("/videos/{video_id}/content", response_class=FileResponse, include_in_schema=False)
def download_video(
    video_id: str, service: ServiceOf, owner: OwnerOf, variant: Literal["video", "thumbnail"] = "video"
) -> Response:
    """The MP4, or a PNG of its middle frame. Ranges are honoured."""
    job = service.find(video_id, owner)
    if job.status != COMPLETED:
        raise bad_request(f"The video {video_id} is {job.status}; wait until it is completed.", code="not_completed")
    if variant == "thumbnail":
        return _file(service.data.thumbnail(video_id), "image/png", f"{video_id}.png", {})
    return _file(service.data.video(video_id), "video/mp4", f"{video_id}.mp4", {})


def _file(path: Path, kind: str, name: str, headers: dict[str, str]) -> FileResponse:
    try:
        stat = path.stat()
    except OSError:
        raise no_video(path.stem) from None
    headers = {"cache-control": "private, immutable", **headers}
    return FileResponse(
        path, media_type=kind, filename=name, stat_result=stat, headers=headers, content_disposition_type="inline"
    )


@router.get("/videos/{video_id}/events", response_class=StreamingResponse, responses=_EVENTS)
def follow_video(video_id: str, service: ServiceOf, owner: OwnerOf, preview: bool = False) -> StreamingResponse:
    """Server-sent events of a video: one with every step, and with ``preview`` a small picture of what it makes."""
    service.find(video_id, owner)
    stream = server_sent(service, video_id, owner, previews=preview)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


@router.get("/models")
def list_models(service: ServiceOf, owner: OwnerOf) -> ModelList:  # noqa: ARG001 - a key is asked for
    """The bundles that are served."""
    return ModelList(data=[model_of(model) for model in service.models.values()])


@router.get("/models/{model}")
def retrieve_model(model: str, service: ServiceOf, owner: OwnerOf) -> Model:  # noqa: ARG001 - a key is asked for
    """One of them."""
    if model not in service.models:
        raise no_model(model, service.models)
    return model_of(service.models[model])


def make_app(service: Service) -> Gate:
    """The application.

    Args:
        service: that it serves.
    """
    app = FastAPI(
        title="FlowBlending",
        version=flowblending.__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(operations)
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        RequestValidationError: _wrong_parameter,
        sqlite3.Error: _database_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    return Gate(app, service)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service.live.serve(asyncio.get_running_loop())
    yield


async def _api_error(request: Request, error: ApiError) -> JSONResponse:  # noqa: ARG001 - what handlers get
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    status = HTTPStatus(error.status_code)
    message = f"{request.method} {request.url.path[:80]} is nothing that this service knows ({status.phrase})."
    return ApiError(status, message, headers=error.headers).response()


async def _wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:  # noqa: ARG001
    first = error.errors()[0]
    name = str(first["loc"][-1])
    expected = str(first["msg"]).removeprefix("Input should be ")
    message = f"{name} is {str(first.get('input'))[:60]!r}, but {expected} was expected."
    return bad_request(message, param=name).response()


async def _database_error(request: Request, error: sqlite3.Error) -> JSONResponse:
    service: Service = request.app.state.service
    service.log.event("database_error", why=str(error))
    message = f"The service cannot write down its jobs ({error}); whoever runs it has to free some space."
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="storage").response()
