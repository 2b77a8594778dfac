"""A batch by several processes of this machine, one engine pair each: one per GPU, or several on the CPU's cores.

Each worker has a pipe of its own and is given one task at a time, so that one that dies, of whatever, takes nothing
with it that another needs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.gpu import gpu_count
from flowblending.engine.backends.tensor import CPU
from flowblending.runtime.batch.messages import Doing, Failed, Finished, Message, Ready, Unable, Warned
from flowblending.runtime.batch.tasks import Batch, Cause, Task
from flowblending.runtime.batch.worker import WorkerConfig, serve
from flowblending.system.console import Board, Console
from flowblending.system.signals import ignored_by_children
from flowblending.system.temporary import sweep

CRASHES: Final = 3
"""A worker that has died so many times without a video between is not started again."""

_PATIENCE: Final = 15.0
"""Seconds that workers have to remove what they were writing when everything ends; one engine call may go on."""


def plan_workers(bundle: Path, *, count: int, device: str, threads: int | None) -> list[WorkerConfig]:
    """Places for ``count`` workers: a GPU each, or an equal share of the CPU's cores.

    Raises:
        UsageError: there are fewer GPUs.
    """
    if device == CPU:
        share = threads or max(1, len(os.sched_getaffinity(0)) // count)
        return [
            WorkerConfig(name=f"worker {n}", bundle=bundle, device=device, threads=share) for n in range(1, count + 1)
        ]
    gpus = gpu_count()
    if count > gpus:
        raise UsageError(
            f"{count} workers were asked for, but {gpus} GPU{'s are' if gpus != 1 else ' is'} visible; "
            + (f"use --workers {gpus}." if gpus else "run it on a machine with GPUs.")
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    return [
        WorkerConfig(name=f"worker {n}", bundle=bundle, device=device, gpu=gpu) for n, gpu in enumerate(names, start=1)
    ]


def run_workers(configs: Sequence[WorkerConfig], batch: Batch, console: Console) -> int:
    """Make a batch's videos; returns the exit code.

    A task whose worker dies is given to another one once. When this is left by an exception, Ctrl-C among them, the
    workers have ended and nothing half-written is there.

    Raises:
        FlowBlendingError: no worker can work here.
    """
    workers: list[_ProcessWorker] = []
    with (
        console.board("videos", total=batch.unfinished, rows=[config.name for config in configs]) as board,
        _ended(workers),
    ):
        for config in configs:
            workers.append(_ProcessWorker(config))
        while batch.unfinished and workers:
            for worker in workers:
                worker.give(batch, alone=not any(each.ready for each in workers if each is not worker))
            ready = wait([worker.connection for worker in workers])
            for worker in [each for each in workers if each.connection in ready]:
                if not _hear(worker, batch, console, board, alone=len(workers) == 1):
                    workers.remove(worker)
            board.left(batch.unfinished)
    return batch.finish()


def _hear(worker: _ProcessWorker, batch: Batch, console: Console, board: Board, *, alone: bool) -> bool:
    """Act on one message of a worker, or on its death; returns whether there still is a worker in its config."""
    message = worker.receive()
    match message:
        case Doing():
            board.show(worker.name, message.what, message.done, message.of)
        case Warned():
            console.warn(f"line {worker.busy().number}: {message.line}")
        case Finished():
            batch.made(worker.done(), message.seconds)
            board.show(worker.name, "", 0, 0)
            worker.crashes = 0
        case Failed(cause=Cause.DEVICE):
            # A new process may do better, and so may another GPU.
            worker.dismiss()
            return _bury(worker, batch, console, message.why)
        case Failed():
            batch.failed(worker.done(), message.why, message.cause)
            worker.crashes = 0
        case Unable():
            worker.end()
            if alone:
                raise FlowBlendingError(message.why)
            console.warn(f"{worker.name} cannot work: {message.why}")
            return False
        case Ready():
            worker.ready = True
        case None:
            return _bury(worker, batch, console)
    return True


def _bury(worker: _ProcessWorker, batch: Batch, console: Console, why: str | None = None) -> bool:
    """Put a new worker in a dead one's config, unless that was of no use before."""
    how = worker.end()
    if why is not None:
        how = why.rstrip(".")
    worker.crashes += 1
    if worker.task is not None:
        sweep(worker.task.out)
        batch.crashed(worker.done(), worker.name, how)
    if worker.crashes >= CRASHES:
        console.warn(f"{worker.name} was given up, for it crashed {worker.crashes} times in a row ({how}).")
        return False
    worker.start()
    return True


class _ProcessWorker:
    """A process in a config, as the one that gives it work sees it."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self.name = config.name
        self.crashes = 0
        self.task: Task | None = None
        self.start()

    def start(self) -> None:
        """Start the process. It ignores Ctrl-C and SIGHUP from its first moment: this process ends it."""
        self.ready = False
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # A daemon: should this program end without ending it, Python does, and does not wait for it.
        self._process: BaseProcess = context.Process(
            target=serve, args=(self._config, theirs), name=self.name, daemon=True
        )
        with ignored_by_children():
            self._process.start()
        theirs.close()

    def give(self, batch: Batch, *, alone: bool) -> None:
        """Give it a task, if it waits for one and one waits for it."""
        if self.ready and self.task is None:
            self.task = batch.take(self.name, alone=alone)
            if self.task is not None:
                # If it has died meanwhile, its pipe says so next.
                with contextlib.suppress(OSError):
                    self.connection.send(self.task)

    def receive(self) -> Message | None:
        """Its next message; None when it has died."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def busy(self) -> Task:
        """Its task."""
        assert self.task is not None
        return self.task

    def done(self) -> Task:
        """Its task, which it has no longer."""
        task = self.busy()
        self.task = None
        return task

    def dismiss(self) -> None:
        """Ask it to end: at once if it waits for a task, as soon as it has tidied up if not."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        if self.task is not None:
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


@contextlib.contextmanager
def _ended(workers: list[_ProcessWorker]) -> Iterator[None]:
    """End every worker that is left, however the block ends."""
    try:
        yield
    finally:
        for worker in workers:
            worker.dismiss()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            try:
                worker.end(deadline)
            except KeyboardInterrupt:  # pressed again: no more patience
                deadline = 0.0
                worker.end(deadline)
            if worker.task is not None:
                sweep(worker.task.out)
