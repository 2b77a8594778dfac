"""Throughput and latency: the same videos by a bare loop of the Python API, and by the service."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import flowblending
from benchmarks.serve.server import Service, serving

PROMPT = "a red circle moves right"


@dataclass(frozen=True)
class Work:
    """So many videos: seconds on the wall, and of processors, which other programs take no part of."""

    wall: float
    cpu: float


def _loop(bundle: Path, out: Path, options: Mapping[str, Any], count: int, told: Connection) -> None:
    """One process of the bare loop: the engines are open and warm before it is told to begin."""
    with flowblending.open(bundle, device="cpu", threads=1) as sampler:
        sampler.generate(PROMPT, **options).save(out / "warm.mp4")
        told.send(0.0)
        told.recv()
        before = time.process_time()
        for seed in range(count):
            sampler.generate(PROMPT, seed=seed, **options).save(out / f"{seed}.mp4")
        told.send(time.process_time() - before)


def bare(bundle: Path, folder: Path, options: Mapping[str, Any], *, processes: int, count: int) -> Work:
    """So many processes that make so many videos each."""
    context = multiprocessing.get_context("spawn")
    workers, ends = [], []
    for number in range(processes):
        out = folder / f"bare-{number}"
        out.mkdir(parents=True, exist_ok=True)
        ours, theirs = context.Pipe()
        ends.append(ours)
        workers.append(context.Process(target=_loop, args=(bundle, out, options, count, theirs)))
        workers[-1].start()
    for end in ends:
        end.recv()
    began = time.monotonic()
    for end in ends:
        end.send(None)
    cpu = sum(end.recv() for end in ends)
    wall = time.monotonic() - began
    for each in workers:
        each.join()
    return Work(wall, cpu)


def saturated(service: Service, options: Mapping[str, Any], *, count: int) -> Work:
    """So many videos that wait from the beginning, asked for and done."""
    done, cpu = len(service.named("job_completed")), service.processor_seconds()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda seed: _create(service, {**options, "seed": seed}), range(count))
        assert all(asked)
    service.wait_for("job_completed", done + count)
    return Work(time.monotonic() - began, service.processor_seconds() - cpu)


def _create(service: Service, fields: Mapping[str, Any]) -> str:
    status, body = service.ask("POST", "/v1/videos", {"prompt": PROMPT, **fields})
    assert status == 200, body
    return str(json.loads(body)["id"])


_PICKS: Mapping[str, Callable[[list[float]], float]] = {"median": statistics.median, "least": min, "most": max}


def throughput(bundle: Path, folder: Path, options: Mapping[str, Any], *, workers: int, count: int, rounds: int) -> Any:
    """Both in turns, so that what else the machine does meets both. A ratio above 1: the service is the faster one."""
    found = []
    with serving(bundle, folder / "throughput", workers=workers) as service:
        saturated(service, options, count=workers)
        for _ in range(rounds):
            loop = bare(bundle, folder, options, processes=workers, count=count)
            served = saturated(service, options, count=count * workers)
            found.append({"bare": asdict(loop), "served": asdict(served)})
    ratios = {kind: [each["bare"][kind] / each["served"][kind] for each in found] for kind in ("wall", "cpu")}
    return {
        "workers": workers,
        "videos": count * workers,
        "rounds": found,
        **{f"{kind}_ratio_{word}": pick(ratios[kind]) for kind in ratios for word, pick in _PICKS.items()},
    }


def latency(bundle: Path, folder: Path, options: Mapping[str, Any], *, count: int) -> Any:
    """What a client waits beyond the making: a synchronous request's time less what its worker says it took.

    One at a time, with one worker, so that nothing waits in the queue. The request's time ends with the MP4's last
    byte.
    """
    added, whole = [], []
    with serving(bundle, folder / "latency", workers=1) as service:
        for seed in range(count + 3):
            began = time.monotonic()
            status, _ = service.ask("POST", "/v1/videos/sync", {"prompt": PROMPT, "seed": seed, **options})
            seconds = time.monotonic() - began
            assert status == 200
            made = json.loads(service.ask("GET", "/v1/videos?limit=1")[1])["data"][0]
            if seed >= 3:  # the first ones warm up
                whole.append(seconds)
                added.append(seconds - made["timings"]["total"])
    return {
        "requests": count,
        "request_p50_ms": 1000 * statistics.median(whole),
        "added_least_ms": 1000 * min(added),
        "added_p50_ms": 1000 * statistics.median(added),
        "added_p95_ms": 1000 * statistics.quantiles(added, n=20)[18],
    }


def polls(bundle: Path, folder: Path, options: Mapping[str, Any], *, clients: int, seconds: float) -> Any:
    """How long a status request takes while a video is made, and how many there are a second."""
    times: list[float] = []
    with serving(bundle, folder / "polls", workers=1) as service:
        id = _create(service, {**options, "steps": 1000})
        service.wait_for("job_started")
        deadline = time.monotonic() + seconds

        def poll() -> None:
            while time.monotonic() < deadline:
                began = time.monotonic()
                assert service.video(id) is not None
                times.append(time.monotonic() - began)

        threads = [threading.Thread(target=poll) for _ in range(clients)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        service.ask("DELETE", f"/v1/videos/{id}")
    return {"clients": clients, "a_second": len(times) / seconds, "p50_ms": 1000 * statistics.median(times)}
