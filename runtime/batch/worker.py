"""The process that makes videos for `workers`: what it opens, what it is told, and how it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.batch.messages import Failed, Finished, Message, MessageConsole, Ready, Unable
from flowblending.runtime.batch.process import WorkerConfig, receive, run_worker, tell
from flowblending.runtime.batch.tasks import Cause, Task, cause_of
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.pipeline import Pipeline


def serve(config: WorkerConfig, bundle: Path, device: str, connection: Connection) -> None:
    """The process of one bundle, to be run on ``cpu`` or ``cuda``; gets `Task`, tells `Message`."""
    run_worker(config, lambda: _work(config, bundle, device, connection))


def _work(config: WorkerConfig, folder: Path, device: str, connection: Connection) -> None:
    """Open the bundle, then make videos until there is no more work."""
    say: Callable[[Message], None] = partial(tell, connection)
    try:
        bundle = open_bundle(folder)
        pipeline = Pipeline(
            bundle=bundle,
            device=open_device(device, bundle.manifest),
            machine=config.machine,
        )
    except FlowBlendingError as error:
        say(Unable(why=str(error)))
        return
    say(Ready())
    with contextlib.closing(pipeline):
        while task := receive(connection):
            say(make(pipeline, task, MessageConsole(say)))


def make(pipeline: Pipeline, task: Task, console: MessageConsole) -> Finished | Failed:
    """Make one video, and tell how it ended."""
    try:
        outcome = generate(pipeline, task.job, task.out, console)
    except FlowBlendingError as error:
        return Failed(why=str(error), cause=cause_of(error))
    except MemoryError:
        return Failed(why="Memory ran out; use fewer workers, or make a smaller video.", cause=Cause.MEMORY)
    return Finished(seconds=outcome.seconds["total"])
