"""A worker's process, as the service sees it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from flowblending.runtime.batch.worker import WorkerConfig
from flowblending.runtime.serve.http.messages import Answer, Cancel, Work
from flowblending.runtime.serve.http.worker import work
from flowblending.system.signals import ignored_by_children


class WorkerProcess:
    """A process in a place, started again when it has died.

    Attributes:
        ready: whether all engines are open.
        task: what it makes.
        cancelled: whether it was told to give that up.
        crashes: how often it has died since its last video.
        warnings: about its task so far.
    """

    def __init__(self, config: WorkerConfig, bundles: Mapping[str, Path], device: str) -> None:
        self._config = config
        self._bundles = dict(bundles)
        self._device = device
        self.name = config.name
        self.crashes = 0
        self.task: Work | None = None
        self.start()

    def start(self) -> None:
        """Start the process. It ignores Ctrl-C and SIGHUP from its first moment: this process ends it."""
        self.ready = False
        self.cancelled = False
        self.warnings: list[str] = []
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        # A daemon: should this program end without ending it, Python does, and does not wait for it.
        self._process: BaseProcess = context.Process(
            target=work, args=(self._config, self._bundles, self._device, theirs), name=self.name, daemon=True
        )
        with ignored_by_children():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return self.ready and self.task is None

    def give(self, task: Work) -> None:
        """Give it a task. If it has died meanwhile, its pipe says so next."""
        self.task, self.cancelled, self.warnings = task, False, []
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def cancel(self) -> None:
        """Tell it to give its task up at the next step."""
        if self.task is not None and not self.cancelled:
            self.cancelled = True
            with contextlib.suppress(OSError):
                self.connection.send(Cancel(id=self.task.id))

    def done(self) -> Work:
        """Its task, which it has no longer."""
        assert self.task is not None, "it has a task"
        task, self.task = self.task, None
        return task

    def receive(self) -> Answer | None:
        """Its next message; None when it has died."""
        try:
            message: Answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def dismiss(self) -> None:
        """Ask it to end: at once if it waits for a task, as soon as it has tidied up if not."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        if self.task is not None or not self.ready:
            self._process.terminate()

    def end(self, deadline: float = 0.0) -> str:
        """Wait for its end, which is near, and say how it was."""
        self._process.join(max(deadline - time.monotonic(), 1.0))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
