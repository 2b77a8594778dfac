"""A worker's process, as the service sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowblending.runtime.batch.process import WorkerConfig, WorkerProcess
from flowblending.runtime.serve.http.messages import Answer, Cancel, Watched, Work
from flowblending.runtime.serve.http.worker import work


class ServiceWorker(WorkerProcess[Work, Answer]):
    """A process that makes a service's videos.

    Attributes:
        cancelled: whether it was told to give its task up.
        watched: whether it was told that its task's previews are wanted.
        warnings: about its task so far.
    """

    def __init__(self, config: WorkerConfig, bundles: Mapping[str, Path], device: str) -> None:
        self.cancelled = self.watched = False
        self.warnings: list[str] = []
        super().__init__(config, work, dict(bundles), device)

    def give(self, task: Work) -> None:
        """Give it a task."""
        self.cancelled, self.watched, self.warnings = False, task.watched, []
        super().give(task)

    def cancel(self) -> None:
        """Tell it to give its task up at the next step."""
        if self.task is not None and not self.cancelled:
            self.cancelled = True
            self.send(Cancel(id=self.task.id))

    def watch(self, watched: bool) -> None:
        """Tell it whether its task's previews are wanted, if it does not know."""
        if self.task is not None and watched != self.watched:
            self.watched = watched
            self.send(Watched(id=self.task.id, watched=watched))
