"""A batch by several processes of this machine, one engine pair each: one per GPU, or several on the CPU's cores.

Each worker has a pipe of its own and is given one task at a time, so that one that dies, of whatever, takes nothing
with it that another needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, TypeAlias

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.gpu import gpu_count
from flowblending.engine.backends.tensor import CPU
from flowblending.runtime.batch.messages import Doing, Failed, Finished, Message, Ready, Unable, Warned
from flowblending.runtime.batch.process import WorkerConfig, WorkerProcess
from flowblending.runtime.batch.tasks import Batch, Cause, Task
from flowblending.runtime.batch.worker import serve
from flowblending.runtime.machine_options import MachineSettings
from flowblending.system.console import Board, Console
from flowblending.system.processors import processors
from flowblending.system.temporary import sweep

CRASHES: Final = 3
"""A worker that has died so many times without a video between is not started again."""

_PATIENCE: Final = 15.0
"""Seconds that workers have to remove what they were writing when everything ends; one engine call may go on."""

_Worker: TypeAlias = WorkerProcess[Task, Message]


def plan_workers(count: int, device: str, machine: MachineSettings) -> list[WorkerConfig]:
    """Places for ``count`` workers: a GPU each, or an equal share of the CPU's cores.

    Raises:
        UsageError: there are fewer GPUs.
    """
    if device == CPU:
        machine = dataclasses.replace(machine, threads=machine.threads or max(1, processors() // count))
        return [WorkerConfig(name=f"worker {n}", machine=machine) for n in range(1, count + 1)]
    gpus = gpu_count()
    if not gpus:
        raise UsageError(
            "Workers with a GPU each were asked for, but no GPU is visible; run it on a machine with GPUs, or leave "
            "out --device cuda."
        )
    if count > gpus:
        raise UsageError(
            f"{count} workers were asked for, but {gpus} GPU{'s are' if gpus != 1 else ' is'} visible; "
            f"use --workers {gpus}."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    return [WorkerConfig(name=f"worker {n}", gpu=gpu, machine=machine) for n, gpu in enumerate(names, start=1)]


def run_workers(configs: Sequence[WorkerConfig], bundle: Path, device: str, batch: Batch, console: Console) -> int:
    """Make a batch's videos; returns the exit code.

    A task whose worker dies is given to another one once. When this is left by an exception, Ctrl-C among them, the
    workers have ended and nothing half-written is there.

    Raises:
        FlowBlendingError: no worker can work here.
    """
    workers: list[_Worker] = []
    with (
        console.board("videos", total=batch.unfinished, rows=[config.name for config in configs]) as board,
        _ended(workers),
    ):
        for config in configs:
            workers.append(_Worker(config, serve, bundle, device))
        while batch.unfinished and workers:
            for worker in workers:
                if worker.idle:
                    task = batch.take(worker.name, alone=not any(each.ready for each in workers if each is not worker))
                    if task is not None:
                        worker.give(task)
            ready = wait([worker.connection for worker in workers])
            for worker in [each for each in workers if each.connection in ready]:
                if not _hear(worker, batch, console, board, alone=len(workers) == 1):
                    workers.remove(worker)
            board.left(batch.unfinished)
    return batch.finish()


def _hear(worker: _Worker, batch: Batch, console: Console, board: Board, *, alone: bool) -> bool:
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


def _bury(worker: _Worker, batch: Batch, console: Console, why: str | None = None) -> bool:
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


@contextlib.contextmanager
def _ended(workers: list[_Worker]) -> Iterator[None]:
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
