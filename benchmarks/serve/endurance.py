"""Many jobs with cancels, kills and bad requests: what was accepted, what became of it, and the memory on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serve.server import Gone, Service, serving

BAD: tuple[Mapping[str, object] | bytes, ...] = (
    b"{",
    b"[]",
    {"prompt": ""},
    {"prompt": "x", "steps": 0},
    {"prompt": "x", "schedule": "LQL"},
    {"prompt": "x", "size": "7x7"},
    {"prompt": "x", "model": "none"},
    {"prompt": "x", "shedule": "LSL"},
    {"prompt": "x" * 100_000},
    {"prompt": "x", "seed": -1},
)
"""Each is refused with 400 or 404."""
BAD_PATHS = ("/v1/videos/video_0", "/v1/videos/../jobs.sqlite", "/v1/videos/%2e%2e%2fjobs.sqlite/content")


@dataclass
class Tally:
    """What the clients know.

    Attributes:
        accepted: ids that were answered with 200.
        deleted: of those, that were deleted with 200.
        outcomes: of other requests, by what they were and their status.
    """

    accepted: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Holder:
    """The service, which is another one after a kill."""

    def __init__(self, bundle: Path, data: Path, workers: int) -> None:
        self._stack = ExitStack()
        self._what = (bundle, data, workers)
        self.earlier: list[Service] = []
        self.now = self._start()

    def _start(self) -> Service:
        bundle, data, workers = self._what
        return self._stack.enter_context(serving(bundle, data, workers=workers))

    def kill(self) -> None:
        """Kill the service, not its workers, by SIGKILL, and start another one with the same folder."""
        self.now.process.send_signal(signal.SIGKILL)
        self.now.process.wait()
        self.earlier.append(self.now)
        self.now = self._start()

    def kill_worker(self) -> None:
        """Kill the worker that became ready last."""
        with suppress(ProcessLookupError):
            os.kill(int(self.now.named("worker_ready")[-1]["process"]), signal.SIGKILL)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Of all services there were."""
        return [event for each in (*self.earlier, self.now) for event in each.named(name)]

    def close(self) -> None:
        """End it."""
        self._stack.close()


@contextmanager
def _held(bundle: Path, data: Path, workers: int) -> Iterator[Holder]:
    holder = Holder(bundle, data, workers)
    try:
        yield holder
    finally:
        holder.close()


def endurance(bundle: Path, folder: Path, options: Mapping[str, Any], *, jobs: int, workers: int, kills: int) -> Any:
    """Run it, and say what is left.

    The first half has kills: ``kills`` of the service and twice as many of a worker. Memory is looked at in the second.
    """
    tally, draw, memory = Tally(), random.Random(7), []
    data = folder / "endurance"
    began = time.monotonic()
    with _held(bundle, data, workers) as holder:
        every = max(1, jobs // 2 // (3 * kills + 1))
        for number in range(jobs):
            if 0 < number < jobs // 2 and number % every == 0:
                holder.kill() if number // every % 3 == 0 else holder.kill_worker()
            _client(holder, tally, draw, options, number)
            if number >= jobs // 2 and number % (jobs // 20) == 0:
                _drain(holder, tally)
                memory.append({"jobs": number, "service_bytes": holder.now.resident(), **_workers(holder.now)})
        _drain(holder, tally)
        report = _audit(holder, tally, data)
    return {"seconds": time.monotonic() - began, **report, "memory": memory}


def _client(holder: Holder, tally: Tally, draw: random.Random, options: Mapping[str, Any], number: int) -> None:
    """One job, and by chance a bad request or a deletion beside it."""
    try:
        status, body = holder.now.ask(
            "POST", "/v1/videos", {"prompt": f"a circle, {number}", "seed": number, **options}
        )
        tally.outcomes[f"create {status}"] += 1
        if status == 200:
            tally.accepted.add(json.loads(body)["id"])
        if draw.random() < 0.25:
            status, _ = holder.now.ask("POST", "/v1/videos", draw.choice(BAD))
            tally.outcomes[f"bad {status}"] += 1
        if draw.random() < 0.1:
            status, _ = holder.now.ask("GET", draw.choice(BAD_PATHS))
            tally.outcomes[f"bad path {status}"] += 1
        if draw.random() < 0.2 and tally.accepted - tally.deleted:
            id = draw.choice(sorted(tally.accepted - tally.deleted)[-20:])
            status, _ = holder.now.ask("DELETE", f"/v1/videos/{id}")
            tally.outcomes[f"delete {status}"] += 1
            tally.deleted |= {id} if status == 200 else set()
    except Gone:
        tally.outcomes["no answer"] += 1


def _drain(holder: Holder, tally: Tally) -> None:
    """Wait until nothing waits and nothing is made."""
    while True:
        text = holder.now.ask("GET", "/metrics")[1].decode()
        left = [float(line.split()[-1]) for line in text.splitlines() if _unfinished(line)]
        over = {each["job"] for name in ("job_completed", "job_failed") for each in holder.events(name)}
        if not any(left) and tally.accepted - tally.deleted <= over:
            return
        time.sleep(0.2)


def _unfinished(line: str) -> bool:
    return line.startswith(('flowblending_jobs{status="queued"}', 'flowblending_jobs{status="in_progress"}'))


def _workers(service: Service) -> dict[str, int]:
    text = service.ask("GET", "/metrics")[1].decode()
    found = [line for line in text.splitlines() if line.startswith("flowblending_worker_resident_bytes{")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in found}


def _audit(holder: Holder, tally: Tally, data: Path) -> dict[str, Any]:
    """Compare what clients were told with what the service has and what lies on the disk."""
    kept = tally.accepted - tally.deleted
    shown = {id: holder.now.video(id) for id in tally.accepted}
    statuses = Counter(video["status"] for id in kept if (video := shown[id]) is not None)
    completed = Counter(each["job"] for each in holder.events("job_completed"))
    files = {path.stem for path in (data / "videos").glob("*.mp4")}
    codes = Counter(video["error"]["code"] for video in shown.values() if video and video["error"])
    return {
        "accepted": len(tally.accepted),
        "deleted": len(tally.deleted),
        "requests": dict(sorted(tally.outcomes.items())),
        "kills_of_the_service": len(holder.earlier),
        "crashes_of_workers": len(holder.events("worker_crashed")),
        "status_of_what_was_kept": dict(statuses),
        "failed_by_code": dict(codes),
        "lost": sum(shown[id] is None for id in kept),
        "completed_twice": sum(count > 1 for count in completed.values()),
        "deleted_but_there": sum(shown[id] is not None for id in tally.deleted),
        "completed_without_file": sum(
            video is not None and video["status"] == "completed" and id not in files for id, video in shown.items()
        ),
        "files_of_nobody": len(files - _listed(holder.now)),
    }


def _listed(service: Service) -> set[str]:
    """The ids of all videos that the service has, page by page."""
    found: set[str] = set()
    path = "/v1/videos?limit=100"
    while True:
        page = json.loads(service.ask("GET", path)[1])
        found |= {each["id"] for each in page["data"]}
        if not page["has_more"]:
            return found
        path = f"/v1/videos?limit=100&after={page['last_id']}"
