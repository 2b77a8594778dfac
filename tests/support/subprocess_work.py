"""Work for processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from flowblending import UsageError


def modules(prefix: str, progress: Callable[[str], None]) -> list[str]:
    """The names of the modules there that begin with a prefix."""
    progress("looking")
    return sorted(name for name in sys.modules if name.startswith(prefix))


def refuse(what: str, _progress: Callable[[str], None]) -> None:
    """An error that a user can mend."""
    raise UsageError(f"{what} is wrong.")


def divide(by: int, _progress: Callable[[str], None]) -> float:
    """An error that nobody expected."""
    return 1 / by


def leave(code: int, _progress: Callable[[str], None]) -> None:
    """End without an answer, having said something."""
    print("so long", flush=True)
    os._exit(code)


def kill(number: int, _progress: Callable[[str], None]) -> None:
    """End by a signal."""
    os.kill(os.getpid(), signal.Signals(number))


def busy(_: object, progress: Callable[[str], None]) -> None:
    """Say so, then which process this is, and take a minute."""
    progress("ready")
    progress(str(os.getpid()))
    time.sleep(60)
