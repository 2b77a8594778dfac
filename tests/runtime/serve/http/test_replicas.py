"""What makes a service's videos on a cluster, without one: a slot and its application, a replica and its service."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.tasks import Cause
from flowblending.runtime.cluster.connection import connected
from flowblending.runtime.cluster.node import NodeBundle, bundle_here
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.serve.http.dispatcher import Dispatcher
from flowblending.runtime.serve.http.files import DataFolder
from flowblending.runtime.serve.http.keeping import Keeping
from flowblending.runtime.serve.http.live import Live
from flowblending.runtime.serve.http.log import Log
from flowblending.runtime.serve.http.messages import Answer, Cancelled, Made, Progress, Told, Work
from flowblending.runtime.serve.http.metrics import Metrics
from flowblending.runtime.serve.http.record import COMPLETED, FAILED, QUEUED
from flowblending.runtime.serve.http.replicas import replica as replica_module
from flowblending.runtime.serve.http.replicas.messages import Remote, RemoteMade, RemoteWork, ReplicaSetting
from flowblending.runtime.serve.http.replicas.replica import Opened, Replica
from flowblending.runtime.serve.http.replicas.slot import ReplicaDiedError, ReplicaSlot
from flowblending.runtime.serve.http.scale import read_workers
from flowblending.runtime.serve.http.store import JobStore
from flowblending.runtime.serve.uploads import Upload, keep
from flowblending.system.console import Console
from tests.support import manifests
from tests.support.video_server import refused

STEP = Told(id="video", progress=Progress(stage="sampling", step=1, steps=2))
DONE = RemoteMade(made=Made(id="video", seconds={"total": 1.0}), video=b"an MP4", thumbnail=b"a PNG")


class Call:
    """What a replica tells, put there by a test; an error is raised, and a cancelled call has no more to tell."""

    def __init__(self, work: RemoteWork) -> None:
        self.work = work
        self.tells: queue.Queue[Remote | Exception] = queue.Queue()
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[Remote]:
        while True:
            told = self.tells.get(timeout=10)
            if isinstance(told, Exception):
                raise told
            yield told

    def cancel(self) -> None:
        self.cancelled.set()
        self.tells.put(ReplicaDiedError("the request was cancelled"))


class Replicas:
    """An application without any."""

    def __init__(self, opened: Ready | Unable | Exception | None = None) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.watched: list[tuple[str, bool]] = []
        self._opened = opened or Ready()

    def opened(self) -> Future[Ready | Unable]:
        future: Future[Ready | Unable] = Future()
        if isinstance(self._opened, Exception):
            future.set_exception(self._opened)
        else:
            future.set_result(self._opened)
        return future

    def call(self, work: RemoteWork) -> Call:
        call = Call(work)
        self.calls.put(call)
        return call

    def watch(self, id: str, watched: bool) -> None:
        self.watched.append((id, watched))


def heard(slot: ReplicaSlot) -> Answer | None:
    assert slot.connection.poll(10)
    return slot.receive()


def work(folder: Path) -> Work:
    return Work(id="video", model="wan", fields={}, video=folder / "video.mp4", thumbnail=folder / "video.png")


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


@pytest.fixture
def slot(replicas: Replicas) -> Iterator[ReplicaSlot]:
    slot = ReplicaSlot("worker 1", replicas)
    assert heard(slot) == Ready()
    yield slot
    slot.end()


def test_a_slot_tells_what_its_replica_does_and_writes_what_it_made(
    slot: ReplicaSlot, replicas: Replicas, tmp_path: Path
) -> None:
    slot.give(work(tmp_path))
    call = replicas.calls.get(timeout=10)
    assert (call.work.id, call.work.model) == ("video", "wan")
    call.tells.put(STEP)
    assert heard(slot) == STEP
    slot.watch(True)
    slot.watch(True)
    call.tells.put(DONE)
    assert heard(slot) == DONE.made
    assert (tmp_path / "video.mp4").read_bytes() == DONE.video
    assert (tmp_path / "video.png").read_bytes() == DONE.thumbnail
    assert replicas.watched == [("video", False), ("video", True), ("video", False)]
    assert slot.pid is None


def test_a_slot_whose_replica_died_says_how_and_begins_anew(
    slot: ReplicaSlot, replicas: Replicas, tmp_path: Path
) -> None:
    slot.give(work(tmp_path))
    replicas.calls.get(timeout=10).tells.put(ReplicaDiedError("the actor died"))
    assert heard(slot) is None
    assert slot.end() == "the actor died"
    slot.start()
    assert heard(slot) == Ready()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("early", [True, False])
def test_a_cancelled_video_is_given_up_whenever_that_is(
    slot: ReplicaSlot, replicas: Replicas, tmp_path: Path, early: bool
) -> None:
    slot.give(work(tmp_path))
    if not early:
        replicas.calls.get(timeout=10).tells.put(STEP)
        assert heard(slot) == STEP
    slot.cancel()
    assert heard(slot) == Cancelled(id="video")
    assert not list(tmp_path.iterdir())


def test_what_fails_elsewhere_and_here(
    slot: ReplicaSlot, replicas: Replicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A node's disk is the node's own trouble, and another one may do better.
    told = {Cause.DISK: Cause.DEVICE, Cause.JOB: Cause.JOB, Cause.MEMORY: Cause.MEMORY, Cause.DEVICE: Cause.DEVICE}
    for cause, expected in told.items():
        slot.give(work(tmp_path))
        replicas.calls.get(timeout=10).tells.put(Failed(why="No.", cause=cause))
        assert heard(slot) == Failed(why="No.", cause=expected)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flowblending.runtime.serve.http.replicas.slot.replace_file", full)
    slot.give(work(tmp_path))
    replicas.calls.get(timeout=10).tells.put(DONE)
    failed = heard(slot)
    assert isinstance(failed, Failed)
    assert failed.cause == Cause.DISK
    assert "No space left on device" in failed.why


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        (Unable(why="It cannot."), Unable(why="It cannot.")),
        (FlowBlendingError("There are none."), Unable(why="There are none.")),
        (ReplicaDiedError("It died"), None),
    ],
)
def test_an_application_that_cannot_work_is_told(opened: Any, expected: Answer | None) -> None:
    for _ in range(50):  # the slot's thread may not have ended when it is
        slot = ReplicaSlot("worker 1", Replicas(opened))
        assert heard(slot) == expected
        slot.end()


def test_uploads_go_as_bytes_and_are_files_again_elsewhere(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    cat, end = (
        Upload(name=f"{name}.png", content=name.encode(), at=at) for name, at in (("cat", ""), ("end", "@8:0.5"))
    )
    kept = keep({"image": [cat, end]}, here)
    sent = RemoteWork.of(
        Work(id="x", model="wan", fields={"prompt": "x"}, video=here / "v", thumbnail=here / "t", uploads=kept)
    )
    assert str(tmp_path) not in repr(sent.uploads)
    got = sent.unpacked(there)
    one, other = got.uploads.fields["image"]
    assert other.endswith("image-1.png@8:0.5")
    assert Path(one).read_bytes() == b"cat"
    assert Path(other.partition("@")[0]).read_bytes() == b"end"
    assert got.uploads.tell(f"{one} is no image") == "cat.png is no image"


class OneBundle(Replica):
    """A replica of one bundle, whose service is the test."""

    def __init__(self) -> None:
        setting = ReplicaSetting(bundles={}, checked=frozenset(), device="cpu", machine=MachineSettings(threads=1))
        super().__init__(setting, "node")
        self.killed = threading.Event()
        self.ended = False

    async def model(self, name: str) -> Opened:
        if name == "gone":
            raise FlowBlendingError("It is gone.")
        return Opened(Mock(), self._thread)

    async def watched(self, id: str) -> bool | None:  # noqa: ARG002 - the interface of Replica
        return None if self.killed.is_set() else True

    async def _end(self) -> None:
        self.ended = True


def remote(id: str, model: str = "wan") -> RemoteWork:
    return RemoteWork(id=id, model=model, fields={}, uploads={"fields": {}, "names": {}}, files={}, watched=False)


def made_of(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> None:
    monkeypatch.setattr(replica_module, "make", make)


def test_a_replica_takes_the_next_video_when_the_one_before_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def make(_: Any, task: Work, tell: Callable[[Told], None], control: Any) -> Made | Cancelled:
        order.append(f"{task.id} begins")
        for _ in range(200):
            tell(Told(id=task.id))
            if control.cancelled():
                time.sleep(0.2)  # a step that cannot be left
                order.append(f"{task.id} is given up")
                return Cancelled(id=task.id)
            if task.id == "second":
                break
            time.sleep(0.02)
        task.video.write_bytes(b"v")
        task.thumbnail.write_bytes(b"t")
        order.append(f"{task.id} is made")
        return Made(id=task.id, seconds={})

    async def run() -> list[Remote]:
        replica = OneBundle()

        async def all_of(id: str) -> list[Remote]:
            return [each async for each in replica.make(remote(id))]

        first = asyncio.create_task(all_of("first"))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(all_of("second"))
        first.cancel()
        return await second

    made_of(monkeypatch, make)
    *told, last = asyncio.run(run())
    assert told == [Told(id="second")]
    assert last == RemoteMade(made=Made(id="second", seconds={}), video=b"v", thumbnail=b"t")
    assert order == ["first begins", "first is given up", "second begins", "second is made"]


def test_a_replica_gives_up_what_a_killed_service_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = threading.Event()

    def make(_: Any, task: Work, __: Callable[[Told], None], control: Any) -> Made | Cancelled:
        deadline = time.monotonic() + 10
        while not control.cancelled():
            assert time.monotonic() < deadline
            if control.watched:  # which it was told meanwhile
                killed.set()
            time.sleep(0.01)
        return Cancelled(id=task.id)

    async def run() -> list[Remote]:
        replica = OneBundle()
        replica.killed = killed
        return [each async for each in replica.make(remote("x"))]

    made_of(monkeypatch, make)
    assert asyncio.run(run()) == [Cancelled(id="x")]


def test_a_replica_whose_device_is_lost_ends_and_others_tell_why_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Failed(why="The GPU is lost.", cause=Cause.DEVICE)
    made_of(monkeypatch, lambda *_: lost)

    async def run(model: str) -> tuple[list[Remote], bool]:
        replica = OneBundle()
        return [each async for each in replica.make(remote("x", model))], replica.ended

    assert asyncio.run(run("wan")) == ([lost], True)
    assert asyncio.run(run("gone")) == ([Failed(why="It is gone.", cause=Cause.JOB)], False)
    made_of(monkeypatch, lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    (failed,), ended = asyncio.run(run("wan"))
    assert isinstance(failed, Failed)
    assert (failed.cause, ended) == (Cause.DISK, False)


def dispatched(tmp_path: Path, replicas: Replicas) -> tuple[Dispatcher, JobStore]:
    """A dispatcher with one slot."""
    data = DataFolder(tmp_path / "data")
    data.videos.mkdir(parents=True, exist_ok=True)
    store = JobStore(data.jobs)
    dispatcher = Dispatcher(
        store=store,
        data=data,
        live=Live(),
        metrics=Metrics(),
        log=Log(quiet=True),
        keeping=Keeping(seconds=None, most_bytes=None),
        workers=[ReplicaSlot("worker 1", replicas)],
        models=["wan"],
        ready=lambda: None,
    )
    return dispatcher, store


def add(store: JobStore) -> str:
    about = {"size": "32x48", "frames": 9, "seconds": "1"}
    job = store.add(
        owner="", model="wan", fields={"prompt": "x"}, about=about, priority=0, start_by=None, most_waiting=9
    )
    return job.id


def status(store: JobStore, id: str) -> str:
    job = store.get(id)
    assert job is not None
    return job.status


def test_a_video_is_tried_twice_and_waits_where_no_replica_is_left(tmp_path: Path, replicas: Replicas) -> None:
    dispatcher, store = dispatched(tmp_path, replicas)
    fails, waits = add(store), add(store)
    ended: list[Exception] = []

    def run() -> None:
        try:
            dispatcher.run()
        except FlowBlendingError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(2):
        call = replicas.calls.get(timeout=10)
        assert call.work.id == fails
        call.tells.put(ReplicaDiedError("killed"))
    call = replicas.calls.get(timeout=10)
    assert call.work.id == waits
    call.tells.put(FlowBlendingError("The replicas were given up."))
    thread.join(10)
    assert [str(error) for error in ended] == ["The replicas were given up."]
    assert (status(store, fails), status(store, waits)) == (FAILED, QUEUED)
    job = store.get(waits)
    assert job is not None
    assert job.crashes == 0
    store.close()


def test_sigterm_waits_for_what_replicas_make(tmp_path: Path, replicas: Replicas) -> None:
    dispatcher, store = dispatched(tmp_path, replicas)
    id = add(store)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    call = replicas.calls.get(timeout=10)
    dispatcher.stop(10)
    call.tells.put(RemoteMade(made=Made(id=id, seconds={}), video=b"v", thumbnail=b"t"))
    thread.join(10)
    assert status(store, id) == COMPLETED
    store.close()
    again, store = dispatched(tmp_path, replicas)
    left = add(store)
    thread = threading.Thread(target=again.run)
    thread.start()
    call = replicas.calls.get(timeout=10)
    again.stop(0)
    thread.join(10)
    assert call.cancelled.is_set()
    assert status(store, left) == QUEUED
    store.close()


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("4", (4, 4)), ("1..8", (1, 8)), ("0..8", (0, 8)), (" 2..2 ", (2, 2))]
)
def test_workers_are_a_number_or_from_the_fewest_to_the_most(text: str | None, expected: Any) -> None:
    assert read_workers(text) == expected


@pytest.mark.parametrize("text", ["0", "0..0", "8..1", "1..", "..8", "-1", "many", "1...2", "1..2000", ""])
def test_workers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"a number from 1 to 1024 was expected, .* give 4, or 1\.\.8\."):
        read_workers(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", "1..2"), "--workers 1..2 is for replicas on a cluster, but processes stay as many as they are"),
        (
            ("--models-per-replica", "2"),
            "--models-per-replica is for replicas on a cluster; leave it out, or give --ray",
        ),
        (("--scale-down", "5"), "--scale-down is for replicas on a cluster; leave it out, or give --ray ADDRESS."),
        (("--ray", "local", "--workers", "4..2"), "--workers is 4..2, but a number from 1 to 1024 was expected"),
        (("--ray", "local", "--models-per-replica", "0"), "--models-per-replica is 0, but a number from 1 to 1024"),
        (("--ray", "local", "--scale-down", "-1"), "--scale-down is -1, but a number from 0 to 1000000 was expected"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, *options)


def test_without_ray_serve_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['aiohttp'] = None\n"
        "from flowblending.runtime.serve.http.cli import main; "
        f"main([{str(tmp_path)!r}, '--ray', 'local'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: fb-serve --ray needs ray" in result.stderr
    assert "ray-serve]' in a checkout of FlowBlending." in result.stderr


def test_what_a_node_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests.write(tmp_path / "toy")
    wanted = NodeBundle.of(open_bundle(tmp_path / "toy"))
    assert bundle_here(wanted).manifest.id == wanted.id
    other = dataclasses.replace(wanted, id="another")
    with pytest.raises(FlowBlendingError, match=r"the node .* has another bundle at .*toy; copy the one"):
        bundle_here(other)
    older = dataclasses.replace(wanted, version="0.0.1")
    with pytest.raises(FlowBlendingError, match=r"the node .* has flowblending .*; install 0\.0\.1 there\."):
        bundle_here(older)
    monkeypatch.setattr(os, "uname", lambda: Mock(nodename="b7"))
    with pytest.raises(FlowBlendingError, match=r"^on the node b7: .* is no bundle"):
        bundle_here(dataclasses.replace(wanted, folder=str(tmp_path / "none")))
    damaged = next(path for path in (tmp_path / "toy").rglob("*") if path.is_file() and path.name != "manifest.json")
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    with pytest.raises(FlowBlendingError, match="on the node b7: "):
        bundle_here(wanted)
    assert bundle_here(wanted, verify=False)


def test_a_cluster_that_asks_for_a_token_is_told() -> None:
    """The error of ray.init is Ray 2.60's, at an address that was given, without RAY_AUTH_MODE=token."""
    refusing = Mock()
    refusing.init.side_effect = ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6390")
    refusing.init.side_effect.__cause__ = RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing")
    with (
        pytest.raises(FlowBlendingError, match=r"\(it asks for a token\); set RAY_AUTH_MODE=token, and have"),
        connected(refusing, "auto", Console(quiet=True)),
    ):
        pass
    assert not refusing.shutdown.called


@pytest.mark.parametrize("slow", [1, 2])
def test_a_cluster_of_our_own_that_is_slow_has_a_second_try(slow: int) -> None:
    """The error is Ray 2.60's, and a plain one."""
    late = Exception("The current node timed out during startup. This could happen because")
    busy = Mock(**{"init.side_effect": [late] * slow + [None]})
    expected = (
        pytest.raises(FlowBlendingError, match=r"local \(The current .*\); try again when")
        if slow > 1
        else nullcontext()
    )
    with expected, connected(busy, "local", Console(quiet=True)):
        pass
    assert busy.init.call_count == 2
    assert busy.shutdown.called
