"""From options to a service that runs until it is told to end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.backends.tensor import CPU, CUDA
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.batch.process import WorkerConfig
from flowblending.runtime.batch.workers import plan_workers
from flowblending.runtime.devices.open import device_kind
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.serve.http.app import make_app
from flowblending.runtime.serve.http.dispatcher import Dispatcher
from flowblending.runtime.serve.http.files import data_folder
from flowblending.runtime.serve.http.gate import is_loopback
from flowblending.runtime.serve.http.keeping import Keeping
from flowblending.runtime.serve.http.keys import Keys
from flowblending.runtime.serve.http.live import Live
from flowblending.runtime.serve.http.log import Log
from flowblending.runtime.serve.http.metrics import Metrics
from flowblending.runtime.serve.http.models import ServedModel
from flowblending.runtime.serve.http.process import ServiceProcess
from flowblending.runtime.serve.http.replicas.application import ClusterService, ray_application, watched_replicas
from flowblending.runtime.serve.http.replicas.slot import ReplicaSlot
from flowblending.runtime.serve.http.service import Limits, Service
from flowblending.runtime.serve.http.service_worker import ServiceWorker
from flowblending.runtime.serve.http.store import JobStore
from flowblending.system.console import Console
from flowblending.system.signals import own_handlers

_CONNECTIONS: Final = 1000
"""At once; further ones are told to come again."""

_GRACE: Final = 5
"""Seconds that answers under way have when the service ends."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """A service.

    Attributes:
        host, port: to listen at; port 0 takes a free one.
        data: folder of jobs and videos.
        device: ``auto``, ``cpu`` or ``cuda``.
        machine: how a worker uses it.
        workers: processes; None for one per GPU, or one on the CPU.
        cluster: whose replicas work in place of processes.
        keeping: how long results stay.
        drain: seconds that videos in the making have after SIGTERM.
    """

    host: str
    port: int
    data: Path
    device: str
    machine: MachineSettings
    workers: int | None
    keys: Keys
    keeping: Keeping
    limits: Limits
    drain: float
    quiet: bool = False
    cluster: ClusterService | None = None


def serve(bundles: dict[str, Bundle], options: ServeOptions) -> None:
    """Serve bundles by their models' names until a signal ends it.

    SIGTERM lets the videos in the making be finished, as far as ``drain`` goes; Ctrl-C does not. What is not finished
    waits for the next service with the same folder.

    Raises:
        UsageError: a public address without keys, a folder that another service has, or too small a cluster.
        FlowBlendingError: the address cannot be listened at, there is no such cluster, or no worker can work.
    """
    if not options.keys and not is_loopback(options.host):
        raise UsageError(
            f"--host {options.host} lets other machines in, but there are no API keys; give --api-keys FILE, or listen "
            "at 127.0.0.1."
        )
    log, live, metrics = Log(quiet=options.quiet), Live(), Metrics()
    with (
        data_folder(options.data) as data,
        _listening(options.host, options.port) as listener,
        _workers(bundles, options, log, metrics) as workers,
    ):
        store = JobStore(data.jobs)
        address = _address(listener)
        data.tidy(store.ids())
        for job in store.recover():
            log.event("job_recovered", job=job.id)
        dispatcher = Dispatcher(
            store=store,
            data=data,
            live=live,
            metrics=metrics,
            log=log,
            keeping=options.keeping,
            workers=workers,
            models=bundles,
            ready=lambda: log.event("ready", address=address, models=list(bundles)),
        )
        service = Service(
            models={name: ServedModel.of(name, bundle) for name, bundle in bundles.items()},
            store=store,
            data=data,
            live=live,
            dispatcher=dispatcher,
            keys=options.keys,
            metrics=metrics,
            log=log,
            limits=options.limits,
        )
        log.event("listening", address=address)
        with _ended_by_signals(dispatcher, options.drain) as asked, _answering(service, listener):
            dispatcher.run()
        store.close()
    if asked:
        signal.raise_signal(asked[0])  # to end as every program does that a signal ended


@contextmanager
def _workers(
    bundles: dict[str, Bundle], options: ServeOptions, log: Log, metrics: Metrics
) -> Iterator[list[ServiceWorker]]:
    """Workers: processes, or places in a cluster, which is left with the block.

    Raises:
        UsageError, FlowBlendingError: see `serve`.
    """
    if options.cluster is None:
        configs = _configs(list(bundles.values()), options)
        folders = {name: bundle.folder.absolute() for name, bundle in bundles.items()}
        yield [ServiceProcess(config, folders, options.device) for config in configs]
        return

    def changed(replicas: dict[str, int]) -> None:
        metrics.replicas(replicas)
        log.event("replicas", **replicas)

    def complained(why: str) -> None:
        log.event("replica_unable", why=why)

    console = Console(quiet=options.quiet)
    with (
        ray_application(bundles, options.cluster, options.data, console) as application,
        watched_replicas(application, changed, complained),
    ):
        yield [ReplicaSlot(f"worker {number}", application) for number in range(1, application.most + 1)]


def _configs(bundles: Sequence[Bundle], options: ServeOptions) -> list[WorkerConfig]:
    """A place for each worker.

    Raises:
        UsageError: there are fewer GPUs than there should be workers, or a bundle cannot run on the device.
    """
    kinds = {device_kind(options.device, bundle.manifest) for bundle in bundles}
    kind = CUDA if CUDA in kinds else CPU
    count = options.workers
    if count is None:
        from flowblending.engine.backends.gpu import gpu_count

        count = max(1, gpu_count()) if kind == CUDA else 1
    return plan_workers(count, kind, options.machine)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        FlowBlendingError: the address is none of this machine, or another program has it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        listener = socket.create_server(place[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        errno = getattr(error, "errno", None)
        reason = os.strerror(errno) if isinstance(errno, int) and errno > 0 else str(error)
        raise FlowBlendingError(f"Cannot listen at {host}:{port} ({reason}); give another --host or --port.") from None
    with listener:
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _ended_by_signals(dispatcher: Dispatcher, drain: float) -> Iterator[list[signal.Signals]]:
    """Signals stop the dispatcher: SIGTERM when the videos in the making are finished, others and a second one soon."""
    asked: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what handlers get
        first = not asked
        asked.append(signal.Signals(number))
        dispatcher.stop(drain if first and number == signal.SIGTERM else 0.0)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    with own_handlers():
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:
                signal.signal(each, stop)
        yield asked


class _Server(uvicorn.Server):
    """A server in a thread of its own, where signals are not its business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to whoever started it."""
        yield


@contextmanager
def _answering(service: Service, listener: socket.socket) -> Iterator[None]:
    """Requests are answered during the block."""
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Named, because uvicorn takes others where another package brings them, and httptools has no bound for headers.
        http="h11",
        loop="asyncio",
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
        backlog=1024,
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        service.live.close()
        server.should_exit = True
        thread.join()
