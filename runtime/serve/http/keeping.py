"""How long the service keeps what it made."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How long results stay.

    Attributes:
        seconds: after the end of a job; None for ever.
        most_bytes: of all videos together, beyond which the oldest go; None for any.
    """

    seconds: float | None
    most_bytes: int | None

    def expires(self) -> float | None:
        """When what ends now goes."""
        return None if self.seconds is None else time.time() + self.seconds
