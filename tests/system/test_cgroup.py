"""What control groups leave a process: files as both versions of the kernel's interface have them, and real groups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowblending.system.cgroup import memory_left, processor_quota
from flowblending.system.host_memory import available_memory
from flowblending.system.processors import limit_threads, processors

MB = 1 << 20
STAT = "anon 5\nactive_file {active}\ninactive_file {inactive}\n"
TOTAL_STAT = "active_file 1\ninactive_file 1\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n"


def process(folder: Path, groups: str, mounts: dict[Path, str]) -> Path:
    """A process's folder in /proc; of every mount its root, type and options."""
    proc = folder / "self"
    proc.mkdir(exist_ok=True)
    (proc / "cgroup").write_text(groups)
    lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
    for number, (at, told) in enumerate(mounts.items(), start=30):
        root, kind, options = told.split()
        lines.append(f"{number} 22 0:{number} {root} {at} rw,nosuid shared:9 master:2 - {kind} cgroup {options}")
    (proc / "mountinfo").write_text("\n".join(lines) + "\n")
    return proc


def group(folder: Path, **files: object) -> None:
    """A group's folder; in names of files, a double underscore is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2_without_limits(tmp_path: Path) -> None:
    group(tmp_path / "mnt/user.slice", memory__max="max", memory__current=7, cpu__max="max 100000")
    proc = process(tmp_path, "0::/user.slice\n", {tmp_path / "mnt": "/ cgroup2 rw,nsdelegate"})
    assert memory_left(proc) is None
    assert processor_quota(proc) is None


@pytest.mark.parametrize("inside", ["/", "/docker/abc", "/../../elsewhere"])
def test_version_2_in_a_container(tmp_path: Path, inside: str) -> None:
    """With a name space of its own a container's group is the root; and without, it is what is mounted."""
    mounted = tmp_path / "mnt"
    group(mounted, memory__max=800 * MB, memory__current=500 * MB, cpu__max="150000 100000")
    group(mounted, memory__stat=STAT.format(active=100 * MB, inactive=50 * MB))
    root = inside if ".." not in inside else "/"
    proc = process(tmp_path, f"0::{inside}\n", {mounted: f"{root} cgroup2 rw"})
    assert memory_left(proc) == 450 * MB
    assert processor_quota(proc) == 1.5


def test_memory_is_left_up_to_where_a_group_is_slowed_down(tmp_path: Path) -> None:
    group(tmp_path / "mnt", memory__max=900 * MB, memory__high=300 * MB, memory__current=100 * MB)
    assert memory_left(process(tmp_path, "0::/\n", {tmp_path / "mnt": "/ cgroup2 rw"})) == 200 * MB


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    mounted = tmp_path / "mnt"
    group(mounted / "a", memory__max=600 * MB, memory__current=500 * MB, cpu__max="50000 100000")
    group(mounted / "a/b", memory__max=900 * MB, memory__current=100 * MB, cpu__max="400000 100000")
    group(mounted / "a/b/c", memory__max="max", memory__current=10 * MB, cpu__max="max 100000")
    proc = process(tmp_path, "0::/a/b/c\n", {mounted: "/ cgroup2 rw"})
    assert memory_left(proc) == 100 * MB
    assert processor_quota(proc) == 0.5


def test_version_1(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu,cpuacct"
    limits = {"memory__limit_in_bytes": 800 * MB, "memory__usage_in_bytes": 500 * MB}
    group(memory, **limits, memory__stat=TOTAL_STAT.format(active=100 * MB, inactive=50 * MB))
    group(cpu, cpu__cfs_quota_us=250_000, cpu__cfs_period_us=100_000)
    mounts = {memory: "/docker/abc cgroup rw,memory", cpu: "/docker/abc cgroup rw,cpu,cpuacct"}
    proc = process(tmp_path, "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:name=systemd:/x\n", mounts)
    assert memory_left(proc) == 450 * MB
    assert processor_quota(proc) == 2.5


def test_version_1_without_limits(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    group(memory, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    group(cpu, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    mounts = {memory: "/ cgroup rw,memory", cpu: "/ cgroup rw,cpu", tmp_path / "unified": "/ cgroup2 rw"}
    proc = process(tmp_path, "5:memory:/\n4:cpu:/\n0::/\n", mounts)
    assert memory_left(proc) is None
    assert processor_quota(proc) is None


def test_a_full_group_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path / "mnt", memory__max=10 * MB, memory__current=11 * MB)
    assert memory_left(process(tmp_path, "0::/\n", {tmp_path / "mnt": "/ cgroup2 rw"})) == 0


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert memory_left(tmp_path / "none") is None
    assert processor_quota(tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (0.3, 1), (1.5, 2), (4.0, 4), (64.0, 8)])
def test_a_thread_for_each_processor_that_there_is_time_of(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("flowblending.system.processors.processor_quota", lambda: quota)
    assert processors() == threads
    for given, told in (("7", "7"), (None, None if quota is None else str(threads))):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        limit_threads()
        assert os.environ.get("OMP_NUM_THREADS") == told


def test_what_is_available_is_the_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for left, expected in ((None, None), (123, 123), (1 << 62, None)):
        monkeypatch.setattr("flowblending.system.host_memory.memory_left", lambda left=left: left)
        found = available_memory()
        assert found == expected if expected is not None else 1e6 < found < 1e14


@contextlib.contextmanager
def real_group(controller: str, limits: dict[str, int]) -> Iterator[Callable[[], object]]:
    """A group of the kernel's with limits of version 1 or 2; a process enters it by the call."""
    name, old = f"flowblending-{os.getpid()}", Path("/sys/fs/cgroup") / controller
    folder = (old if old.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this user cannot make control groups ({error.strerror})")
    try:
        try:
            for file, value in limits.items():
                (folder / file).write_text(str(value))
        except OSError as error:
            pytest.skip(f"this system's control groups have no such limits ({error})")
        yield lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        for _ in range(50):  # a process that has ended leaves its group a little later
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                break
            time.sleep(0.1)


def in_group(enter: Callable[[], object], program: str, *arguments: str) -> list[int]:
    """The numbers that a program prints which began within a group."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=False, preexec_fn=enter, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_real_group_with_a_limit_of_memory(tmp_path: Path) -> None:
    """The kernel's own account: what is allocated is gone, and what was read of a file is not."""
    version_1 = Path("/sys/fs/cgroup/memory").is_dir()
    file = tmp_path / "weights"
    file.write_bytes(bytes(100 * MB))
    program = (
        "import sys\n"
        "from flowblending.system.host_memory import available_memory as left\n"
        "print(left())\n"
        "open(sys.argv[1], 'rb').read(); print(left())\n"
        "held = bytearray(b'x' * (1 << 20)) * 150; print(left())\n"
    )
    limit = {"memory.limit_in_bytes" if version_1 else "memory.max": 400 * MB}
    with real_group("memory", limit) as enter:
        before, read, held = in_group(enter, program, str(file))
    assert 300 * MB < before <= 400 * MB
    assert abs(read - before) < 30 * MB
    assert 130 * MB < before - held < 190 * MB


def test_a_real_group_with_a_quota_of_time() -> None:
    version_1 = Path("/sys/fs/cgroup/cpu").is_dir()
    limits: dict[str, int] = {"cpu.cfs_quota_us": 100_000} if version_1 else {"cpu.max": 100_000}
    program = (
        "import os\n"
        "from flowblending.system.console import run_program\n"
        "from flowblending.system.processors import processors\n"
        "os.environ.pop('OMP_NUM_THREADS', None)\n"
        "run_program(lambda: print(processors(), os.environ['OMP_NUM_THREADS']))\n"
    )
    with real_group("cpu", limits) as enter:
        assert in_group(enter, program) == [1, 1]
