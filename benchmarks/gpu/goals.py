"""What the project has set out to reach on a GPU, held against what was measured: met or missed, with both numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu.pairs import PAIRS
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import BUILT, OVERHEAD, video_stage
from benchmarks.gpu.videos import ALL_LARGE, VIDEOS, video_key
from flowblending.contracts.graph import Precision

SHARE = 0.97
_FULL = 50
_SECONDS = (
    ("all-large in bf16", Precision.BF16, ("LLL",), 216.0),
    ("LSL with fp8", Precision.FP8, ("LSL",), 120.0),
    ("LSL with fp8 and a step cache", Precision.FP8, ("LSL taylor:1", "LSL taylor:2"), 60.0),
)
"""Of Wan T2V 14B, 832x480, 81 frames, 50 steps with guidance on one H200."""
_MICROSECONDS = 20.0

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal and what was measured of it.

    Attributes:
        goal: in words, with its number.
        measured: in words; empty if nothing was.
        verdict: one of this module's.
    """

    goal: str
    measured: str
    verdict: str


def goals(records: Mapping[str, Record]) -> list[Goal]:
    """All of them, in the order in which they were set."""
    gpu = next((record.gpu for record in records.values() if record.gpu), None)
    return [*_shares(records), *_seconds(records, gpu), _overhead(records)]


def speed_up(record: Record, key: str) -> tuple[float, float] | None:
    """How much faster a video's sampling was than all-large sampling in as many steps, and the FLOPs' bound."""
    if key not in record.items or ALL_LARGE not in record.items:
        return None
    video, large = record.items[key], record.items[ALL_LARGE]
    if video["steps"] != large["steps"]:
        return None
    return large["sampling"] / video["sampling"], video["bound"]


def full_video(video: Mapping[str, float]) -> float:
    """Seconds of a video in 50 steps; in proportion, where fewer were sampled."""
    return video["video"] + video["sampling"] * (_FULL / video["steps"] - 1)


def _shares(records: Mapping[str, Record]) -> Iterator[Goal]:
    """One goal for each pair: the least share, of all builds and schedules."""
    for pair in PAIRS.values():
        found = []
        for backend, precision in BUILT:
            record = records.get(video_stage(pair, backend, precision))
            for schedule, cache in VIDEOS:
                key = video_key(schedule, cache)
                reached = None if record is None or key == ALL_LARGE else speed_up(record, key)
                if reached is not None:
                    found.append((reached[0] / reached[1], f"{backend} {precision} {key}", *reached))
        goal = f"{pair.title}: speed-ups at least {SHARE} of their FLOPs bounds"
        if not found:
            yield Goal(goal=goal, measured="", verdict=NOT_MEASURED)
            continue
        share, what, reached_speed, bound = min(found)
        measured = f"at least {share:.3f} ({what}: {reached_speed:.3f}x of {bound:.3f}x)"
        yield Goal(goal=goal, measured=measured, verdict=MET if share >= SHARE else MISSED)


def _seconds(records: Mapping[str, Record], gpu: str | None) -> Iterator[Goal]:
    """The fastest back end counts."""
    elsewhere = "" if gpu is None or "H200" in gpu else f" on {gpu}"
    pair = PAIRS["wan-480p"]
    for what, precision, keys, most in _SECONDS:
        goal = f"{pair.title}, 50 steps with guidance on one H200: {what} within {most:.0f} s"
        found = []
        for backend, built in BUILT:
            record = records.get(video_stage(pair, backend, built))
            # ONNX Runtime has no bf16 for these graphs: its fp16 is what it has in 16 bits.
            fits = built is precision or (precision is Precision.BF16 and built is Precision.FP16)
            for key in keys if record is not None and fits else ():
                assert record is not None
                video = record.items.get(key)
                if video is not None:
                    scaled = "" if video["steps"] == _FULL else f", scaled from {video['steps']} steps"
                    found.append((full_video(video), f"{backend} {built} {key}{scaled}"))
        if not found:
            yield Goal(goal=goal, measured="", verdict=NOT_MEASURED)
            continue
        seconds, how = min(found)
        measured = f"{seconds:.1f} s{elsewhere} ({how})"
        yield Goal(goal=goal, measured=measured, verdict=MET if seconds <= most else MISSED)


def _overhead(records: Mapping[str, Record]) -> Goal:
    goal = f"host overhead of a step under a CUDA graph at most {_MICROSECONDS:.0f} microseconds"
    record = records.get(OVERHEAD)
    found = {
        key: told["host microseconds per step"]
        for key, told in (record.items if record is not None else {}).items()
        if told.get("graph")
    }
    if not found:
        return Goal(goal=goal, measured="", verdict=NOT_MEASURED)
    key, most = max(found.items(), key=lambda each: each[1])
    return Goal(goal=goal, measured=f"{most:.1f} ({key})", verdict=MET if most <= _MICROSECONDS else MISSED)
