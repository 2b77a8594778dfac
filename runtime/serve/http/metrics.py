"""Figures for Prometheus. No label has what a user wrote: routes are templates, models the service's own."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from flowblending.runtime.serve.http.messages import Made

_WAITS: Final = (0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 14400)
_REQUESTS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600)
_STATUSES: Final = ("queued", "in_progress", "completed", "failed")


class Metrics:
    """The figures of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        name = "flowblending_"
        self._jobs = Gauge(f"{name}jobs", "Jobs that are kept, by status", ["status"], registry=self._registry)
        self._wait = Histogram(
            f"{name}queue_wait_seconds", "From acceptance to a worker", buckets=_WAITS, registry=self._registry
        )
        self._videos = Counter(f"{name}videos", "Videos that were made", ["model"], registry=self._registry)
        self._seconds = Counter(f"{name}stage_seconds", "Seconds by stage", ["model", "stage"], registry=self._registry)
        self._calls = Counter(
            f"{name}engine_calls", "Calls of transformers", ["model", "transformer"], registry=self._registry
        )
        self._saved = Counter(
            f"{name}engine_calls_saved",
            "Calls of transformers that step caches left out",
            ["model", "transformer"],
            registry=self._registry,
        )
        self._texts = Counter(
            f"{name}texts", "Texts that were encoded, or remembered", ["model", "how"], registry=self._registry
        )
        self._failures = Counter(f"{name}failures", "Jobs that failed, by code", ["code"], registry=self._registry)
        self._crashes = Counter(f"{name}worker_crashes", "Workers that died", registry=self._registry)
        self._memory = Gauge(
            f"{name}worker_resident_bytes", "Memory of a worker on the host", ["worker"], registry=self._registry
        )
        self._replicas = Gauge(f"{name}replicas", "Replicas on a Ray cluster", ["state"], registry=self._registry)
        self._requests = Histogram(
            f"{name}http_request_seconds",
            "Requests over HTTP",
            ["method", "route", "status"],
            buckets=_REQUESTS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def state(self, jobs: Mapping[str, int], workers: Mapping[str, int]) -> None:
        """How many jobs there are by status, and the workers' processes on this machine by name."""
        for status in _STATUSES:
            self._jobs.labels(status).set(jobs.get(status, 0))
        for name, process in workers.items():
            self._memory.labels(name).set(_resident(process))

    def waited(self, seconds: float) -> None:
        """A job was begun, so long after it was accepted."""
        self._wait.observe(seconds)

    def made(self, model: str, made: Made) -> None:
        """A video was made."""
        self._videos.labels(model).inc()
        for stage, seconds in made.seconds.items():
            if stage != "total":
                self._seconds.labels(model, stage).inc(seconds)
        for name, full in made.full.items():
            calls = made.calls.get(name, 0)
            self._calls.labels(model, name).inc(calls)
            self._saved.labels(model, name).inc(max(full - calls, 0))
        for how, count in zip(("encoded", "remembered"), made.texts, strict=True):
            self._texts.labels(model, how).inc(count)

    def failed(self, code: str) -> None:
        """A job failed."""
        self._failures.labels(code).inc()

    def crashed(self) -> None:
        """A worker died."""
        self._crashes.inc()

    def replicas(self, counts: Mapping[str, int]) -> None:
        """How many replicas there are on a cluster, by state."""
        self._replicas.clear()
        for state, count in counts.items():
            self._replicas.labels(state).set(count)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, route, str(status)).observe(seconds)


def _resident(process: int) -> int:
    """Bytes of memory that a process has; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * resource.getpagesize()
