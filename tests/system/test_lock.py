"""Locks between processes: whom they exclude, whom they tell, and what they do when their file is removed."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from flowblending.system.lock import exclusive, exclusive_if_free, in_use, shared


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@contextmanager
def free(path: Path) -> Iterator[None]:
    with exclusive_if_free(path) as held:
        assert held
        yield


@pytest.mark.parametrize("take", [exclusive, free])
def test_it_excludes_everybody_as_long_as_the_block_lasts(
    tmp_path: Path, take: Callable[[Path], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "lock"
    assert not in_use(path)
    with take(path):
        assert in_use(path)
        with exclusive_if_free(path) as held:
            assert not held
        assert in_use(path)
    assert path.is_file()
    assert not in_use(path)
    with pytest.raises(KeyError), take(path):
        raise KeyError
    assert not in_use(path)


def test_who_waits_is_told_once_and_goes_on_afterwards(tmp_path: Path) -> None:
    path, told, entered = tmp_path / "lock", [], threading.Event()
    waiting = threading.Event()

    def wait() -> None:
        def tell() -> None:
            told.append("waiting")
            waiting.set()

        with exclusive(path, waiting=tell):
            entered.set()

    with exclusive(path, waiting=lambda: told.append("nobody was there")):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(60)
        assert not entered.wait(0.1)
    thread.join(60)
    assert entered.is_set()
    assert told == ["waiting"]


@pytest.mark.parametrize("take", [exclusive, free])
@pytest.mark.parametrize("times", [1, 3])
def test_a_lock_on_a_file_that_was_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path], AbstractContextManager[None]], times: int
) -> None:
    """Whoever held it removes the file between opening and locking it: the next to come would lock another file."""
    path, removed, flock = tmp_path / "lock", 0, fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        nonlocal removed
        if removed < times:
            path.unlink()
            removed += 1
        flock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        held = take(path)
        held.__enter__()
    try:
        assert removed == times
        assert path.is_file()
        assert in_use(path)
        with exclusive_if_free(path) as second:
            assert not second
    finally:
        held.__exit__(None, None, None)
    assert not in_use(path)


def test_several_may_keep_a_file_in_use(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        shared(path)
    path.touch()
    first, second = shared(path), shared(path)
    assert in_use(path)
    os.close(first)
    assert in_use(path)
    with exclusive_if_free(path) as held:
        assert not held
    os.close(second)
    assert not in_use(path)
    with exclusive_if_free(path) as held:
        assert held


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    for take in (exclusive, exclusive_if_free):
        with pytest.raises(FileNotFoundError), take(tmp_path / "none/lock"):
            pass
