"""How far the videos in the making are, for requests that ask and for those that wait to be told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowblending.runtime.serve.http.messages import Preview, Progress


class Live:
    """Progress by video. Told by the thread that knows the workers, read and waited for in the event loop.

    Attributes:
        closed: whether nothing more will be told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: dict[str, Progress] = {}
        self._previews: dict[str, Preview] = {}
        self._watching: Counter[str] = Counter()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Know the loop in which the waiting wait."""
        self._loop = loop

    def progress(self, id: str) -> Progress | None:
        """How far a video is; None if no worker has it."""
        with self._lock:
            return self._progress.get(id)

    def put(self, id: str, progress: Progress) -> None:
        """It is so far."""
        with self._lock:
            self._progress[id] = progress
        self.tell(id)

    def preview(self, id: str) -> Preview | None:
        """The newest preview of a video in the making; None where nobody watches it, or before the first."""
        with self._lock:
            return self._previews.get(id)

    def show(self, id: str, preview: Preview) -> None:
        """It is going to look like this."""
        with self._lock:
            if id not in self._watching:
                return
            self._previews[id] = preview
        self.tell(id)

    def is_watched(self, id: str) -> bool:
        """Whether anybody wants to see previews of a video."""
        with self._lock:
            return id in self._watching

    @contextmanager
    def watching(self, id: str, changed: Callable[[], None]) -> Iterator[None]:
        """Previews of a video are wanted as long as this lasts.

        Args:
            changed: called where that is new, and where it is over.
        """
        with self._lock:
            self._watching[id] += 1
            first = self._watching[id] == 1
        if first:
            changed()
        try:
            yield
        finally:
            with self._lock:
                self._watching[id] -= 1
                last = not self._watching[id]
                if last:
                    del self._watching[id]
                    self._previews.pop(id, None)
            if last:
                changed()

    def drop(self, id: str) -> None:
        """No worker has it any more."""
        with self._lock:
            self._progress.pop(id, None)
            self._previews.pop(id, None)
        self.tell(id)

    def tell(self, id: str) -> None:
        """Something about it has changed."""
        with self._lock:
            events = tuple(self._waiting.get(id, ()))
        if events and self._loop is not None and not self._loop.is_closed():
            for event in events:
                self._loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Wake everybody: the service ends."""
        self.closed = True
        with self._lock:
            ids = tuple(self._waiting)
        for id in ids:
            self.tell(id)

    @contextmanager
    def changes(self, id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something about a video has changed."""
        event = asyncio.Event()
        with self._lock:
            self._waiting.setdefault(id, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._waiting[id].discard(event)
                if not self._waiting[id]:
                    del self._waiting[id]
