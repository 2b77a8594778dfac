"""The service's end in the cluster: an actor that is there as long as the service is."""

from __future__ import annotations


class Front:
    """What replicas ask the service, and what they have to say of their nodes."""

    def __init__(self) -> None:
        self._watched: set[str] = set()
        self._complaints: list[str] = []

    def watch(self, id: str, watched: bool) -> None:
        """Somebody wants to see previews of a video, or nobody does any more."""
        if watched:
            self._watched.add(id)
        else:
            self._watched.discard(id)

    def is_watched(self, id: str) -> bool:
        """Whether somebody does."""
        return id in self._watched

    def complain(self, why: str) -> None:
        """A node is of no use."""
        if why not in self._complaints:
            self._complaints.append(why)

    def complaints(self) -> list[str]:
        """Why nodes were of no use, each of them once."""
        return self._complaints
