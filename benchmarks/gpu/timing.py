"""Seconds of calls on a device's own clock, and how much of a GPU's memory is taken at most."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator, Mapping

from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.protocol import Engine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device

_INTERVAL = 0.05


def seconds_per_call(
    device: Device, engine: Engine, tensors: Mapping[str, Tensor], *, most: float, calls: int = 10
) -> dict[str, float]:
    """Call an engine once to warm it up, and then some times more.

    Args:
        most: seconds after which no further call is made, but for the first two.
        calls: how often at most.

    Returns:
        ``first``, ``median``, ``least`` and ``most`` seconds, and how many ``calls`` the last three are of.
    """
    marks = device.mark(), device.mark()

    def once() -> float:
        with device.current():
            marks[0].record()
            engine.run(tensors, device.stream)
            marks[1].record()
        marks[1].wait()
        return device.seconds(*marks)

    first = once()
    times = [once()]
    while len(times) < calls and sum(times) < most:
        times.append(once())
    return summary(first, times)


def summary(first: float, times: list[float]) -> dict[str, float]:
    """What is told of the times of calls."""
    return {
        "first": first,
        "median": statistics.median(times),
        "least": min(times),
        "most": max(times),
        "calls": len(times),
    }


class Peak:
    """The most bytes that were taken of a GPU's memory, by whomever, looked at 20 times a second.

    Args:
        before: bytes that were free at first; None without a GPU.
    """

    def __init__(self, before: int | None) -> None:
        self._before = before
        self._least = before

    @property
    def bytes(self) -> int | None:
        """More than before; None without a GPU."""
        if self._least is None or self._before is None:
            return None
        return self._before - self._least

    def look(self) -> None:
        """Look now."""
        free = free_memory()
        if free is not None and self._least is not None:
            self._least = min(self._least, free)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look until the block ends."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_INTERVAL):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.look()
