"""Who makes what next: jobs from the database to workers, and what they tell back.

Everything here runs in one thread. Others ask by `wake`, `cancel` and `stop`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from multiprocessing.connection import wait
from typing import Final

from flowblending import FlowBlendingError
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.tasks import Cause
from flowblending.runtime.batch.workers import CRASHES
from flowblending.runtime.serve.http.files import DataFolder
from flowblending.runtime.serve.http.keeping import Keeping
from flowblending.runtime.serve.http.live import Live
from flowblending.runtime.serve.http.log import Log
from flowblending.runtime.serve.http.messages import LOADING, Cancelled, Made, Progress, Told, Work
from flowblending.runtime.serve.http.metrics import Metrics
from flowblending.runtime.serve.http.record import JobRecord
from flowblending.runtime.serve.http.request import KEPT
from flowblending.runtime.serve.http.service_worker import ServiceWorker
from flowblending.runtime.serve.http.store import JobStore
from flowblending.runtime.serve.uploads import Kept

_TICK: Final = 1.0
"""Seconds between two looks at deadlines and at what has expired."""

_PATIENCE: Final = 15.0
"""Seconds that workers have to remove what they were writing when the service ends."""


class Dispatcher:
    """The workers, and the queue before them.

    Args:
        workers: that have been started.
        models: by their names.
        ready: called once, when the first worker is.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        data: DataFolder,
        live: Live,
        metrics: Metrics,
        log: Log,
        keeping: Keeping,
        workers: Iterable[ServiceWorker],
        models: Collection[str],
        ready: Callable[[], None],
    ) -> None:
        self._store = store
        self._data = data
        self._live = live
        self._metrics = metrics
        self._log = log
        self._keeping = keeping
        self._models = models
        self._tell_ready = functools.cache(ready)
        self._served: dict[str, float] = {}
        self._lock = threading.Lock()
        self._cancelled: set[str] = set()
        self._stop: float | None = None
        self._next_look = 0.0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._unable = ""
        self._written = False
        self._unsettled: deque[Callable[[], None]] = deque()
        self.workers = list(workers)

    @property
    def draining(self) -> bool:
        """Whether no further job is begun."""
        return self._stop is not None

    def processes(self) -> dict[str, int]:
        """The workers' processes on this machine, by the workers' names."""
        return {each.name: each.pid for each in tuple(self.workers) if each.pid is not None}

    @property
    def is_ready(self) -> bool:
        """Whether a worker can make videos."""
        return not self.draining and any(worker.ready for worker in self.workers)

    def wake(self) -> None:
        """There is something to do. Any thread, and a signal's handler, may call this."""
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, OSError):
            return  # it is awake already, or has ended

    def cancel(self, id: str) -> None:
        """A job that may be in the making is wanted no more."""
        with self._lock:
            self._cancelled.add(id)
        self.wake()

    def stop(self, patience: float) -> None:
        """Begin no further job, and end when those in the making have, or after so many seconds.

        Twice, the earlier end counts.
        """
        deadline = time.monotonic() + patience
        self._stop = deadline if self._stop is None else min(self._stop, deadline)
        self.wake()

    def run(self) -> None:
        """Serve until `stop`; then no worker is left.

        Raises:
            FlowBlendingError: no worker can work.
        """
        try:
            while not self._is_over():
                self._turn()
        finally:
            self._end()

    def _is_over(self) -> bool:
        if not self.workers and not self.draining:
            raise FlowBlendingError(self._unable)
        return self._stop is not None and (
            time.monotonic() >= self._stop or not any(worker.task for worker in self.workers)
        )

    def _turn(self) -> None:
        """Give what can be given, and act on what is told within a moment."""
        self._cancel()
        try:
            self._settle()
            if time.monotonic() >= self._next_look:  # it asks the whole database: not at every step of a video
                self._next_look = time.monotonic() + _TICK
                self._expire()
            for worker in self.workers if not self.draining else ():
                if worker.idle:
                    self._give(worker)
            self._sync()
        except sqlite3.Error as error:  # a full disk, for one, may be mended
            self._log.event("database_error", why=str(error))
        for worker in self.workers:
            if worker.task is not None:
                worker.watch(self._live.is_watched(worker.task.id))
        ready = wait([self._reader, *(worker.connection for worker in self.workers)], timeout=_TICK)
        if self._reader in ready:
            os.read(self._reader, 65536)
        for worker in [each for each in self.workers if each.connection in ready]:
            self._hear(worker)

    def _settle(self) -> None:
        """Write what has ended; what the database does not take is tried again at the next turn."""
        while self._unsettled:
            self._unsettled[0]()
            self._unsettled.popleft()

    def _sync(self) -> None:
        """Have the disk take what has ended, when clients know and workers have their next task."""
        if self._written:
            self._store.sync()
            self._written = False

    def _give(self, worker: ServiceWorker) -> None:
        """Give a worker the next job: of the owner who was served longest ago, the one that stands first."""
        waiting = self._store.waiting()
        while waiting:
            job = min(waiting, key=lambda each: self._served.get(each.owner, 0.0))
            waiting.remove(job)
            if job.model not in self._models:
                self._fail(job.id, "model_not_found", f"The model {job.model} is not served any more; ask for another.")
            elif not self._is_late(job) and self._store.start(job.id):
                self._served[job.owner] = time.monotonic()
                self._live.put(job.id, Progress(stage=LOADING))
                self._metrics.waited(time.time() - job.created)
                self._log.event("job_started", job=job.id, model=job.model, worker=worker.name)
                worker.give(self._task(job))
                return

    def _is_late(self, job: JobRecord) -> bool:
        """Whether a waiting job should have begun by now; it has failed then."""
        if job.start_by is None or time.time() <= job.start_by:
            return False
        self._fail(job.id, "deadline_exceeded", "The video had not begun within start_within seconds.")
        return True

    def _task(self, job: JobRecord) -> Work:
        video, thumbnail = self._data.video(job.id), self._data.thumbnail(job.id)
        stored = job.about.get(KEPT)
        uploads = Kept() if stored is None else Kept.of(stored, self._data.upload(job.id))
        return Work(
            id=job.id,
            model=job.model,
            fields=job.fields,
            video=video,
            thumbnail=thumbnail,
            uploads=uploads,
            watched=self._live.is_watched(job.id),
        )

    def _cancel(self) -> None:
        with self._lock:
            ids, self._cancelled = self._cancelled, set()
        for worker in self.workers:
            if worker.task is not None and worker.task.id in ids:
                worker.cancel()
                ids.discard(worker.task.id)
        for id in ids:
            self._data.remove(id)

    def _expire(self) -> None:
        now = time.time()
        for job in self._store.waiting():
            self._is_late(job)
        gone = self._store.expired(now)
        if self._keeping.most_bytes is not None:
            gone += self._store.oldest(self._keeping.most_bytes)
        for id in gone:
            if self._store.delete(id):
                self._log.event("job_expired", job=id)
            self._data.remove(id)

    def _hear(self, worker: ServiceWorker) -> None:
        """Act on one message of a worker, or on its death."""
        message = worker.receive()
        match message:
            case Told(progress=progress, preview=preview, warning=warning):
                if preview is not None:
                    self._live.show(message.id, preview)
                if progress is not None:
                    self._live.put(message.id, progress)
                if warning is not None:
                    worker.warnings.append(warning)
            case Made():
                self._made(worker, message)
            case Cancelled():
                id = worker.done().id
                self._data.remove(id)
                self._live.drop(id)
                self._log.event("job_cancelled", job=id)
            case Failed(cause=Cause.DEVICE):
                # A new process may do better, and so may another GPU.
                worker.dismiss()
                self._bury(worker, message.why)
            case Failed():
                worker.crashes = 0
                self._fail(worker.done().id, _CODES[message.cause], message.why)
            case Unable():
                self._give_up(worker, message.why)
            case Ready():
                worker.ready = True
                self._log.event("worker_ready", worker=worker.name, process=worker.pid)
                self._tell_ready()
            case None:
                self._bury(worker)

    def _give_up(self, worker: ServiceWorker, why: str) -> None:
        """The worker cannot work, which is none of its task's doing."""
        worker.end()
        if worker.task is not None:
            self._waits_again(worker.done().id)
        self._unable = why
        self._log.event("worker_unable", worker=worker.name, why=why)
        self.workers.remove(worker)

    def _made(self, worker: ServiceWorker, made: Made) -> None:
        task, warnings = worker.done(), worker.warnings
        worker.crashes = 0
        self._metrics.made(task.model, made)

        def settle() -> None:
            size, expires = self._data.size(task.id), self._keeping.expires()
            if self._store.complete(task.id, seconds=made.seconds, warnings=warnings, size=size, expires=expires):
                self._written = True
                self._log.event("job_completed", job=task.id, model=task.model, seconds=made.seconds)
            else:  # deleted in the last moment
                self._data.remove(task.id)
            self._live.drop(task.id)

        self._unsettled.append(settle)

    def _fail(self, id: str, code: str, why: str) -> None:
        def settle() -> None:
            if self._store.fail(id, code=code, message=why, expires=self._keeping.expires()):
                self._metrics.failed(code)
                self._log.event("job_failed", job=id, code=code, why=why)
            self._data.remove(id)
            self._live.drop(id)

        self._unsettled.append(settle)

    def _bury(self, worker: ServiceWorker, why: str | None = None) -> None:
        """Put a new process in a dead one's place, unless that was of no use before."""
        how = worker.end()
        how = how if why is None else why.rstrip(".")
        worker.crashes += 1
        self._metrics.crashed()
        self._log.event("worker_crashed", worker=worker.name, how=how)
        if worker.task is not None:
            self._crashed(worker.done().id, how)
        if worker.crashes >= CRASHES or self.draining:
            self._unable = f"{worker.name} was given up, for it crashed {worker.crashes} times in a row ({how})."
            self.workers.remove(worker)
        else:
            worker.start()

    def _waits_again(self, id: str) -> None:
        """The job was begun, and nobody makes it any more."""

        def settle() -> None:
            self._data.remove_results(id)
            if not self._store.requeue(id):  # deleted in the meantime
                self._data.remove(id)
            self._live.drop(id)

        self._unsettled.append(settle)

    def _crashed(self, id: str, how: str) -> None:
        """The worker died of a job, or with it: it is tried once again."""

        def settle() -> None:
            job = self._store.get(id)
            if job is None:  # deleted in the meantime
                self._data.remove(id)
            else:
                self._data.remove_results(id)
            if job is not None and job.crashes:
                self._fail(id, "worker_crashed", f"The process that made it ended twice ({how}); change the video.")
            elif job is not None:
                self._store.requeue(id, crashed=True)
            self._live.drop(id)

        self._unsettled.append(settle)

    def _end(self) -> None:
        """End the workers; what they were making waits for the next service."""
        self._stop = self._stop or time.monotonic()
        for worker in self.workers:
            worker.dismiss()
        deadline = time.monotonic() + _PATIENCE
        for worker in self.workers:
            worker.end(deadline)
            if worker.task is not None:
                self._data.remove_results(worker.done().id)
        with contextlib.suppress(sqlite3.Error):  # or the next service finds it so
            self._settle()
            self._store.recover()
            self._sync()
        self._live.close()


_CODES: Final = {
    Cause.JOB: "generation_failed",
    Cause.MEMORY: "out_of_memory",
    Cause.DISK: "disk_full",
}
