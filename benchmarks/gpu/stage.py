"""What a stage is: a list of measurements, each kept as soon as it is there, within a time limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import FAILED, FINISHED, STOPPED, Record
from flowblending import FlowBlendingError

Results = Mapping[str, Mapping[str, Any]]
"""What a stage has measured so far, by key."""


class Unavailable(FlowBlendingError):
    """What a stage measures is not installed, or not for this GPU: it is left out."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One measurement of a stage.

    Attributes:
        key: its name in the stage's record.
        run: makes it; called with what was measured before, and gives what JSON can hold.
        expected: seconds that it will take, from what was measured before; None leaves it to the longest one so far.
        there: whether what it has made on this machine's disk is still there; it is made again where it is not.
    """

    key: str
    run: Callable[[Results], dict[str, Any]]
    expected: Callable[[Results], float] | None = None
    there: Callable[[], bool] = lambda: True


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage is given.

    Attributes:
        folder: for checkpoints, graphs and plans, which may be gone the next time.
        tiny: whether to try everything on models of a few layers, where figures mean nothing.
        seconds: that one run of a stage may take.
        closing: for what measurements share, and is to be closed after the last.
    """

    folder: Path
    tiny: bool
    seconds: float
    closing: contextlib.ExitStack


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage.

    Attributes:
        name: of its file, and for ``--stage``.
        title: what it measures.
        items: its measurements, in order; raises `Unavailable` where it has to be left out.
    """

    name: str
    title: str
    items: Callable[[Work], Iterable[Item]]


def run_items(stage: Stage, work: Work, record: Record, save: Callable[[], None], end: float) -> None:
    """Make the measurements that are not there yet, and say in the record how far it came.

    Args:
        record: is filled.
        save: keeps the record.
        end: on the clock of `time.monotonic`, when the stage is to be over.
    """
    longest = 0.0
    record.failures.clear()
    for item in sorted(stage.items(work), key=lambda item: item.key in record.ended):
        if item.key in record.items and item.there():
            continue
        begun = time.monotonic()
        expected = longest if item.expected is None else item.expected(record.items)
        if begun + expected > end:
            record.state = STOPPED
            record.sentence = (
                f"{item.key} may take {expected:.0f} s and {max(0.0, end - begun):.0f} s were left; run it again to "
                "go on."
            )
            return
        record.running = item.key
        save()
        try:
            record.items[item.key] = {**item.run(record.items), "took": time.monotonic() - begun}
            record.ended = [key for key in record.ended if key != item.key]
        except Exception as error:  # libraries of every kind: whatever it is, what comes next may work
            record.items.pop(item.key, None)
            record.failures[item.key] = sentence_of(error)
        record.running = None
        longest = max(longest, time.monotonic() - begun)
        save()
    record.state = FAILED if record.failures else FINISHED
    record.sentence = "; ".join(f"{key}: {why}" for key, why in record.failures.items()) or None


def sentence_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:600]
    return text if isinstance(error, FlowBlendingError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
