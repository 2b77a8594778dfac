"""Stages that measure nothing, for what is done about stages that fail, die, hang or take too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import Item, Results, Stage, Unavailable, Work
from flowblending import FlowBlendingError

WHERE = "tests.support.gpu_stages:STAGES"


def done(folder: Path) -> list[str]:
    """What was measured in all, in order."""
    path = folder / "done"
    return path.read_text().splitlines() if path.exists() else []


def _noted(work: Work, key: str, then: Callable[[], None] = lambda: None) -> Item:
    def run(_: Results) -> dict[str, Any]:
        with (work.folder / "done").open("a") as file:
            file.write(f"{key}\n")
        then()
        return {"value": len(key)}

    return Item(key=key, run=run)


def _refuse() -> None:
    raise FlowBlendingError("The back end said no;\nask it again.")


def _die() -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(work: Work) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (work.folder / "child").write_text(str(child.pid))
    time.sleep(600)


def _good(work: Work) -> Iterator[Item]:
    yield _noted(work, "one")
    yield _noted(work, "two")


def _refuses(work: Work) -> Iterator[Item]:
    yield _noted(work, "before")
    yield _noted(work, "bad", lambda: None if (work.folder / "mended").exists() else _refuse())
    yield _noted(work, "after")


def _dies(work: Work) -> Iterator[Item]:
    yield _noted(work, "alive")
    yield _noted(work, "dead", lambda: None if (work.folder / "mended").exists() else _die())
    yield _noted(work, "later")


def _hangs(work: Work) -> Iterator[Item]:
    yield _noted(work, "quick")
    yield _noted(work, "never", lambda: _hang(work))


def _long(work: Work) -> Iterator[Item]:
    yield _noted(work, "short")
    # The second time there is more of the limit left, since the first is there already.
    item = _noted(work, "long")
    yield Item(key="long", run=item.run, expected=lambda _: 0.0 if (work.folder / "mended").exists() else 1e6)


def _absent(work: Work) -> Iterator[Item]:
    raise Unavailable("It is not installed here; install it.")
    yield _noted(work, "nothing")


def _breaks(work: Work) -> Iterator[Item]:
    raise ImportError("no module of that name")
    yield _noted(work, "nothing")


STAGES = tuple(
    Stage(name=name, title=name, items=items)
    for name, items in {
        "good": _good,
        "refuses": _refuses,
        "dies": _dies,
        "hangs": _hangs,
        "long": _long,
        "absent": _absent,
        "breaks": _breaks,
    }.items()
)
