"""Many videos by several processes: what is tried again, what is given up, and what is left when all is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowblending import UsageError
from flowblending.runtime.batch.process import WorkerConfig
from flowblending.runtime.batch.tasks import Batch, Shard, Task
from flowblending.runtime.batch.workers import plan_workers, run_workers
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import PromptLine
from tests.conftest import Build
from tests.support.mounts import mounted
from tests.support.store_process import Recorder

pytestmark = pytest.mark.embedding


def batch(folder: Path, prompts: Sequence[str]) -> tuple[Batch, Recorder]:
    console = Recorder()
    lines = [PromptLine(number=number, job=Job(prompt=prompt)) for number, prompt in enumerate(prompts, start=1)]
    return Batch(lines, folder, "bundle", console), console


def taken(batch: Batch, worker: str, *, alone: bool = False) -> Task:
    task = batch.take(worker, alone=alone)
    assert task is not None
    return task


def test_a_task_is_tried_again_once_and_elsewhere(tmp_path: Path) -> None:
    todo, console = batch(tmp_path, ["a", "b"])
    first = taken(todo, "worker 1")
    todo.crashed(first, "worker 1", "killed by SIGKILL")
    assert console.lines == ["warning: line 1: worker 1 crashed (killed by SIGKILL); the prompt is tried once again."]
    assert taken(todo, "worker 1").number == 2  # not the one that it died of
    assert todo.take("worker 1", alone=False) is None
    assert todo.unfinished == 2
    again = taken(todo, "worker 2")
    assert again.number == 1
    todo.crashed(again, "worker 2", "exit code 3")
    assert console.lines[-1] == "warning: line 1 failed: worker 2 crashed (exit code 3), as worker 1 had before."
    assert todo.unfinished == 1


def test_a_worker_that_is_alone_gets_its_own_task_again(tmp_path: Path) -> None:
    todo, console = batch(tmp_path, ["a", "b"])
    todo.crashed(taken(todo, "worker 1"), "worker 1", "killed by SIGSEGV")
    todo.made(taken(todo, "worker 1", alone=True), 2.0)
    todo.failed(taken(todo, "worker 1", alone=True), "The schedule is empty.")
    assert todo.take("worker 1", alone=True) is None
    assert todo.finish() == 1
    assert console.lines[-2:] == ["warning: line 2 failed: The schedule is empty.", "1 made, 0 skipped, 1 failed"]


def test_a_line_that_is_there_twice_is_made_once(tmp_path: Path) -> None:
    todo, console = batch(tmp_path, ["a", "b", "a"])
    assert todo.unfinished == 2
    assert console.lines[0].endswith(".mp4: line 3 is line 1 again, skipped")


def test_what_nobody_could_make_is_reported(tmp_path: Path) -> None:
    todo, console = batch(tmp_path, ["a", "b"])
    assert todo.finish() == 1
    assert console.lines[-2:] == [
        "warning: line 2 failed: no worker is left; run again to make it.",
        "0 made, 0 skipped, 2 failed",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_line_is_in_one_shard(count: int) -> None:
    shards = [Shard.parse(f"{index}/{count}") for index in range(1, count + 1)]
    for number in range(1, 30):
        assert [shard.index for shard in shards if shard.holds(number)] == [(number - 1) % count + 1]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "a/b", "-1/2", "1/2/3", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="but i/n with i from 1 to n was expected"):
        Shard.parse(text)


def test_cores_are_shared_and_gpus_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [config.machine.threads for config in plan_workers(3, "cpu", DEFAULTS)] == [2, 2, 2]
    assert [config.machine.threads for config in plan_workers(16, "cpu", DEFAULTS)] == [1] * 16
    assert [config.machine.threads for config in plan_workers(2, "cpu", MachineSettings(threads=7))] == [7, 7]
    monkeypatch.setattr("flowblending.runtime.batch.workers.gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [config.gpu for config in plan_workers(2, "cuda", DEFAULTS)] == ["0", "1"]
    for graphs in (True, False):
        (config,) = plan_workers(1, "cuda", MachineSettings(cuda_graph=graphs))
        assert config.machine.cuda_graph == graphs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8932f937")
    assert [config.gpu for config in plan_workers(2, "cuda", DEFAULTS)] == [
        "5",
        "GPU-8932f937",
    ]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match="no GPU is visible"):
        patch.setattr("flowblending.runtime.batch.workers.gpu_count", lambda: 0)
        plan_workers(1, "cuda", DEFAULTS)
    with pytest.raises(UsageError, match="3 workers were asked for, but 2 GPUs are visible; use --workers 2"):
        plan_workers(3, "cuda", DEFAULTS)


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (3,)


@pytest.mark.slow
def test_a_worker_that_never_starts_is_given_up(tmp_path: Path) -> None:
    todo, console = batch(tmp_path, ["a"])
    bomb: Any = Bomb()  # in a folder's place; it never gets there
    assert run_workers([WorkerConfig(name="worker 1")], bomb, "cpu", todo, console) == 1
    assert console.lines == [
        "warning: worker 1 was given up, for it crashed 3 times in a row (exit code 3).",
        "warning: line 1 failed: no worker is left; run again to make it.",
        "0 made, 0 skipped, 1 failed",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "x", "--workers", "2"), "are for --prompts FILE"),
        (("--prompt", "x", "--shard", "1/2"), "are for --prompts FILE"),
        (("--prompt", "x", "--ray", "local"), "are for --prompts FILE"),
        (("--prompts", "x", "--workers", "0"), "0 workers were asked for"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    process = fb_run(tmp_path, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in errors


def fb_run(*arguments: object, seconds: int | None = None) -> subprocess.Popen[str]:
    """Start fb-run in a process group of its own; each of its processes may compute for ``seconds``."""
    command = [sys.executable, "-m", "flowblending.runtime.cli", *map(str, arguments)]
    if seconds is not None:
        command = ["bash", "-c", f'ulimit -c 0 -t {seconds}; exec "$@"', "bash", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that fb-run has spawned for work."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def working(pid: int) -> bool:
    """Whether a worker has begun a task, for which it has loaded ONNX Runtime."""
    return b"onnxruntime" in Path(f"/proc/{pid}/maps").read_bytes()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


LONG = '{"prompt": "forever", "steps": 1000, "solver": "euler"}\n'
"""A line that takes longer than its test, on a bundle of a larger size."""


@pytest.fixture
def slow(build: Build) -> Path:
    """The engines of ``build("wan")`` for larger videos: a step takes ten times as long."""
    return build("wan", size="128x96", frames=33).folder


def prompts(folder: Path) -> list[str]:
    """The first words of the videos' names, which are their prompts."""
    return sorted(name.split("-")[1] for name in os.listdir(folder) if name != "index.json")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced_and_its_prompt_made(build: Build, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("one\ntwo\nthree\n{broken\n")
    arguments = (build("wan").folder, "--prompts", tmp_path / "prompts", "--out", tmp_path / "out", "--device", "cpu")
    process = fb_run(*arguments, "--steps", 250, "--workers", 2)
    until(lambda: any(working(pid) for pid in workers_of(process)))
    os.kill(next(pid for pid in workers_of(process) if working(pid)), signal.SIGKILL)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 1  # for the line that is broken
    assert "crashed (killed by SIGKILL); the prompt is tried once again" in errors
    assert told == "3 made, 0 skipped, 1 failed\n"
    assert prompts(tmp_path / "out") == ["one", "three", "two"]
    # A later run skips them; and shards see the same names.
    for shard, outcome in (("1/2", "0 made, 2 skipped, 0 failed"), ("2/2", "0 made, 1 skipped, 1 failed")):
        process = fb_run(*arguments, "--steps", 250, "--workers", 2, "--shard", shard)
        assert outcome in process.communicate(timeout=60)[0]


@pytest.mark.slow
def test_a_prompt_that_always_kills_its_worker_is_reported_and_the_rest_finish(slow: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(f"one\n{LONG}two\nthree\n")
    arguments = (slow, "--prompts", tmp_path / "prompts", "--out", tmp_path / "out", "--device", "cpu")
    process = fb_run(*arguments, "--steps", 2, "--workers", 2, "--threads", 1, seconds=4)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "line 2: worker" in errors
    assert "line 2 failed: worker" in errors
    assert "had before" in errors
    assert told == "3 made, 0 skipped, 1 failed\n"
    assert prompts(tmp_path / "out") == ["one", "three", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("everyone", [True, False], ids=["terminal", "parent only"])
def test_a_signal_ends_all_and_leaves_nothing_half_written(
    slow: Path, tmp_path: Path, everyone: bool, number: signal.Signals
) -> None:
    (tmp_path / "prompts").write_text(LONG + LONG.replace("forever", "and a day"))
    arguments = (slow, "--prompts", tmp_path / "prompts", "--out", tmp_path / "out", "--device", "cpu")
    process = fb_run(*arguments, "--workers", 2)
    until(lambda: len(workers_of(process)) == 2 and all(working(pid) for pid in workers_of(process)))
    workers = workers_of(process)
    start = time.monotonic()
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors.splitlines()[-1].endswith("; nothing was left half-written")
    assert "Traceback" not in errors
    assert time.monotonic() - start < 10
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert os.listdir(tmp_path / "out") == ["index.json"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
def test_a_full_disk_stops_a_batch(build: Build, tmp_path: Path, workers: int | None) -> None:
    (tmp_path / "prompts").write_text("".join(f"prompt {number}\n" for number in range(9)))
    options = [] if workers is None else ["--workers", workers]
    with mounted(tmp_path / "disk", "size=4k") as disk:
        arguments = (build("wan").folder, "--prompts", tmp_path / "prompts", "--out", disk / "out", "--device", "cpu")
        process = fb_run(*arguments, "--steps", 2, *options)
        told, errors = process.communicate(timeout=120)
        assert set(os.listdir(disk / "out")) <= {"index.json"}
    assert process.returncode == 1
    assert "No space left on device" in errors
    tried = 1 if workers is None else errors.count(" failed: Cannot write ")
    assert 1 <= tried <= 3  # the others' end with what they have begun
    assert told.splitlines()[-1] == f"0 made, 0 skipped, {tried} failed, {9 - tried} not tried"


@pytest.mark.slow
def test_workers_that_cannot_work_are_one_sentence(build: Build, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("one\n")
    process = fb_run(build("wan").folder, "--prompts", tmp_path / "prompts", "--device", "cuda", "--workers", 2)
    _, errors = process.communicate(timeout=60)
    if "GPU" not in errors:
        pytest.skip("there is a GPU")
    assert process.returncode == 2
    assert "Workers with a GPU each were asked for, but no GPU is visible" in errors
