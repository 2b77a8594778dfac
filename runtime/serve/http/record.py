"""A job as the database has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

QUEUED: Final = "queued"
IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
FAILED: Final = "failed"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the database has it.

    Attributes:
        number: in the order of creation.
        id: ``video_`` and 32 hexadecimal digits.
        owner: who may see it; empty where there are no API keys.
        status: ``queued``, ``in_progress``, ``completed`` or ``failed``.
        fields: of the job, as they were read from the request.
        about: the video's ``size``, ``frames`` and ``seconds``.
        start_by: when it must have begun, or fails.
        crashes: how often a worker died of it, or with it.
        created, started, ended, expires: seconds since 1970.
        bytes: of its files.
        seconds: by stage.
        code, message: why it failed.
    """

    number: int
    id: str
    owner: str
    model: str
    status: str
    fields: Mapping[str, Any]
    about: Mapping[str, Any]
    priority: int
    start_by: float | None
    crashes: int
    created: float
    started: float | None
    ended: float | None
    expires: float | None
    bytes: int
    warnings: Sequence[str]
    seconds: Mapping[str, float]
    code: str | None
    message: str | None

    @property
    def over(self) -> bool:
        """Whether it has completed or failed."""
        return self.status in (COMPLETED, FAILED)
