"""What a failure of one line means for those that wait."""

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
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 5, 64, 64)).astype(np.float32)
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
