"""The process that makes videos for `workers`: what it opens, what it is told, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.batch.messages import Failed, Finished, Message, MessageConsole, Ready, Unable
from flowblending.runtime.batch.tasks import Cause, Task, cause_of
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.signals import leave_signals_to_parent


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """A place for one worker.

    Attributes:
        name: for messages.
        bundle: its folder.
        device: ``cpu`` or ``cuda``.
        gpu: what CUDA_VISIBLE_DEVICES is for it; None on the CPU.
        threads: of ONNX Runtime on the CPU.
    """

    name: str
    bundle: Path
    device: str
    gpu: str | None = None
    threads: int | None = None


class _Stop:
    """A signal handler that unwinds once, so that what is being written is removed."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: object) -> None:  # noqa: ARG002 - what handlers get
        if not self.asked:
            self.asked = True
            sys.exit(1)


def serve(config: WorkerConfig, connection: Connection) -> None:
    """The worker's process: ignores Ctrl-C and SIGHUP, and ends when it is terminated or told so."""
    stop = _Stop()
    leave_signals_to_parent()
    signal.signal(signal.SIGTERM, stop)
    if config.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = config.gpu
    try:
        _work(config, connection)
    except Exception:
        # The signal may have come anywhere, amid the import of a library that makes an error of its own of it.
        if not stop.asked:
            raise
        sys.exit(1)


def _work(config: WorkerConfig, connection: Connection) -> None:
    """Open the bundle, then make videos until there is no more work."""

    def tell(message: Message) -> None:
        try:
            connection.send(message)
        except OSError:
            sys.exit(1)  # whoever gave the work has gone

    try:
        bundle = open_bundle(config.bundle)
        pipeline = Pipeline(bundle=bundle, device=open_device(config.device, bundle.manifest), threads=config.threads)
    except FlowBlendingError as error:
        tell(Unable(why=str(error)))
        return
    tell(Ready())
    with contextlib.closing(pipeline):
        while task := _next(connection):
            tell(make(pipeline, task, MessageConsole(tell)))


def _next(connection: Connection) -> Task | None:
    """The next task; None when there is none, or nobody to give one."""
    try:
        task: Task | None = connection.recv()
    except (EOFError, OSError):
        return None
    return task


def make(pipeline: Pipeline, task: Task, console: MessageConsole) -> Finished | Failed:
    """Make one video, and tell how it ended."""
    try:
        outcome = generate(pipeline, task.job, task.out, console)
    except FlowBlendingError as error:
        return Failed(why=str(error), cause=cause_of(error))
    except MemoryError:
        return Failed(why="Memory ran out; use fewer workers, or make a smaller video.", cause=Cause.MEMORY)
    return Finished(seconds=outcome.seconds["total"])
