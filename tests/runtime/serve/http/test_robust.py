"""Kills, restarts, signals and keys: real processes, real signals."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import openai
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.serve.http.keys import read_keys
from flowblending.runtime.serve.http.record import COMPLETED, QUEUED
from flowblending.runtime.serve.http.request import VideoRequest
from flowblending.runtime.serve.http.service import Limits, Service
from flowblending.runtime.serve.http.store import JobStore, QueueFullError
from tests.support.mounts import mounted
from tests.support.video_server import VideoServer, refused, serving, wait_until

pytestmark = pytest.mark.slow

LONG = {"steps": 1000, "schedule": "LLL"}


def test_no_accepted_video_is_lost_to_a_kill(wan: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(wan.folder, "--name", "wan", data=data) as server:
        assert "Another fb-serve has the folder" in refused(wan.folder, "--data", data, "--port", 0)
        client = server.client()
        done = client.videos.create_and_poll(prompt="done", poll_interval_ms=10, extra_body={"steps": 2})
        content = client.videos.download_content(done.id).read()
        ids = [client.videos.create(prompt="x", extra_body={"steps": 600, "seed": seed}).id for seed in range(3)]
        server.event("job_started", 2)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        (data / "videos" / "video_none.mp4").write_bytes(b"left by a kill")
    with serving(wan.folder, "--name", "wan", data=data) as server:
        client = server.client()
        assert [each["job"] for each in server.events("job_recovered")] == ids[:1]
        wait_until(lambda: all(client.videos.retrieve(id).status == "completed" for id in ids), "the videos")
        assert client.videos.download_content(done.id).read() == content
        assert {each.id for each in client.videos.list()} == {done.id, *ids}
        assert {path.stem for path in (data / "videos").iterdir()} == {done.id, *ids}


def test_a_video_whose_worker_dies_is_tried_once_more(wan: Bundle, tmp_path: Path) -> None:
    with serving(wan.folder, data=tmp_path / "data") as server:
        client = server.client()
        first = client.videos.create(prompt="x", extra_body={"steps": 600})
        server.event("job_started", 1)
        os.kill(server.worker(), signal.SIGKILL)
        wait_until(lambda: client.videos.retrieve(first.id).status == "completed", "the second try")
        second = client.videos.create(prompt="x", extra_body=LONG)
        for count in (1, 2):
            server.event("job_started", 2 + count)
            os.kill(server.worker(1 + count), signal.SIGKILL)
        wait_until(lambda: client.videos.retrieve(second.id).status == "failed", "the failure")
        error = client.videos.retrieve(second.id).error
        assert error is not None
        assert error.code == "worker_crashed"
        assert "killed by SIGKILL" in error.message
        server.event("worker_ready", 4)
        after = client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 1})
        assert after.status == "completed"
        text = server.ask("/metrics")[1].decode()
        assert "flowblending_worker_crashes_total 3.0" in text
        assert 'flowblending_failures_total{code="worker_crashed"} 1.0' in text


def test_sigterm_lets_a_video_end_and_keeps_what_waits(wan: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(wan.folder, data=data) as server:
        client = server.client()
        running = client.videos.create(prompt="x", extra_body={"steps": 1000}).id
        server.event("job_started")
        waiting = client.videos.create(prompt="x", extra_body={"steps": 1}).id
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.ask("/health")[1] == {"status": "draining"}, "the draining")
        with pytest.raises(openai.InternalServerError, match="The service is ending") as caught:
            client.videos.create(prompt="x")
        assert caught.value.status_code == 503
        assert server.process.wait(60) == 128 + signal.SIGTERM
        wait_until(lambda: server.text[-1].startswith("ended by SIGTERM"), "the last line")
    store = JobStore(data / "jobs.sqlite")
    statuses = {id: found.status for id in (running, waiting) if (found := store.get(id)) is not None}
    store.close()
    assert statuses == {running: "completed", waiting: "queued"}
    with serving(wan.folder, data=data) as server:
        client = server.client()
        wait_until(lambda: all(each.status == "completed" for each in client.videos.list()), "what waited")
        # Ctrl-C waits for nothing.
        client.videos.create(prompt="x", extra_body=LONG)
        server.event("job_started", 2)
        began = time.monotonic()
        assert server.end(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - began < 10


def test_each_key_has_its_own_videos_and_its_turn(wan: Bundle, tmp_path: Path) -> None:
    ann, bob = "ann-" + "a" * 20, "bob-" + "b" * 20
    file = tmp_path / "keys.txt"
    file.write_text(f"# ours\n{ann}\n")
    options = (wan.folder, "--api-keys", file, "--rate", 5, "--host", "0.0.0.0", "--log-prompts")
    with serving(*options, data=tmp_path / "data", environment={"FB_SERVE_API_KEYS": bob}) as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        one, other = server.client(ann), server.client(bob)
        for path in ("/v1/videos", "/v1/models", "/metrics"):
            assert server.ask(path)[0] == 401
        assert server.ask("/health")[0] == 200
        with pytest.raises(openai.AuthenticationError, match="is none of this service's"):
            server.client("c" * 24).videos.list()
        ids = [one.videos.create(prompt="x", extra_body={"steps": 200, "priority": 9}).id for _ in range(4)]
        last = other.videos.create(prompt="what bob asks for", extra_body={"steps": 1}).id
        for call in (other.videos.retrieve, other.videos.delete, other.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                call(ids[0])
        assert [each.id for each in other.videos.list()] == [last]
        one.videos.create(prompt="x", extra_body={"steps": 1})
        with pytest.raises(openai.RateLimitError, match="5 videos a minute may be asked for") as caught:
            one.videos.create(prompt="x")
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
        server.event("job_completed", 6)
        order = [each["job"] for each in server.events("job_started")]
        assert order.index(last) < order.index(ids[3])  # it came last, and its owner has waited longest
        text = "".join(server.text)
        assert ann not in text and bob not in text
        assert "what bob asks for" in text


def test_what_cannot_be_served_is_told_before(wan: Bundle, tmp_path: Path) -> None:
    assert "lets other machines in, but there are no API keys" in refused(wan.folder, "--host", "0.0.0.0")
    short = tmp_path / "short.txt"
    short.write_text("secret\n")
    with pytest.raises(UsageError, match="An API key has 6 characters, but at least 16"):
        read_keys(short, {})
    short.write_text("# none\n")
    with pytest.raises(UsageError, match="has no key; write one a line"):
        read_keys(short, {})
    with pytest.raises(FlowBlendingError, match="Cannot read"):
        read_keys(tmp_path / "none.txt", {})
    assert "--port is 70000, but a number from 0 to 65535" in refused(wan.folder, "--port", 70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(wan.folder, "--port", port, "--data", tmp_path / "data")
    assert f"Cannot listen at 127.0.0.1:{port} (Address already in use)" in said


@pytest.mark.long
def test_a_bundle_may_disappear_while_it_is_served(wan: Bundle, tmp_path: Path) -> None:
    """What is open goes on; a process that has to open it again ends the service, and no accepted video is lost."""
    bundle, away = tmp_path / "bundle", tmp_path / "away"
    shutil.copytree(wan.folder, bundle)
    with serving(bundle, data=tmp_path / "data") as server:
        bundle.rename(away)
        client = server.client()
        done = client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 1})
        assert done.status == "completed"
        ids = [client.videos.create(prompt="x", extra_body={"steps": steps}).id for steps in (1000, 1)]
        server.event("job_started", 2)
        os.kill(server.worker(), signal.SIGKILL)
        assert f"{bundle} is no bundle" in server.event("worker_unable")["why"]
        assert server.process.wait(60) == 1
        wait_until(lambda: server.text[-1].startswith(f"error: {bundle} is no bundle"), "the last line")
        assert "Traceback" not in "".join(server.text)
    away.rename(bundle)
    with serving(bundle, data=tmp_path / "data") as server:
        client = server.client()
        wait_until(lambda: all(client.videos.retrieve(id).status == "completed" for id in ids), "what was accepted")


def test_a_running_service_forgets_what_is_old_and_what_is_too_much(wan: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    videos = data / "videos"

    def make(server: VideoServer, seed: int) -> str:
        asked = {"steps": 1, "seed": seed}
        video = server.client().videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body=asked)
        return str(video.id)

    with serving(wan.folder, data=data) as server:
        first = make(server, 0)
        size = sum(path.stat().st_size for path in videos.iterdir())
    # Room for two videos and a half: of three more, the two newest stay.
    with serving(wan.folder, "--keep-gb", 2.5 * size / 1e9, data=data) as server:
        ids = [first, *(make(server, seed) for seed in (1, 2, 3))]
        server.event("job_expired", 2)
        assert [each["job"] for each in server.events("job_expired")] == ids[:2]
        assert {each.id for each in server.client().videos.list()} == set(ids[2:])
        wait_until(lambda: {path.stem for path in videos.iterdir()} == set(ids[2:]), "the files")
    with serving(wan.folder, "--keep-hours", 0.5 / 3600, "--keep-gb", 0, data=data) as server:
        id = server.client().videos.create(prompt="x", extra_body={"steps": 1}).id
        assert server.event("job_expired")["job"] == id
        assert server.ask(f"/v1/videos/{id}")[0] == server.ask(f"/v1/videos/{id}/content")[0] == 404
        wait_until(lambda: not list(videos.glob(f"{id}*")), "the file")
        assert {each.id for each in server.client().videos.list()} == set(ids[2:])


def add(store: JobStore, *, owner: str = "", most: int = 10, priority: int = 0) -> str:
    about = {"size": "32x48", "frames": 9, "seconds": "1"}
    job = store.add(
        owner=owner,
        model="wan",
        fields={"prompt": "x"},
        about=about,
        priority=priority,
        start_by=None,
        most_waiting=most,
    )
    return job.id


def test_results_expire_by_age_and_by_size(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    ids = [add(store) for _ in range(3)]
    for number, id in enumerate(ids):
        assert store.start(id)
        assert not store.start(id)
        assert store.complete(id, seconds={}, warnings=[], size=100, expires=1000.0 + number)
        assert not store.complete(id, seconds={}, warnings=[], size=100, expires=None)
    assert store.expired(1000.5) == ids[:1]
    assert store.oldest(300) == []
    assert store.oldest(250) == ids[:1]
    assert store.oldest(0) == ids
    full, normal = (2,), (1,)  # of SQLite's synchronous: who has written waits for the disk later, or in this call
    assert tuple(store._connection.execute("PRAGMA synchronous").fetchone()) == normal
    assert store.delete(ids[0])
    assert tuple(store._connection.execute("PRAGMA synchronous").fetchone()) == full
    assert not store.delete(ids[0])
    assert store.counts() == {COMPLETED: 2}
    with pytest.raises(QueueFullError):
        add(store, most=0)
    store.close()


def test_the_disk_has_all_that_was_written_when_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that the disk has, as another machine would find them."""
    path, left = tmp_path / "jobs.sqlite", tmp_path / "left"
    store = JobStore(path)
    waited = []

    def flush(file: Path) -> None:
        waited.append(file.name)
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        for each in (path, file):
            shutil.copyfile(each, left / each.name)

    monkeypatch.setattr("flowblending.runtime.serve.http.store.flush", flush)
    ids = [add(store) for _ in range(3)]
    assert not waited
    store.start(ids[0])
    store.complete(ids[0], seconds={}, warnings=[], size=1, expires=None)
    store.sync()
    found = JobStore(left / "jobs.sqlite")
    assert found.counts() == {COMPLETED: 1, QUEUED: 2}
    assert found.ids() == set(ids)
    found.close()
    store.close()


def test_a_job_that_the_disk_does_not_take_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store, dispatcher = JobStore(tmp_path / "jobs.sqlite"), Mock(draining=False)
    monkeypatch.setattr("flowblending.runtime.serve.http.store.flush", full)
    nothing: Any = Mock()
    service = Service(
        models={},
        store=store,
        data=nothing,
        live=nothing,
        dispatcher=dispatcher,
        keys=nothing,
        metrics=nothing,
        log=nothing,
        limits=Limits(waiting=5),
    )
    request = VideoRequest(model="wan", fields={"prompt": "x"}, about={}, priority=0, start_within=None)
    with pytest.raises(sqlite3.OperationalError, match="the disk does not take it: No space left"):
        service.accept(request, "")
    assert not store.ids()
    assert nothing.event.call_count == 0
    (gone,) = dispatcher.cancel.call_args.args  # a worker may have begun it
    assert gone.startswith("video_")
    store.close()


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(FlowBlendingError, match="are in format 99, but this version knows 1"):
        JobStore(path)
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"something else " * 100)
    with pytest.raises(FlowBlendingError, match="Cannot open the jobs"):
        JobStore(other)


@pytest.mark.long
def test_a_full_disk_is_told_and_gone_when_there_is_room(wan: Bundle, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=600k") as disk, serving(wan.folder, data=disk / "data") as server:
        client = server.client()
        running = client.videos.create(prompt="x", extra_body={"steps": 1000}).id
        server.event("job_started")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        assert refuses(server)
        server.event("database_error")
        assert server.ask("/health")[0] == 200
        filler.unlink()
        # What could not be written down is, and the service goes on.
        wait_until(lambda: client.videos.retrieve(running).status in ("completed", "failed"), "the end")
        after = client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 1})
        assert after.status == "completed"
        assert len(server.events("worker_ready")) == 1


def refuses(server: VideoServer) -> bool:
    """Whether a request ends in the sentence about the disk, within some tries: the journal may have room for a few."""
    for _ in range(50):
        status, answer = server.post({"prompt": "x" * 8000, "steps": 1})
        if status != 200:
            error = answer["error"]
            return bool(status == 503 and error["code"] == "storage" and "free some space" in error["message"])
    return False
