"""Work that is handed to a thread of its own, in order, so that whoever makes it need not wait until it is done."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Feed(Generic[_Item]):
    """Calls a function with items one after the other, in a thread that lives from the first item to the end.

    What the function raises is raised to whoever puts the next items or finishes; no later item is taken.

    Args:
        take: is called with every item, by one thread.
        room: items that may wait; more are not accepted until there are no more than that.
    """

    def __init__(self, take: Callable[[_Item], None], room: int) -> None:
        self._take = take
        self._room = room
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, items: Iterable[_Item]) -> None:
        """Hand over items, once there is room.

        Raises:
            BaseException: what the function raised for an earlier item.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) <= self._room or self._error is not None)
            self._raise()
            self._items.extend(items)
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when every item has been taken, and the thread is gone.

        Raises:
            BaseException: what the function raised.
        """
        self._end()
        self._raise()

    def stop(self) -> None:
        """Drop the items that wait; return when the one in hand is done, and the thread is gone. Twice is harmless."""
        with self._changed:
            self._items.clear()
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            # One whose start a signal interrupted cannot be joined, and finds that there is nothing to do.
            with contextlib.suppress(RuntimeError):
                self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            try:
                self._take(item)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._items.clear()
                    self._changed.notify_all()
                return
