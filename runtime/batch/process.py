"""A worker's process from both its ends: as the one that gives it work sees it, and how it begins and ends itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.system.signals import ignored_by_children, leave_signals_to_parent

Task = TypeVar("Task")
Message = TypeVar("Message")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """A place for one worker.

    Attributes:
        name: for messages.
        gpu: what CUDA_VISIBLE_DEVICES is for it; None on the CPU.
        machine: how it uses it.
    """

    name: str
    gpu: str | None = None
    machine: MachineSettings = DEFAULTS


class Worker(ABC, Generic[Task, Message]):
    """Somebody who works on a task at a time, as the one that gives the work sees it.

    Attributes:
        name: for messages.
        connection: from which its messages come.
        ready: whether it can be given a task; set by whoever hears so.
        task: what it works on.
        crashes: how often it has died since its last success.
    """

    connection: Connection

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False
        self.crashes = 0
        self.task: Task | None = None
        self.start()

    @abstractmethod
    def start(self) -> None:
        """Begin, or begin anew when it has died; it tells when it is ready."""

    @abstractmethod
    def send(self, what: object) -> None:
        """Send it a task, or something about its task. If it has died meanwhile, its connection says so next."""

    @abstractmethod
    def dismiss(self) -> None:
        """Ask it to end: at once if it waits for a task, as soon as it has tidied up if not."""

    @abstractmethod
    def end(self, deadline: float = 0.0) -> str:
        """Wait for its end, which is near, and say how it was."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Of its process; None if it has none on this machine."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return self.ready and self.task is None

    def give(self, task: Task) -> None:
        """Give it a task."""
        self.task = task
        self.send(task)

    def receive(self) -> Message | None:
        """Its next message; None when it has died."""
        message: Message | None = receive(self.connection)
        return message

    def busy(self) -> Task:
        """Its task."""
        assert self.task is not None, "it has a task"
        return self.task

    def done(self) -> Task:
        """Its task, which it has no longer."""
        task = self.busy()
        self.task = None
        return task


class WorkerProcess(Worker[Task, Message]):
    """A process in a place, which may be started again when it has died.

    Args:
        config: the place.
        target: what it runs, with ``config``, ``arguments``, and its end of a pipe: it takes a `Task` at a time and
            tells `Message`, until it is given None.
    """

    def __init__(self, config: WorkerConfig, target: Callable[..., None], *arguments: object) -> None:
        self._config = config
        self._target = target
        self._arguments = arguments
        super().__init__(config.name)

    def start(self) -> None:
        """Start the process. It ignores Ctrl-C and SIGHUP from its first moment: this process ends it."""
        self.ready = False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # A daemon: should this program end without ending it, Python does, and does not wait for it.
        self._process: BaseProcess = context.Process(
            target=self._target, args=(self._config, *self._arguments, theirs), name=self.name, daemon=True
        )
        with ignored_by_children():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def send(self, what: object) -> None:
        """Send it something. If it has died meanwhile, its pipe says so next."""
        with contextlib.suppress(OSError):
            self.connection.send(what)

    def dismiss(self) -> None:
        """Ask it to end: at once if it waits for a task, as soon as it has tidied up if not."""
        self.send(None)
        if not self.idle:
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


class _Stop:
    """A signal handler that unwinds once, so that what is being written is removed."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: object) -> None:  # noqa: ARG002 - what handlers get
        if not self.asked:
            self.asked = True
            sys.exit(1)


def run_worker(config: WorkerConfig, work: Callable[[], None]) -> None:
    """The process: ignores Ctrl-C and SIGHUP, has the place's GPU, and ends when it is terminated or ``work`` does."""
    stop = _Stop()
    leave_signals_to_parent()
    signal.signal(signal.SIGTERM, stop)
    if config.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = config.gpu
    try:
        work()
    except Exception:
        # The signal may have come anywhere, amid the import of a library that makes an error of its own of it.
        if not stop.asked:
            raise
        sys.exit(1)


def receive(connection: Connection) -> Any:
    """What the other end sent next; None when it sent that, or has gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def tell(connection: Connection, message: object) -> None:
    """Send a message to whoever gave the work; when they have gone, this process ends."""
    try:
        connection.send(message)
    except OSError:
        sys.exit(1)
