"""fb-serve on a Ray cluster: a real one on this machine's CPU, whose replicas are killed, come and go."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.serve.http.store import JobStore
from tests.conftest import Build
from tests.support.ray_processes import ray_processes
from tests.support.required import unavailable
from tests.support.video_server import VideoServer, sent_events, serving, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.embedding]

LONG: dict[str, Any] = {"model": "wan", "steps": 1000, "schedule": "LLL"}
SHORT: dict[str, Any] = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A place for Ray's token, sockets and logs, whose path is short enough for sockets."""
    if importlib.util.find_spec("ray") is None:
        unavailable("Ray is not installed.")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ltx(build: Build) -> Bundle:
    return build("ltx-condition")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster") / "data"


@pytest.fixture(scope="module")
def left(data: Path) -> list[str]:
    """Videos that a service before had accepted, and had begun one of them, when it was killed."""
    data.mkdir()
    store = JobStore(data / "jobs.sqlite")
    about = {"size": "32x48", "frames": 9, "seconds": "1"}
    asked = {"prompt": "x", **SHORT}
    ids = [
        store.add(owner="", model="wan", fields=asked, about=about, priority=0, start_by=None, most_waiting=2).id
        for _ in range(2)
    ]
    assert store.start(ids[0])
    store.close()
    return ids


@pytest.fixture(scope="module")
def cluster(wan: Bundle, ltx: Bundle, data: Path, left: list[str], home: Path) -> Iterator[VideoServer]:
    assert left
    names = (wan.folder, ltx.folder, "--name", "wan", "--name", "ltx")
    options = ("--ray", "local", "--workers", "1..2", "--scale-down", 2)
    with serving(*names, *options, data=data, environment={"HOME": str(home), "TMPDIR": str(home)}) as found:
        yield found
    assert "Traceback" not in "".join(found.text)


def running(server: VideoServer) -> int:
    """Replicas that are there, as the service has told last."""
    told = server.events("replicas")
    return int(told[-1].get("running", 0)) if told else 0


def replicas(home: Path) -> list[int]:
    """Processes that make a video now."""
    return ray_processes(home, "ray::ServeReplica:fb-serve")


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fb_run(bundle: Bundle, folder: Path, *options: str) -> bytes:
    """What fb-run makes of a prompt ``x`` with the options of `SHORT`."""
    command = [sys.executable, "-m", "flowblending.runtime.cli", str(bundle.folder), "--prompt", "x", *options]
    rest = ["--steps", "2", "--seed", "3", "--threads", "1", "--out", "out.mp4"]
    subprocess.run([*command, *rest], check=True, capture_output=True, cwd=folder)
    return (folder / "out.mp4").read_bytes()


def make(server: VideoServer, **asked: Any) -> str:
    """A video that was made: its id."""
    video = server.client().videos.create_and_poll(prompt="x", poll_interval_ms=20, extra_body=asked)
    assert video.status == "completed", video.error
    return str(video.id)


def step(server: VideoServer, id: str) -> int:
    """Steps that were made of a video; looked at with pauses, because one processor may have to do all of it."""
    time.sleep(0.1)
    return int(server.ask(f"/v1/videos/{id}")[1].get("step") or 0)


def test_what_a_killed_service_had_accepted_is_made(cluster: VideoServer, left: list[str]) -> None:
    assert [each["job"] for each in cluster.events("job_recovered")] == left[:1]
    client = cluster.client()
    wait_until(lambda: all(client.videos.retrieve(id).status == "completed" for id in left), "what was accepted")


def test_two_bundles_that_take_turns_are_fb_runs_byte_for_byte(
    cluster: VideoServer, wan: Bundle, ltx: Bundle, data: Path, tmp_path: Path
) -> None:
    client = cluster.client()
    (tmp_path / "cat.png").write_bytes(picture())
    plain = fb_run(wan, tmp_path)
    shown = fb_run(ltx, tmp_path, "--image", "cat.png", "--size", "96x64")
    for _ in range(2):  # the other one's engines have gone in between
        id = make(cluster, model="wan", **SHORT)
        assert client.videos.download_content(id).read() == plain
        video = client.videos.create_and_poll(
            prompt="x",
            input_reference=("cat.png", picture()),
            poll_interval_ms=20,
            extra_body={"model": "ltx", "size": "96x64", **SHORT},
        )
        assert video.status == "completed", video.error
        assert client.videos.download_content(video.id).read() == shown
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).size == (96, 64)
    assert {path.suffix for path in (data / "videos").glob(f"{video.id}*")} == {".mp4", ".png", ".upload"}
    text = cluster.ask("/metrics")[1].decode()
    assert "flowblending_videos_total" in text
    assert 'flowblending_replicas{state="running"} 1.0' in text
    assert "flowblending_worker_resident_bytes{" not in text
    assert running(cluster) == 1


def test_a_video_that_is_watched_and_given_up_makes_room_for_the_next(cluster: VideoServer, data: Path) -> None:
    id = cluster.client().videos.create(prompt="x", extra_body=LONG).id
    wait_until(lambda: step(cluster, id) > 0, "the first step")
    shown = (video for _, video in sent_events(cluster, id, "?preview=true"))
    assert next(video["preview_step"] for video in shown if "preview" in video) > 0
    cluster.client().videos.delete(id)
    began = time.monotonic()
    make(cluster, model="wan", **SHORT)
    assert time.monotonic() - began < 30
    assert [each["job"] for each in cluster.events("job_cancelled")] == [id]
    assert not list((data / "videos").glob(f"{id}*"))


def test_replicas_come_with_the_queue_and_go_without(cluster: VideoServer) -> None:
    videos = cluster.client().videos
    waiting: set[str] = set()

    def two_at_a_time() -> bool:
        """Whether two are being made. In the place of one that was made meanwhile, another one is asked for."""
        found = {id: videos.retrieve(id).status for id in waiting}
        waiting.intersection_update(id for id, status in found.items() if status != "completed")
        while len(waiting) < 2:
            waiting.add(videos.create(prompt="x", extra_body=LONG).id)
        time.sleep(0.1)
        return list(found.values()) == ["in_progress"] * 2

    wait_until(two_at_a_time, "two videos at a time", 120)
    wait_until(lambda: running(cluster) == 2, "the second replica")
    for id in waiting:
        videos.delete(id)
    wait_until(lambda: running(cluster) == 1, "the end of the second replica")


def test_a_video_whose_replica_is_killed_is_tried_once_more(cluster: VideoServer, home: Path, data: Path) -> None:
    client = cluster.client()
    begun = len(cluster.events("job_started"))

    def kill(id: str, times: int) -> None:
        """Kill the replica that makes a video, which is the only one, in the middle."""
        cluster.event("job_started", begun + times)
        wait_until(lambda: step(cluster, id) > 0, "the first step")
        for process in replicas(home):
            os.kill(process, signal.SIGKILL)
        cluster.event("worker_crashed", times)

    id = client.videos.create(prompt="x", extra_body={"model": "wan", "steps": 200, "schedule": "LLL"}).id
    kill(id, 1)
    cluster.event("job_completed", len(cluster.events("job_completed")) + 1)
    assert client.videos.retrieve(id).status == "completed"
    assert [each["job"] for each in cluster.events("job_completed")].count(id) == 1
    begun += 1  # by its second try
    other = client.videos.create(prompt="x", extra_body=LONG).id
    kill(other, 2)
    kill(other, 3)
    assert cluster.event("job_failed")["job"] == other
    error = client.videos.retrieve(other).error
    assert error is not None
    assert error.code == "worker_crashed"
    assert not list((data / "videos").glob(f"{other}*"))
    make(cluster, model="wan", **SHORT)
    assert "flowblending_worker_crashes_total 3.0" in cluster.ask("/metrics")[1].decode()


def test_sigterm_lets_a_video_end_and_leaves_no_cluster(cluster: VideoServer, home: Path, data: Path) -> None:
    made, waits = (
        cluster.client().videos.create(prompt="x", extra_body={"model": "wan", "steps": steps}).id for steps in (200, 2)
    )
    wait_until(lambda: step(cluster, made) > 0, "the first step")
    assert cluster.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert cluster.text[-1].startswith("ended by SIGTERM")
    deadline = time.monotonic() + 30
    while ray_processes(home, "ray::"):
        assert time.monotonic() < deadline, "the cluster is still there"
        time.sleep(0.2)
    store = JobStore(data / "jobs.sqlite")
    ended = {id: found.status for id in (made, waits) if (found := store.get(id)) is not None}
    store.close()
    assert ended[made] == "completed"
    assert ended[waits] in ("completed", "queued")  # there is room for two
