"""What the service says of itself: one JSON object a line on standard error. Prompts are in none of them."""

from __future__ import annotations

import json
import sys
import threading
import time


class Log:
    """The lines.

    Args:
        quiet: whether only what went wrong is told.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()

    def event(self, event: str, **about: object) -> None:
        """Something has happened."""
        if self._quiet and not event.endswith(("_failed", "_crashed", "_unable", "_error")):
            return
        seconds = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03}Z"
        line = json.dumps({"time": stamp, "event": event, **about}, ensure_ascii=True, default=str)
        with self._lock:
            try:
                print(line, file=sys.stderr, flush=True)
            except OSError:
                return  # whoever read it has gone
