"""Somebody who makes a service's videos, as the dispatcher sees it: a process here, or a replica elsewhere."""

from __future__ import annotations

from flowblending.runtime.batch.process import Worker
from flowblending.runtime.serve.http.messages import Answer, Cancel, Watched, Work


class ServiceWorker(Worker[Work, Answer]):
    """A worker that may be told about the video in the making.

    Attributes:
        cancelled: whether it was told to give its task up.
        watched: whether it was told that its task's previews are wanted.
        warnings: about its task so far.
    """

    cancelled = watched = False
    warnings: list[str]

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
