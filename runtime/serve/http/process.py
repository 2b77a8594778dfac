"""A worker's process, as the service sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowblending.runtime.batch.process import WorkerConfig, WorkerProcess
from flowblending.runtime.serve.http.messages import Answer, Work
from flowblending.runtime.serve.http.service_worker import ServiceWorker
from flowblending.runtime.serve.http.worker import work


class ServiceProcess(ServiceWorker, WorkerProcess[Work, Answer]):
    """A process that makes a service's videos."""

    def __init__(self, config: WorkerConfig, bundles: Mapping[str, Path], device: str) -> None:
        WorkerProcess.__init__(self, config, work, dict(bundles), device)
