"""The application of a service on a Ray cluster: started, watched and ended with it. Knows Ray by its modules alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.batch.messages import Ready, Unable
from flowblending.runtime.cluster.connection import (
    LOCAL,
    alive,
    connected,
    first_line,
    how_it_died,
    import_ray,
    import_ray_serve,
    on_node,
)
from flowblending.runtime.cluster.node import NodeBundle, bundle_here
from flowblending.runtime.cluster.share import ClusterOptions, Share, plan_share
from flowblending.runtime.serve.http.replicas.deployment import VIDEOS, Scale, deployment
from flowblending.runtime.serve.http.replicas.front import Front
from flowblending.runtime.serve.http.replicas.messages import Remote, RemoteWork, ReplicaSetting
from flowblending.runtime.serve.http.replicas.ray_serve import application_name, served
from flowblending.runtime.serve.http.replicas.slot import ReplicaDiedError
from flowblending.system.console import Console

_PERIOD: Final = 1.0
"""Seconds between two looks at the replicas."""


_ROOM: Final = 30.0
"""Seconds after which a replica that has not started is told."""

_PATIENCE: Final = 10.0
"""Seconds in which a cluster answers."""


@dataclass(frozen=True, kw_only=True)
class ClusterService:
    """A service on a cluster.

    Attributes:
        cluster: where, and what replicas run on.
        scale: how many there are.
    """

    cluster: ClusterOptions
    scale: Scale = field(default_factory=Scale)


class RayApplication:
    """Replicas that make videos; see `Application`.

    Attributes:
        most: replicas that there may be.
    """

    def __init__(self, ray: Any, *, serve: Any, name: str, handle: Any, front: Any, most: int) -> None:
        self._ray = ray
        self._serve = serve
        self._name = name
        self._handle = handle
        self._front = front
        self._lock = threading.Lock()
        self._opened: Future[Ready | Unable] | None = None
        self._closed = threading.Event()
        self.most = most

    def opened(self) -> Future[Ready | Unable]:
        """Whether a replica can open every bundle; asked again where it died of that."""
        with self._lock:
            if self._opened is None or (self._opened.done() and self._opened.exception() is not None):
                self._opened = Future()
                # A daemon: what is hung elsewhere must not keep this program.
                threading.Thread(target=self._find_out, args=(self._opened,), name="opening", daemon=True).start()
            return self._opened

    def close(self) -> None:
        """Ask no more: a thread that did would connect to Ray again."""
        self._closed.set()

    def call(self, work: RemoteWork) -> RayCall:
        """Have a replica make a video."""
        stream = self._handle.options(stream=True, multiplexed_model_id=work.model).make.remote(work)
        return RayCall(self._ray, stream)

    def watch(self, id: str, watched: bool) -> None:
        """Tell whether somebody wants to see previews of a video."""
        self._front.watch.remote(id, watched)

    def complaints(self) -> list[str]:
        """What nodes lacked on which replicas could not start."""
        found: list[str] = self._ray.get(self._front.complaints.remote(), timeout=_PATIENCE)
        return found

    def replicas(self) -> dict[str, int]:
        """How many replicas there are, by what Ray Serve says of them."""
        application = self._serve.status().applications.get(self._name)
        if application is None or VIDEOS not in application.deployments:
            return {}
        states = application.deployments[VIDEOS].replica_states
        return {getattr(state, "value", str(state)).lower(): count for state, count in states.items()}

    def _find_out(self, opened: Future[Ready | Unable]) -> None:
        try:
            opened.set_result(self._open())
        except Exception as error:
            opened.set_exception(error)

    def _open(self) -> Ready | Unable:
        asked = self._handle.open.remote()
        while True:
            try:
                with _deaths_told(self._ray):
                    answer: Ready | Unable = asked.result(timeout_s=_PERIOD)
                    return answer
            except TimeoutError:
                if self._closed.is_set():
                    raise ReplicaDiedError("the service ends") from None
                complaints = self.complaints()
                if complaints:
                    return Unable(why=complaints[0])


class RayCall:
    """A video that a replica makes; see `Call`."""

    def __init__(self, ray: Any, stream: Any) -> None:
        self._ray = ray
        self._stream = stream

    def __iter__(self) -> Iterator[Remote]:
        with _deaths_told(self._ray):
            yield from self._stream

    def cancel(self) -> None:
        """Have it given up."""
        self._stream.cancel()


@contextlib.contextmanager
def _deaths_told(ray: Any) -> Iterator[None]:
    try:
        yield
    except TimeoutError:  # which one of Ray's errors is too
        raise
    except ray.exceptions.ActorUnavailableError:
        raise ReplicaDiedError("its node cannot be reached") from None
    except ray.exceptions.RayError as error:
        raise ReplicaDiedError(how_it_died(error)) from None
    except ray.serve.exceptions.DeploymentUnavailableError as error:
        raise FlowBlendingError(f"Ray Serve has given the replicas up ({first_line(error)}).") from None


@contextlib.contextmanager
def ray_application(
    bundles: Mapping[str, Bundle], service: ClusterService, data: Path, console: Console
) -> Iterator[RayApplication]:
    """Replicas of bundles on a Ray cluster; they end with the block.

    Args:
        bundles: by the models' names; every node has them at the same place.
        service: how and where.
        data: the service's folder, whose application has a name of its own.

    Raises:
        UsageError: a cluster that is too small.
        FlowBlendingError: there is no such cluster, or a node has not what it needs.
    """
    ray, serve = import_ray("leave out --ray"), import_ray_serve()
    address, scale = service.cluster.address, service.scale
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address} is an address of Ray's client, which carries no progress; run fb-serve on a node of the "
            "cluster, with --ray auto or --ray HOST:PORT."
        )
    with connected(ray, address, console):
        nodes = alive(ray)
        share = plan_share(
            service.cluster, [each.manifest for each in bundles.values()], [node["Resources"] for node in nodes]
        )
        wanted = {name: NodeBundle.of(bundle) for name, bundle in bundles.items()}
        with console.phase("checking the nodes"):
            checked = _check_nodes(ray, nodes, share, list(wanted.values()))
        front = ray.remote(Front).options(num_cpus=0, scheduling_strategy=_here(ray)).remote()
        setting = ReplicaSetting(
            bundles=wanted,
            checked=checked,
            device=share.device,
            machine=share.machine,
        )
        name = application_name(data)
        with served(ray, serve, name, local=address == LOCAL):
            target = deployment(ray, serve, name=name, setting=setting, share=share, scale=scale, front=front)
            (handle,) = serve.run_many(
                [serve.RunTarget(target=target, name=name, route_prefix=None)], wait_for_applications_running=False
            )
            application = RayApplication(ray, serve=serve, name=name, handle=handle, front=front, most=share.count)
            try:
                yield application
            finally:
                application.close()


def _here(ray: Any) -> Any:
    return on_node(ray, ray.get_runtime_context().get_node_id())


def _check_nodes(ray: Any, nodes: list[dict[str, Any]], share: Share, wanted: list[NodeBundle]) -> frozenset[str]:
    """The nodes where replicas may run, each of which has the bundles.

    Raises:
        FlowBlendingError: one has not.
    """
    kind = "GPU" if share.gpus else "CPU"
    ids = [node["NodeID"] for node in nodes if node["Resources"].get(kind, 0) > 0]
    check = ray.remote(_lacking)
    calls = [check.options(num_cpus=0, scheduling_strategy=on_node(ray, id)).remote(wanted) for id in ids]
    for lacking in ray.get(calls):
        if lacking is not None:
            raise FlowBlendingError(lacking)
    return frozenset(ids)


def _lacking(wanted: list[NodeBundle]) -> str | None:
    """What is wrong with the bundles of a node. Runs on it."""
    try:
        for each in wanted:
            bundle_here(each)
    except FlowBlendingError as error:
        return str(error)
    return None


@contextlib.contextmanager
def watched_replicas(
    application: RayApplication, changed: Callable[[dict[str, int]], None], complained: Callable[[str], None]
) -> Iterator[None]:
    """Have it told during the block how many replicas there are, and what nodes lack."""
    over = threading.Event()

    def watch() -> None:
        known: dict[str, int] = {}
        heard = 0
        since = time.monotonic()
        while not over.wait(_PERIOD):
            with contextlib.suppress(Exception):  # of a cluster that does not answer; calls tell that
                replicas, complaints = application.replicas(), application.complaints()
                if replicas != known:
                    known, since = replicas, time.monotonic()
                    changed(replicas)
                elif replicas.get("starting") and time.monotonic() - since > _ROOM:
                    since = float("inf")  # told once
                    complained(f"A replica has not started for {_ROOM:.0f} s; the cluster may have no room for it.")
                for why in complaints[heard:]:
                    complained(why)
                heard = len(complaints)

    thread = threading.Thread(target=watch, name="replicas", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_PATIENCE)
