"""A batch on a Ray cluster: an actor with an engine pair per GPU, or per share of a node's cores.

Every node needs this package and the bundle, at the same path. Videos come back as bytes and are written by the
process that was started, so that nodes need no folder in common.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from flowblending import FlowBlendingError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.ray_actors import Maker, ProgressBoard, RenderedVideo, Setting
from flowblending.runtime.batch.tasks import Batch, Cause, Task, cause_of
from flowblending.runtime.batch.workers import CRASHES
from flowblending.runtime.cluster.connection import alive, connected, how_it_died, import_ray
from flowblending.runtime.cluster.node import NodeBundle
from flowblending.runtime.cluster.share import ClusterOptions, Share, plan_share
from flowblending.system.console import Board, Console
from flowblending.system.whole_file import write_whole

_PERIOD: Final = 0.5
"""Seconds between two looks at the workers' progress."""


def run_on_ray(bundle: Bundle, batch: Batch, options: ClusterOptions, console: Console) -> int:
    """Make a batch's videos; returns the exit code.

    A task whose worker dies is given to another one once.

    Raises:
        UsageError: a cluster that is too small.
        FlowBlendingError: Ray is not installed, there is no such cluster, or no worker can work.
    """
    ray = import_ray("use --workers")
    with connected(ray, options.address, console):
        share = plan_share(options, [bundle.manifest], [node["Resources"] for node in alive(ray)])
        pool = _Pool(ray, share, bundle, console)
        rows = [worker.name for worker in pool.workers]
        with console.board("videos", total=batch.unfinished, rows=rows) as board:
            while batch.unfinished and pool.workers:
                pool.turn(batch, board)
                board.left(batch.unfinished)
        pool.close()
    return batch.finish()


class _RayWorker:
    """An actor, as the one that gives it work sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.actor: Any = None
        self.ready = False
        self.task: Task | None = None
        self.crashes = 0


class _Pool:
    """The actors, and the calls that they have not answered yet."""

    def __init__(self, ray: Any, share: Share, bundle: Bundle, console: Console) -> None:
        self._ray = ray
        self._console = console
        self._share = share
        self._bundle = bundle
        self._calls: dict[Any, _RayWorker] = {}
        self._board = ray.remote(ProgressBoard).options(num_cpus=0).remote() if console.live else None
        self.workers = [_RayWorker(f"worker {number}") for number in range(1, share.count + 1)]
        for worker in self.workers:
            self._start(worker)

    def _start(self, worker: _RayWorker) -> None:
        setting = Setting(
            name=worker.name,
            bundle=NodeBundle.of(self._bundle),
            device=self._share.device,
            machine=self._share.machine,
        )
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus, "scheduling_strategy": "SPREAD"}
        worker.ready = False
        worker.actor = self._ray.remote(Maker).options(**options).remote(setting, self._board)
        self._calls[worker.actor.open.remote()] = worker

    def turn(self, batch: Batch, board: Board) -> None:
        """Give tasks to those who wait for one, and act on the calls that were answered within a moment."""
        for worker in self.workers:
            if worker.ready and worker.task is None:
                others = any(each.ready for each in self.workers if each is not worker)
                worker.task = batch.take(worker.name, alone=not others)
                if worker.task is not None:
                    call = worker.actor.make.remote(worker.task.number, worker.task.job, worker.task.out.name)
                    self._calls[call] = worker
        answered, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_PERIOD)
        for call in answered:
            worker = self._calls.pop(call)
            try:
                answer = self._ray.get(call)
            # Not only the actor's end: a lost object, a node that went, or what the actor itself did not expect.
            except self._ray.exceptions.RayError as error:
                self._bury(worker, batch, how_it_died(error))
            else:
                self._hear(worker, answer, batch)
        if self._board is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                for name, doing in self._ray.get(self._board.read.remote(), timeout=_PERIOD).items():
                    board.show(name, doing.what, doing.done, doing.of)

    def _hear(self, worker: _RayWorker, answer: Ready | Unable | RenderedVideo | Failed, batch: Batch) -> None:
        if isinstance(answer, Ready):
            worker.ready = True
            return
        if isinstance(answer, Unable):
            if len(self.workers) == 1:
                raise FlowBlendingError(answer.why)
            self._console.warn(f"{worker.name} cannot work: {answer.why}")
            self.workers.remove(worker)
            return
        if isinstance(answer, Failed) and answer.cause in {Cause.DEVICE, Cause.DISK}:
            # The node's own, where videos are not kept: another one may do better.
            self._bury(worker, batch, answer.why.rstrip("."))
            return
        task, worker.task = worker.task, None
        assert task is not None
        worker.crashes = 0
        if isinstance(answer, Failed):
            batch.failed(task, answer.why, answer.cause)
            return
        for line in answer.warnings:
            self._console.warn(f"line {task.number}: {line}")
        try:
            write_whole(task.out, answer.content)
        except FlowBlendingError as error:
            batch.failed(task, str(error), cause_of(error))
        else:
            batch.made(task, answer.seconds)

    def _bury(self, worker: _RayWorker, batch: Batch, how: str) -> None:
        """Put a new actor in a dead one's place, unless that was of no use before."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)
        worker.crashes += 1
        task, worker.task = worker.task, None
        if task is not None:
            batch.crashed(task, worker.name, how)
        if worker.crashes < CRASHES:
            self._start(worker)
            return
        self._console.warn(f"{worker.name} was given up, for it crashed {worker.crashes} times in a row ({how}).")
        self.workers.remove(worker)

    def close(self) -> None:
        """End the actors."""
        for worker in self.workers:
            self._ray.kill(worker.actor)
