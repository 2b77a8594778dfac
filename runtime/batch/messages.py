"""What a worker tells whoever gives it work, in this machine's processes and in a cluster's alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flowblending.runtime.batch.tasks import Cause
from flowblending.system.console import Console

_PERIOD = 0.1
"""Seconds between two reports of progress: more of them could not be read."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The worker waits for its first task."""


@dataclass(frozen=True, kw_only=True)
class Unable:
    """The worker cannot work here, and ends."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Doing:
    """Progress: ``done`` steps or frames of ``of``, which is 0 when nobody knows."""

    what: str
    done: int = 0
    of: int = 0


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something the user should not miss."""

    line: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The task's video is whole."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The task cannot be done, and would fail again; as would others that share the cause."""

    why: str
    cause: Cause = Cause.JOB


Message = Ready | Unable | Doing | Warned | Finished | Failed


class MessageConsole(Console):
    """A console that shows nothing, and tells somebody else instead."""

    def __init__(self, tell: Callable[[Doing | Warned], None]) -> None:
        super().__init__(quiet=True)
        self._tell = tell
        self._last = 0.0

    def warn(self, line: str) -> None:
        """Tell the line."""
        self._tell(Warned(line=line))

    @contextmanager
    def phase(self, title: str) -> Iterator[Callable[[str], None]]:
        """Tell the title."""
        self._tell(Doing(what=title))
        yield lambda _: None

    @contextmanager
    def progress(self, title: str, *, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Tell how far it is, now and then."""
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            self._now_and_then(Doing(what=title, done=done, of=total))

        yield advance

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[int, str, float], None]]:
        """Tell the step, now and then."""

        def advance(done: int, model: str, seconds: float) -> None:  # noqa: ARG001 - the interface of Console.steps
            self._now_and_then(Doing(what=f"sampling {model[0].upper()}", done=done, of=total))

        yield advance

    def _now_and_then(self, doing: Doing) -> None:
        now = time.monotonic()
        if now - self._last >= _PERIOD:
            self._last = now
            self._tell(doing)
