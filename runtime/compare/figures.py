"""What was measured of one run, and its files: the video, the final latents and, written last, the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from flowblending import FlowBlendingError
from flowblending.runtime.media.latents import npy_bytes, read_latents
from flowblending.system.whole_file import write_whole

VIDEOS = "videos"
LATENTS = "latents"

Latents = npt.NDArray[np.float32]


class _FrozenRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Against(_FrozenRecord):
    """How near a run is to the reference's of the same prompt and noise.

    Attributes:
        error: mean squared error of the frames, in levels of 0..1.
        ssim: None where frames are smaller than its window.
        cosine: of the final latents.
        steps: cosine of the latents after every step; empty where the reference has other steps.
    """

    error: float
    ssim: float | None
    cosine: float
    steps: tuple[float, ...]


class Figures(_FrozenRecord):
    """Everything measured of one run.

    Attributes:
        stages: the schedule in full, ``L20 S20 L10``.
        computed: a character a step: 1 where its engine ran, 0 where a cache stood for it, c for the conditional
            branch alone.
        flops: of the transformers' calls, 0 where they were not counted.
        seconds: ``text``, ``sampling``, ``engines`` (of the sampling) and ``vae``; ``wall`` and ``processor``, see
            `Sampled`.
        smoothness: see `similarity.temporal_smoothness`; None of fewer than three frames.
        against: None for the reference itself.
        scores: by the scorer's key, what it gave.
    """

    version: Literal[1] = 1
    stages: str
    computed: str
    solver: str
    guidance: float
    flops: int
    seconds: Mapping[str, float]
    frames: int
    smoothness: float | None
    against: Against | None
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of one run.

    Attributes:
        folder: of the report.
        stem: of their names.
    """

    folder: Path
    stem: str

    @property
    def video(self) -> Path:
        """The MP4."""
        return self.folder / VIDEOS / f"{self.stem}.mp4"

    @property
    def figures(self) -> Path:
        """The JSON, whose being there says that the run is complete."""
        return self.folder / VIDEOS / f"{self.stem}.json"

    @property
    def latents(self) -> Path:
        """The final latents, from which the frames can be decoded anew."""
        return self.folder / LATENTS / f"{self.stem}.npy"

    @property
    def trail(self) -> Path:
        """Some of the latents after every step; of the reference only."""
        return self.folder / LATENTS / f"{self.stem}.steps.npy"

    def read_features(self, key: str) -> Latents | None:
        """What `write_features` wrote; None if it is not there, or damaged."""
        try:
            return read_latents(self._features(key)).astype(np.float32)
        except FlowBlendingError:
            return None

    def write_features(self, key: str, features: npt.NDArray[np.floating]) -> None:
        """Keep the features [samples, dimensions] of a set scorer."""
        write_whole(self._features(key), npy_bytes(features.astype(np.float32)))

    def _features(self, key: str) -> Path:
        return self.folder / LATENTS / f"{self.stem}.{hashlib.sha256(key.encode()).hexdigest()[:8]}.npy"

    def read(self) -> Figures | None:
        """The figures of a complete run; None if it has to be made."""
        if not self.video.is_file():
            return None
        try:
            return Figures.model_validate_json(self.figures.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, figures: Figures) -> None:
        """Declare the run complete."""
        write_whole(self.figures, figures.model_dump_json().encode())

    def write_latents(self, final: Latents, trail: Latents | None) -> None:
        """Keep what the frames, and other runs' figures, can be made of again."""
        write_whole(self.latents, npy_bytes(final))
        if trail is not None:
            write_whole(self.trail, npy_bytes(trail))

    def read_latents(self, *, trail: bool) -> tuple[Latents, Latents | None] | None:
        """What `write_latents` wrote; None if it is not there, or damaged."""
        try:
            final = read_latents(self.latents)
            steps = read_latents(self.trail) if trail else None
        except FlowBlendingError:
            return None
        return final.astype(np.float32), None if steps is None else steps.astype(np.float32)
