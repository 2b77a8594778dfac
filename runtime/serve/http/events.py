"""A video's events, as they happen: server-sent events, and waiting for its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from flowblending.runtime.serve.http.errors import ApiError
from flowblending.runtime.serve.http.messages import Preview
from flowblending.runtime.serve.http.record import JobRecord
from flowblending.runtime.serve.http.schema import Video
from flowblending.runtime.serve.http.service import Service

_SILENCE: Final = 15.0
"""Seconds after which a comment keeps proxies from closing the connection."""


async def server_sent(service: Service, id: str, owner: str, *, previews: bool = False) -> AsyncIterator[str]:
    """``progress`` events, then ``completed``, ``failed`` or ``deleted``; the data of each is a video.

    Args:
        previews: whether ``progress`` brings previews when there are new ones: ``preview``, a data URL of a PNG, and
            ``preview_step``, the step that it is of.
    """
    video: Video | None = None
    preview: Preview | None = None
    with contextlib.ExitStack() as stack:
        changed = stack.enter_context(service.live.changes(id))
        if previews:
            stack.enter_context(service.live.watching(id, service.dispatcher.wake))
        while True:
            changed.clear()
            try:
                job, found = await run_in_threadpool(_look, service, id, owner)
            except ApiError:
                yield _event("deleted", json.dumps({"id": id, "object": "video.deleted", "deleted": True}))
                return
            before, video = video, found
            if job.over:
                yield _event(job.status, video.model_dump_json())
                return
            seen, preview = preview, service.live.preview(id) if previews else None
            if preview is not None and preview is not seen:
                yield _event("progress", json.dumps(video.model_dump(mode="json") | _shown(preview)))
            elif video != before:
                yield _event("progress", video.model_dump_json())
            if service.live.closed:
                return
            try:
                await asyncio.wait_for(changed.wait(), _SILENCE)
            except TimeoutError:
                yield ": still here\n\n"


def _look(service: Service, id: str, owner: str) -> tuple[JobRecord, Video]:
    job = service.find(id, owner)
    return job, service.show(job)


def _shown(preview: Preview) -> dict[str, Any]:
    return {"preview": f"data:image/png;base64,{b64encode(preview.png).decode()}", "preview_step": preview.step}


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


async def wait_for_end(service: Service, id: str, owner: str, gone: asyncio.Event) -> JobRecord | None:
    """A job when it has ended; None if nobody waits for it any more, or the service ends first.

    Args:
        gone: set when the client has gone.

    Raises:
        ApiError: it was deleted.
    """
    with service.live.changes(id) as changed:
        while not (gone.is_set() or service.live.closed):
            changed.clear()
            if service.live.progress(id) is None:  # else a worker has it, and only that is new how far it is
                job = await run_in_threadpool(service.find, id, owner)
                if job.over:
                    return job
            waits = [asyncio.ensure_future(event.wait()) for event in (changed, gone)]
            try:
                await asyncio.wait(waits, timeout=_SILENCE, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
    return None
