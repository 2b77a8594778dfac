"""What the service and the processes that make its videos tell one another, beside `runtime.batch.messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.serve.uploads import Kept

LOADING: Final = "loading"
ENCODING: Final = "encoding"
SAMPLING: Final = "sampling"
DECODING: Final = "decoding"


@dataclass(frozen=True, kw_only=True)
class Work:
    """A video to make.

    Attributes:
        id: of the video.
        model: name of the bundle that makes it.
        fields: of the job, as they were read from the request.
        video: where the MP4 goes.
        thumbnail: where a PNG of its middle frame goes.
        uploads: files that came with the request.
        watched: whether somebody wants to see previews of it; see `Watched`.
    """

    id: str
    model: str
    fields: Mapping[str, Any]
    video: Path
    thumbnail: Path
    uploads: Kept = field(default_factory=Kept)
    watched: bool = False


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """Nobody wants the video any more."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Somebody wants to see previews of the video, or nobody does any more."""

    id: str
    watched: bool


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a video is going to look like, by a step on the way.

    Attributes:
        step: that has finished, from 1 on.
        png: of its middle frame.
    """

    step: int
    png: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a video is.

    Attributes:
        stage: ``loading``, ``encoding``, ``sampling`` or ``decoding``.
        step: steps that have finished, of ``steps``.
        model: large or small, of the step that finished last; empty before the first.
        frames: that are decoded and written, of ``of_frames``.
        seconds_left: of sampling, by the steps so far; None before the first.
        plan: the model of every step.
    """

    stage: str
    step: int = 0
    steps: int = 0
    model: str = ""
    frames: int = 0
    of_frames: int = 0
    seconds_left: float | None = None
    plan: tuple[str, ...] = ()

    @property
    def percent(self) -> int:
        """Of the whole, from 0 to 99: sampling is counted as nine tenths of it, decoding as the rest."""
        sampled = self.step / self.steps if self.steps else 0.0
        decoded = self.frames / self.of_frames if self.of_frames else 0.0
        return min(99, int(90 * sampled + 10 * decoded))


@dataclass(frozen=True, kw_only=True)
class Told:
    """Progress, a preview, or a warning, of a video."""

    id: str
    progress: Progress | None = None
    preview: Preview | None = None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """A video and its thumbnail are whole.

    Attributes:
        seconds: by stage, as `FinishedEvent` tells them.
        calls: of each model's engine that were made.
        full: calls that there would be if no cache left one out.
        texts: that were encoded, and that were remembered from videos before.
    """

    id: str
    seconds: Mapping[str, float]
    calls: Mapping[str, int] = field(default_factory=dict)
    full: Mapping[str, int] = field(default_factory=dict)
    texts: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """A video was given up, and nothing of it is there."""

    id: str


Answer = Ready | Unable | Told | Made | Failed | Cancelled
