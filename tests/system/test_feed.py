"""A thread that takes items in order: what waits for what, and where its errors go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from flowblending.system.feed import Feed

SECONDS = 10
"""Within which a thread that is not stuck has done something."""


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def feeding() -> int:
    return sum(thread.name == "feed" for thread in threading.enumerate())


def test_items_are_taken_in_order_by_one_other_thread() -> None:
    taken: list[int] = []
    threads: set[int] = set()

    def take(item: int) -> None:
        threads.add(threading.get_ident())
        taken.append(item)

    feed = Feed(take, 2)
    for start in range(0, 100, 4):
        feed.put(range(start, start + 4))
    feed.finish()
    assert taken == [*range(100)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert feeding() == 0


def test_whoever_puts_waits_while_too_many_do() -> None:
    may, taken = threading.Semaphore(0), threading.Semaphore(0)

    def take(_: int) -> None:
        may.acquire()
        taken.release()

    feed = Feed(take, 1)
    feed.put([0, 1, 2])
    late = in_thread(lambda: feed.put([3]))
    late.join(0.05)
    assert late.is_alive()  # one or two of the first are still in the queue beyond the one that may be
    may.release()
    may.release()
    late.join(SECONDS)
    assert not late.is_alive()
    may.release()
    may.release()
    feed.finish()
    assert sum(taken.acquire(blocking=False) for _ in range(5)) == 4


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("end", [True, False])
def test_an_error_reaches_whoever_puts_or_ends(failure: type[BaseException], end: bool) -> None:
    taken: list[int] = []
    done = threading.Event()

    def take(item: int) -> None:
        taken.append(item)
        if item == 1:
            done.set()
            raise failure("no room")

    feed = Feed(take, 0)
    feed.put([0, 1, 2, 3])
    assert done.wait(SECONDS)
    with pytest.raises(failure, match="no room"):
        feed.finish() if end else feed.put([4])
    feed.stop()
    assert taken == [0, 1]
    assert feeding() == 0


def test_stopping_drops_what_waits_and_waits_for_what_is_in_hand() -> None:
    began, may = threading.Event(), threading.Event()
    taken: list[int] = []

    def take(item: int) -> None:
        began.set()
        may.wait()
        taken.append(item)

    feed = Feed(take, 5)
    feed.put([0, 1, 2])
    assert began.wait(SECONDS)
    stopping = in_thread(feed.stop)
    stopping.join(0.05)
    assert stopping.is_alive()
    may.set()
    stopping.join(SECONDS)
    assert taken == [0]
    feed.stop()
    assert feeding() == 0


def test_nothing_to_do_starts_no_thread() -> None:
    feed = Feed(print, 1)
    feed.finish()
    feed.stop()
    assert feeding() == 0


def test_a_signal_amid_the_threads_start_keeps_nobody_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before the thread runs, or before it has said so."""
    feed = Feed[int](lambda _: None, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            feed.put([1])
    feed.stop()
    feed.stop()
