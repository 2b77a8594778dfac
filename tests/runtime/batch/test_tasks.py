"""What a failure of one line means for those that wait."""

import json
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowblending import DeviceError, FlowBlendingError, OutOfMemoryError, UsageError
from flowblending.runtime.batch import tasks, worker
from flowblending.runtime.batch.messages import Failed
from flowblending.runtime.batch.tasks import Batch, Cause, Task, run_batch
from flowblending.runtime.media.video import open_writer
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import PromptLine
from tests.support.left_behind import left_behind
from tests.support.mounts import mounted
from tests.support.store_process import Recorder

Make = Callable[[Task], None]


def batch_of(folder: Path, jobs: Sequence[Job]) -> tuple[Batch, Recorder]:
    console = Recorder()
    return Batch(
        [PromptLine(number=number, job=job) for number, job in enumerate(jobs, start=1)], folder, "b", console
    ), console


def jobs(count: int) -> list[Job]:
    return [Job(prompt=f"prompt {number}") for number in range(1, count + 1)]


def run_with(
    monkeypatch: pytest.MonkeyPatch, batch: Batch, console: Recorder, make: Callable[[Job, Path], None]
) -> int:
    """Run a batch with something in place of the sampling."""

    def generate(_: object, job: Job, out: Path, console: object) -> SimpleNamespace:  # noqa: ARG001
        make(job, out)
        return SimpleNamespace(seconds={"total": 1.0})

    monkeypatch.setattr(tasks, "generate", generate)
    nothing: Any = None
    return run_batch(nothing, batch, console)


def write_video(_: Job, out: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    with open_writer(out, width=64, height=64, frame_rate=8, metadata={}) as writer:
        writer.write(noise)


@contextmanager
def small_files(_: Path) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_stopped(console: Recorder, sampled: Sequence[str], why: str, *, made: int) -> None:
    assert len(sampled) == made + 1
    assert f"line {made + 1} failed: Cannot write " in console.lines[-3]
    assert why in console.lines[-3]
    assert console.lines[-2:] == [
        "warning: 3 more lines were not tried, which would fail alike; mend that and run again.",
        f"{made} made, 0 skipped, 1 failed, 3 not tried",
    ]


def test_a_limit_of_the_user_stops_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, console = batch_of(tmp_path / "out", jobs(4))
    sampled: list[str] = []

    def make(job: Job, out: Path) -> None:
        sampled.append(job.prompt)
        write_video(job, out)

    with small_files(tmp_path):
        assert run_with(monkeypatch, batch, console, make) == 1
    check_stopped(console, sampled, "File too large", made=0)
    assert list((tmp_path / "out").iterdir()) == []


WHY = {"full": "No space left on device", "read-only": "Read-only file system", "gone": "is no folder"}


@pytest.mark.parametrize("change", WHY)
def test_a_disk_stops_a_batch_after_what_it_had_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A disk that is full, becomes read-only, or of which the folder goes, when one of five videos has been made."""
    with mounted(tmp_path / "disk", "size=200k") as disk:
        batch, console = batch_of(disk / "out", jobs(5))
        sampled: list[str] = []

        def make(job: Job, out: Path) -> None:
            sampled.append(job.prompt)
            if len(sampled) == 2 and change == "read-only":
                remount(disk)
            if len(sampled) == 2 and change == "full":
                fill(disk / "filler")
            if len(sampled) == 2 and change == "gone":
                out.parent.rename(disk / "other")
                (disk / "out").touch()
            write_video(job, out)

        assert run_with(monkeypatch, batch, console, make) == 1
        check_stopped(console, sampled, WHY[change], made=1)
        folder = disk / ("other" if change == "gone" else "out")
        assert [path.suffix for path in folder.iterdir()] == [".mp4"]


def test_names_carry_the_line_and_an_index_maps_them(tmp_path: Path) -> None:
    lines = [
        PromptLine(number=2, job=Job(prompt="a cat", seed=5)),
        PromptLine(number=3, error="The line has no prompt."),
        PromptLine(number=7, job=Job(prompt="a dog")),
        PromptLine(number=9, job=Job(prompt="a cat", seed=5)),
        PromptLine(number=10, job=Job(prompt="no", steps=9000)),
        PromptLine(number=12345, job=Job(prompt="far")),
    ]

    def check(job: Job) -> None:
        if job.steps is not None:
            raise UsageError("Too many steps.")

    console = Recorder()
    batch = Batch(lines, tmp_path, "b", console, check=check)
    assert "warning: line 10 failed: Too many steps." in console.lines
    assert batch.unfinished == 3
    batch.write_index("index.json")
    cat, dog, far = (
        f"{lines[place].number:04}-{job.file_stem('b')}.mp4" for place in (0, 2, 5) if (job := lines[place].job)
    )
    assert cat.startswith("0002-a-cat-")
    assert json.loads((tmp_path / "index.json").read_text()) == [
        {"line": 2, "video": cat, "prompt": "a cat", "seed": 5},
        {"line": 3, "error": "The line has no prompt."},
        {"line": 7, "video": dog, "prompt": "a dog", "seed": 0},
        {"line": 9, "video": cat, "prompt": "a cat", "seed": 5},
        {"line": 10, "error": "Too many steps."},
        {"line": 12345, "video": far, "prompt": "far", "seed": 0},
    ]


@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_a_video_that_is_there_is_skipped_under_whatever_line(tmp_path: Path, suffix: str) -> None:
    """Lines were put in before it, or its name is of a time before names had lines."""
    cat, dog = Job(prompt="2024 cats"), Job(prompt="a dog")
    (tmp_path / f"0007-{cat.file_stem('b')}{suffix}").touch()
    (tmp_path / f"{dog.file_stem('b')}{suffix}").touch()
    console = Recorder()
    lines = [PromptLine(number=1, job=dog), PromptLine(number=2, job=cat), PromptLine(number=3, job=Job(prompt="new"))]
    left = [left_behind(path) for path in (*tmp_path.iterdir(), tmp_path / "another")]
    batch = Batch(lines, tmp_path, "b", console, suffix=suffix)
    assert not any(path.exists() for path in left)  # by those who had written them, and were killed then
    batch.write_index("index.json")
    assert batch.unfinished == 1
    assert [line.endswith("already there, skipped") for line in console.lines] == [True, True]
    videos = [entry["video"] for entry in json.loads((tmp_path / "index.json").read_text())]
    assert [(tmp_path / name).exists() for name in videos] == [True, True, False]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def remount(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


@pytest.mark.parametrize(
    ("error", "made"),
    [
        (UsageError("The schedule is empty."), 4),
        (FlowBlendingError("A model gave a non-finite velocity."), 4),
        (RuntimeError("what nobody thought of"), 4),
        (DeviceError("The GPU failed."), 1),
        (OSError(24, "Too many open files"), 1),
        (OutOfMemoryError("The GPU has no 9 MiB left."), 2),
        (MemoryError(), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_only_what_others_share_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, made: int
) -> None:
    """The second of five lines fails; the third is of its size, the fourth smaller, and the fifth of its size."""
    sizes = [None, "64x64", "64x64", "32x32", "64x64"]
    lines = [Job(prompt=f"prompt {number}", size=size) for number, size in enumerate(sizes, start=1)]
    batch, console = batch_of(tmp_path, lines)
    asked: list[str] = []

    def make(job: Job, _: Path) -> None:
        asked.append(job.prompt)
        if job.prompt == "prompt 2":
            raise error

    assert run_with(monkeypatch, batch, console, make) == 1
    left = 4 - made
    assert console.lines[-1] == f"{made} made, 0 skipped, 1 failed" + (f", {left} not tried" if left else "")
    tried = {4: [1, 2, 3, 4, 5], 2: [1, 2, 4], 1: [1, 2]}[made]
    assert asked == [f"prompt {number}" for number in tried]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UsageError("x"), Cause.JOB),
        (DeviceError("x"), Cause.DEVICE),
        (OutOfMemoryError("x"), Cause.MEMORY),
        (MemoryError(), Cause.MEMORY),
    ],
)
def test_a_worker_tells_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Cause
) -> None:
    def generate(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "generate", generate)
    nothing: Any = None
    answer = worker.make(nothing, Task(number=1, job=Job(prompt="x"), out=tmp_path / "x.mp4"), nothing)
    assert isinstance(answer, Failed) and answer.cause == cause
