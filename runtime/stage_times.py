"""Where a run's time goes: seconds by stage as they add up, the table of them, and what is remembered of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from flowblending.contracts.graph import TEXT_ENCODER, VAE, VAE_ENCODER
from flowblending.contracts.program import Program
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.cost import Timings
from flowblending.runtime.sampler.loop import SampleResult

if TYPE_CHECKING:
    from flowblending.system.console import Console

_Item = TypeVar("_Item")

LOADING = "loading"
VIDEO = "video"
TOTAL = "total"


class Clock:
    """Seconds by stage, added up. What a consumer does between two events belongs to no stage, but to the total."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def timed(self, stage: str, items: Iterator[_Item]) -> Iterator[_Item]:
        """The items, while the time that each takes to come is added to a stage."""
        while True:
            with self.measure(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage what was measured otherwise."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """By stage, and ``total`` since the clock was made."""
        return {**self._seconds, TOTAL: time.perf_counter() - self._start}


def remember(pipeline: Pipeline, program: Program, sample: SampleResult, seconds: Mapping[str, float]) -> None:
    """Keep seconds per call and per video, for what a dry run expects of the next such video."""
    measured = {name: seconds[name] for name in (TEXT_ENCODER, VAE) if name in seconds}
    measured |= {model: sample.model_seconds[model] / calls for model, calls in sample.calls.items()}
    Timings(pipeline.bundle.manifest.id, pipeline.device.kind, program.latent_shape).write(measured)


def show_times(program: Program, sample: SampleResult, seconds: Mapping[str, float], console: Console) -> None:
    """The table at the end of a run: measured seconds per stage."""
    calls = sample.calls
    labels = {LOADING: "engine loading", VAE_ENCODER: "VAE encoder", TEXT_ENCODER: "text encoder"}
    labels |= {model: f"{model} x {count}" for model, count in sorted(calls.items())}
    labels |= {VAE: "VAE decoder", VIDEO: "video file", TOTAL: "total"}
    rows = [
        (label, f"{seconds[stage]:.3f} s", f"{seconds[stage] / seconds[TOTAL]:.0%}")
        for stage, label in labels.items()
        if stage in seconds
    ]
    console.table(f"schedule {program.schedule}", ("stage", "time", "share"), rows)
    if sample.graphs.off:
        console.result(f"No step was launched as a CUDA graph, because {sample.graphs.off}.")
