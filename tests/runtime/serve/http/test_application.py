"""A service's application on Ray Serve, for which stand-ins stand: what is asked of them, and what is left alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.batch.messages import Ready, Unable
from flowblending.runtime.serve.http.messages import Told
from flowblending.runtime.serve.http.replicas import application as application_module
from flowblending.runtime.serve.http.replicas import ray_serve
from flowblending.runtime.serve.http.replicas.application import RayApplication, watched_replicas
from flowblending.runtime.serve.http.replicas.messages import RemoteWork
from flowblending.runtime.serve.http.replicas.ray_serve import application_name, served
from flowblending.runtime.serve.http.replicas.slot import ReplicaDiedError
from tests.support.video_server import wait_until

WORK = RemoteWork(id="x", model="wan", fields={}, uploads={"fields": {}, "names": {}}, files={}, watched=False)


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    pass


class DeploymentUnavailableError(Exception):
    pass


class Cluster:
    """Ray and Ray Serve in one: applications by name, each with named actors that may linger when it is deleted."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        ActorUnavailableError=ActorUnavailableError,
        DeploymentUnavailableError=DeploymentUnavailableError,
    )

    def __init__(self, *, begun: bool = False) -> None:
        self.begun = begun
        self.states: dict[str, dict[str, int]] = {}
        self.lingering: set[str] = set()
        self.killed: list[str] = []
        self.told: list[str] = []
        self.answers: queue.Queue[Any] = queue.Queue()
        self.serve = self
        self.util = self

    # Ray's.

    def get(self, value: Any, timeout: float | None = None) -> Any:  # noqa: ARG002 - the interface of Ray
        return value

    def get_actor(self, name: str, namespace: str) -> str:
        assert namespace == "serve"
        if name == "SERVE_CONTROLLER_ACTOR" and not self.begun:
            raise ValueError(name)
        return name

    def list_named_actors(self, all_namespaces: bool) -> list[dict[str, str]]:
        assert all_namespaces
        names = [f"SERVE_REPLICA::{name}#videos#1" for name in self.states]
        return [{"namespace": "serve", "name": name} for name in names] + [{"namespace": "theirs", "name": names[0]}]

    def kill(self, actor: str) -> None:
        self.killed.append(actor)
        self.states.pop(actor.split("::")[1].split("#", maxsplit=1)[0])

    # Ray Serve's.

    def start(self, proxy_location: str) -> None:
        assert proxy_location == "Disabled"
        self.begun = True

    def status(self) -> Any:
        made = {
            name: SimpleNamespace(deployments={"videos": SimpleNamespace(replica_states=states)})
            for name, states in self.states.items()
        }
        return SimpleNamespace(applications=made)

    def delete(self, name: str, _blocking: bool) -> None:
        assert not _blocking
        if name not in self.lingering:
            del self.states[name]

    def shutdown(self) -> None:
        self.begun = False

    # The deployment's handle, its methods and their responses, and the service's actor.

    def options(self, stream: bool, multiplexed_model_id: str) -> Cluster:
        assert stream
        assert multiplexed_model_id == "wan"
        return self

    @property
    def open(self) -> Cluster:
        return self

    @property
    def make(self) -> Cluster:
        return self

    @property
    def complaints(self) -> Any:
        return SimpleNamespace(remote=lambda: list(self.told))

    def remote(self, *_: object) -> Cluster:
        return self

    def result(self, timeout_s: float) -> Any:
        try:
            answer = self.answers.get(timeout=timeout_s / 20)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __iter__(self) -> Iterator[Any]:
        while (answer := self.result(200)) is not None:
            yield answer


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(begun=True)


@pytest.fixture
def application(cluster: Cluster) -> Iterator[RayApplication]:
    ray: Any = cluster
    found = RayApplication(ray, serve=ray, name="ours", handle=ray, front=ray, most=2)
    yield found
    found.close()


def test_what_replicas_can_do_is_asked_once_and_again_where_they_died_of_it(
    cluster: Cluster, application: RayApplication
) -> None:
    first = application.opened()
    assert application.opened() is first
    cluster.answers.put(RayError("killed"))
    with pytest.raises(ReplicaDiedError, match="killed"):
        first.result(10)
    second = application.opened()
    assert second is not first
    cluster.answers.put(Ready())
    assert second.result(10) == Ready()
    assert application.opened() is second


def test_what_a_node_lacks_ends_the_waiting(cluster: Cluster, application: RayApplication) -> None:
    opened = application.opened()
    cluster.told.append("the node b7 has another bundle.")
    assert opened.result(10) == Unable(why="the node b7 has another bundle.")


def test_nothing_is_asked_when_the_service_has_ended(application: RayApplication) -> None:
    opened: Future[Ready | Unable] = application.opened()
    application.close()
    with pytest.raises(ReplicaDiedError, match="the service ends"):
        opened.result(10)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (RayError("the actor died\nat 192.0.2.2"), ReplicaDiedError, r"^the actor died$"),
        (ActorUnavailableError("socket at 192.0.2.2 closed"), ReplicaDiedError, r"^its node cannot be reached$"),
        (DeploymentUnavailableError("it failed"), FlowBlendingError, r"has given the replicas up \(it failed\)"),
    ],
)
def test_what_ends_a_call_is_told_in_our_words(
    cluster: Cluster, application: RayApplication, error: Exception, expected: type[Exception], said: str
) -> None:
    cluster.answers.put(Told(id="x"))
    cluster.answers.put(error)
    told = iter(application.call(WORK))
    assert next(told) == Told(id="x")
    with pytest.raises(expected, match=said):
        next(told)


def test_replicas_are_told_when_they_change_and_when_there_is_no_room(
    cluster: Cluster, application: RayApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application_module, "_PERIOD", 0.01)
    monkeypatch.setattr(application_module, "_ROOM", 0.2)
    changes: list[dict[str, int]] = []
    complaints: list[str] = []
    cluster.states["ours"] = {"STARTING": 1}
    with watched_replicas(application, changes.append, complaints.append):
        wait_until(lambda: len(complaints) == 1, "that there is no room")
        cluster.states["ours"] = {"RUNNING": 2}
        cluster.told.append("the node b7 is of no use")
        wait_until(lambda: len(complaints) == 2, "the node")
    assert changes == [{"starting": 1}, {"running": 2}]
    assert complaints[0].startswith("A replica has not started")
    assert complaints[1] == "the node b7 is of no use"
    assert not [each for each in threading.enumerate() if each.name == "replicas"]


def test_what_others_serve_stays(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "_PATIENCE", 0.2)
    cluster.states = {"ours": {}, "theirs": {}}  # ours of a service that was killed
    ray: Any = cluster
    with served(ray, ray, "ours", local=False):
        assert set(cluster.states) == {"theirs"}
        cluster.states["ours"] = {}
        cluster.lingering = {"ours"}  # its replica has found no room, and ends by no words
    assert set(cluster.states) == {"theirs"}
    assert cluster.killed == ["SERVE_REPLICA::ours#videos#1"]
    assert cluster.begun


@pytest.mark.parametrize("others", [True, False])
def test_ray_serve_ends_with_the_service_that_began_it_unless_others_use_it(others: bool) -> None:
    cluster = Cluster()
    ray: Any = cluster
    with served(ray, ray, "ours", local=False):
        cluster.states = {"ours": {}, "theirs": {}} if others else {"ours": {}}
    assert cluster.begun is others
    assert set(cluster.states) == ({"theirs"} if others else set())


def test_a_folder_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = application_name(tmp_path / "one")
    assert one.startswith("fb-serve-")
    assert one != application_name(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert application_name(Path("one")) == one
