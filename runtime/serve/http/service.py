"""What the service does, whoever asks for it: accept, show, give up and forget videos."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from flowblending import UsageError
from flowblending.runtime.serve.http.dispatcher import Dispatcher
from flowblending.runtime.serve.http.errors import ApiError, bad_request, no_video
from flowblending.runtime.serve.http.files import DataFolder
from flowblending.runtime.serve.http.keys import Keys
from flowblending.runtime.serve.http.live import Live
from flowblending.runtime.serve.http.log import Log
from flowblending.runtime.serve.http.metrics import Metrics
from flowblending.runtime.serve.http.models import ServedModel
from flowblending.runtime.serve.http.record import QUEUED, JobRecord
from flowblending.runtime.serve.http.reference import REFERENCE, take_uploads
from flowblending.runtime.serve.http.request import VideoRequest, read_request
from flowblending.runtime.serve.http.schema import Video, video_of
from flowblending.runtime.serve.http.store import JobStore, QueueFullError, new_id
from flowblending.runtime.serve.uploads import Kept, Upload

_ID: Final = re.compile(r"video_[0-9a-f]{32}")
_MINUTE: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one service takes.

    Attributes:
        waiting: jobs in the queue.
        rate: jobs that one API key may ask for in a minute; None for any number.
        log_prompts: whether prompts are logged.
    """

    waiting: int
    rate: int | None = None
    log_prompts: bool = False


class RateLimit:
    """So many requests a minute for each owner."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def take(self, owner: str) -> None:
        """Count a request.

        Raises:
            ApiError: the owner has had as many as there may be.
        """
        if self._most is None:
            return
        now = time.monotonic()
        with self._lock:
            times = self._times.setdefault(owner, deque())
            while times and times[0] <= now - _MINUTE:
                times.popleft()
            if len(times) < self._most:
                times.append(now)
                return
            seconds = times[0] + _MINUTE - now
        message = f"{self._most} videos a minute may be asked for; try again in {seconds:.0f} s."
        raise _later(message, "rate_limit_exceeded", int(seconds) + 1)


def _later(message: str, code: str, seconds: int) -> ApiError:
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code=code, headers={"Retry-After": str(seconds)})


@dataclass(frozen=True, kw_only=True)
class Service:
    """Everything that a request may need."""

    models: Mapping[str, ServedModel]
    store: JobStore
    data: DataFolder
    live: Live
    dispatcher: Dispatcher
    keys: Keys
    metrics: Metrics
    log: Log
    limits: Limits
    rates: RateLimit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", RateLimit(self.limits.rate))

    def ask(self, values: Mapping[str, object], owner: str) -> JobRecord:
        """Accept the video that the fields of a request ask for; files among them are kept before its job is.

        Raises:
            ApiError: it cannot be accepted; nothing of it is kept.
        """
        uploads, fields = take_uploads(values)
        if not uploads:
            return self.accept(read_request(fields, self.models), owner)
        id, reference = new_id(), values.get(REFERENCE) is not None
        try:
            kept = self._kept(id, uploads)
            return self.accept(read_request(fields, self.models, kept, reference=reference), owner, id)
        except BaseException:
            self.data.remove(id)
            raise

    def _kept(self, id: str, uploads: Mapping[str, Sequence[Upload]]) -> Kept:
        try:
            return self.data.keep_uploads(id, uploads)
        except UsageError as error:
            raise bad_request(str(error), param=next(iter(uploads))) from None
        except OSError as error:
            message = f"The service cannot keep the files ({error.strerror}); whoever runs it has to free some space."
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="storage") from None

    def accept(self, request: VideoRequest, owner: str, id: str | None = None) -> JobRecord:
        """Put a video into the queue, under an id if it has one already.

        Raises:
            ApiError: the queue is full, the owner asks too often, or the service ends.
        """
        if self.dispatcher.draining:
            message = "The service is ending and takes no further videos; try again later."
            headers = {"Retry-After": "30"}
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="draining", headers=headers)
        self.rates.take(owner)
        try:
            job = self.store.add(
                id=id,
                owner=owner,
                model=request.model,
                fields=request.fields,
                about=request.about,
                priority=request.priority,
                start_by=None if request.start_within is None else time.time() + request.start_within,
                most_waiting=self.limits.waiting,
            )
        except QueueFullError as error:
            raise _later(str(error), "queue_full", 10) from None
        self.dispatcher.wake()  # a worker may begin while the disk takes it
        try:
            self.store.sync()
        except BaseException:
            self.store.delete(job.id)
            self.dispatcher.cancel(job.id)
            raise
        prompt = {"prompt": request.fields["prompt"]} if self.limits.log_prompts else {}
        self.log.event("job_accepted", job=job.id, model=job.model, **prompt)
        return job

    def find(self, id: str, owner: str) -> JobRecord:
        """A job of an owner.

        Raises:
            ApiError: there is none.
        """
        job = self.store.get(id, owner) if _ID.fullmatch(id) else None
        if job is None:
            raise no_video(id)
        return job

    def show(self, job: JobRecord) -> Video:
        """A job as clients see it."""
        ahead = self.store.ahead(job) if job.status == QUEUED else None
        return video_of(job, self.live.progress(job.id), ahead)

    def forget(self, id: str, owner: str) -> None:
        """Delete a job and its files; one that waits or is in the making is given up.

        Raises:
            ApiError: there is none.
        """
        job = self.find(id, owner)
        if not self.store.delete(id, owner):  # by another request, in between
            raise no_video(id)
        self.log.event("job_deleted", job=id, status=job.status)
        self.dispatcher.cancel(id)
        self.live.tell(id)
