"""SIGTERM and SIGHUP end a program as Ctrl-C does: they unwind it, so that nothing is left half-written.

``docker stop`` sends SIGTERM to a container's first process, for which the system's own action for a signal, to end
the process, does not apply: without a handler it would be ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
        signal: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


class StopSignals:
    """What asked the program to end, if something did. Made by `stop_on_signals`."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what handlers get
        """Unwind the program; a supervisor's second signal does not interrupt that, a second Ctrl-C does."""
        first, self.asked = self.asked is None, self.asked or signal.Signals(number)
        if first or number == signal.SIGINT:
            raise Stopped(number)

    def install(self) -> None:
        """Handle the signals from now on, but for those that whoever started the program chose to ignore (nohup)."""
        for each in (signal.SIGINT, *_ENDING):
            if signal.getsignal(each) is not signal.SIG_IGN:
                signal.signal(each, self.stop)


@contextmanager
def stop_on_signals() -> Iterator[StopSignals]:
    """Handle the signals in a block of the main thread; in another one, which gets none, nothing is done."""
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    with own_handlers():
        signals.install()
        yield signals


def leave_signals_to_parent() -> None:
    """Ignore what a terminal sends to a whole group of processes: the parent ends this one when it has to end."""
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes that are started in the block ignore what a terminal sends to all of a group, SIGINT and SIGHUP."""
    with own_handlers():
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        yield


@contextmanager
def own_handlers() -> Iterator[None]:
    """Put back the handlers that a library replaces in the block, as ``ray.init`` does."""
    before = {each: signal.getsignal(each) or signal.SIG_DFL for each in (signal.SIGINT, *_ENDING)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
