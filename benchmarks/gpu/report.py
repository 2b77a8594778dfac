"""The table and the JSON of everything that was measured, made of the stages' records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.backends import BACKENDS
from benchmarks.gpu.goals import full_video, goals, speed_up
from benchmarks.gpu.pairs import PAIRS, Pair
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import BUILT, ENVIRONMENT, OVERHEAD, backend_stage, torch_stage, video_stage
from benchmarks.gpu.videos import VIDEOS, video_key
from flowblending.system.whole_file import replace_file

MARKDOWN, JSON = "gpu.md", "gpu.json"
_GIGA = 1e9


def write_report(records: Mapping[str, Record], out: Path) -> None:
    """Write ``gpu.md`` and ``gpu.json`` into a folder."""
    content = {
        "gpu": next((record.gpu for record in records.values() if record.gpu), None),
        "tiny": any(record.tiny for record in records.values()),
        "goals": [asdict(goal) for goal in goals(records)],
        "stages": {name: asdict(record) for name, record in records.items()},
    }
    replace_file(out / JSON, (json.dumps(content, indent=2) + "\n").encode())
    replace_file(out / MARKDOWN, (markdown(records) + "\n").encode())


def markdown(records: Mapping[str, Record]) -> str:
    """The report for people."""
    parts = ["# Measured on a GPU", *_environment(records), *_goals(records), *_overhead(records), *_backends(records)]
    for pair in PAIRS.values():
        parts += _pair(pair, records)
    return "\n\n".join([*parts, *_stages(records)])


def _environment(records: Mapping[str, Record]) -> Iterator[str]:
    if any(record.tiny for record in records.values()):
        yield "This was a trial with tiny models: none of the figures means anything."
    record = records.get(ENVIRONMENT)
    if record is None:
        return
    facts = {name: told for told in record.items.values() for name, told in told.items() if name != "took"}
    yield _table(("what", "is"), [(name, _plain(value)) for name, value in facts.items()])


def _goals(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Goals"
    yield _table(("goal", "measured", ""), [(goal.goal, goal.measured, goal.verdict) for goal in goals(records)])


def _overhead(records: Mapping[str, Record]) -> Iterator[str]:
    record = records.get(OVERHEAD)
    if record is None or not record.items:
        return
    yield "## The loop beside its engines"
    names = ("host", "GPU", "wall")
    rows = [
        (key, *(f"{told[f'{name} microseconds per step']:.1f}" for name in names)) for key, told in record.items.items()
    ]
    yield _table(("microseconds a step", *names), rows)


def _backends(records: Mapping[str, Record]) -> Iterator[str]:
    rows = []
    for backend in BACKENDS:
        record = records.get(backend_stage(backend))
        if record is None:
            continue
        rows += [
            (f"{backend} {key}", f"{told['difference']:.1e}", _number(told.get("compile"), 1))
            for key, told in record.items.items()
        ]
        rows += [(f"{backend} {key}", sentence, "") for key, sentence in record.failures.items()]
    if not rows:
        return
    yield "## Back ends on tiny models"
    yield _table(("what", "from the CPU", "seconds to compile"), rows)


def _pair(pair: Pair, records: Mapping[str, Record]) -> list[str]:
    built = {(backend, precision): records.get(video_stage(pair, backend, precision)) for backend, precision in BUILT}
    found = {f"{backend} {precision}": record for (backend, precision), record in built.items() if record is not None}
    calls = [*_torch_rows(records.get(torch_stage(pair))), *_call_rows(found)]
    videos = [row for name, record in found.items() for row in _video_rows(name, record)]
    parts = []
    if calls:
        parts.append(_table(("seconds of a call", "model", "seconds", "TFLOPs per second"), calls))
    if videos:
        columns = ("video", "steps", "sampling, s", "video, s", "in 50 steps, s", "speed-up", "bound", "share")
        parts.append(_table((*columns, "memory, GB", "planned, GB"), videos))
    switches = [
        (name, f"{1000 * record.items['switch']['seconds per switch']:.2f}")
        for name, record in found.items()
        if "switch" in record.items
    ]
    if switches:
        parts.append(_table(("built for", "milliseconds a switch"), switches))
    return [f"## {pair.title}", *parts] if parts else []


def _torch_rows(record: Record | None) -> Iterator[tuple[str, ...]]:
    for key, told in (record.items if record is not None else {}).items():
        model, _, how = key.partition(" ")
        yield f"torch {how}, bf16", model, f"{told['median']:.4f}", ""


def _call_rows(found: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    for name, record in found.items():
        for model, told in record.items.get("calls", {"models": {}})["models"].items():
            yield name, model, f"{told['seconds']:.4f}", f"{told['TFLOPs per second']:.0f}"


def _video_rows(name: str, record: Record) -> Iterator[tuple[str, ...]]:
    for schedule, cache in VIDEOS:
        key = video_key(schedule, cache)
        told = record.items.get(key)
        if told is None:
            continue
        reached, memory = speed_up(record, key), told["memory"]
        yield (
            f"{name}: {key}",
            str(told["steps"]),
            f"{told['sampling']:.2f}",
            f"{told['video']:.2f}",
            f"{full_video(told):.1f}",
            *(("", "", "") if reached is None else _speed(*reached)),
            _number(memory["peak bytes"], 1, _GIGA),
            f"{_number(memory['planned bytes'], 1, _GIGA)} {memory['mode']}",
        )


def _speed(reached: float, bound: float) -> tuple[str, str, str]:
    return f"{reached:.3f}x", f"{bound:.3f}x", f"{reached / bound:.3f}"


def _stages(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Stages"
    rows = [
        (name, record.state or "not finished", f"{record.seconds:.0f}", record.sentence or "")
        for name, record in records.items()
    ]
    yield _table(("stage", "state", "seconds", ""), rows)


def _number(value: Any, digits: int, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _plain(value: object) -> str:
    return f"{value / _GIGA:.1f} GB" if isinstance(value, int) and value > _GIGA else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
