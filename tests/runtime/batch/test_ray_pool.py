"""Many videos on a Ray cluster: a real one on this machine's CPU, whose workers are killed; and what is planned."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.runtime.cluster.share import ClusterOptions, Share, plan_share
from flowblending.runtime.machine_options import MachineSettings
from flowblending.system.scratch import scratch
from tests.conftest import Build
from tests.support import manifests
from tests.support.left_behind import let_go
from tests.support.ray_processes import ray_processes
from tests.support.required import unavailable

pytestmark = pytest.mark.embedding

NODES = [{"CPU": 8.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 0.0}]


def manifest(folder: Path, backend: str = "onnxruntime") -> Manifest:
    return manifests.write(folder / "toy", backend=backend)


def options(device: str = "auto", workers: int | None = None, threads: int | None = None) -> ClusterOptions:
    return ClusterOptions(address="local", device=device, workers=workers, machine=MachineSettings(threads=threads))


def test_a_bundle_of_plans_takes_a_gpu_per_worker(tmp_path: Path) -> None:
    plans = manifest(tmp_path, "tensorrt")
    share = plan_share(options(), [plans], NODES)
    assert (share.count, share.gpus, share.device) == (2, 1, "cuda")
    assert plan_share(options(workers=1), [plans], NODES).count == 1
    with pytest.raises(UsageError, match="3 workers with a GPU each were asked for, but the Ray cluster has 2 GPUs"):
        plan_share(options(workers=3), [plans], NODES)
    with pytest.raises(UsageError, match="the Ray cluster has 0 GPUs"):
        plan_share(options(), [plans], NODES[:1])
    with pytest.raises(UsageError, match="--device cpu was given"):
        plan_share(options("cpu"), [plans], NODES)


def test_workers_on_cpus_never_take_every_core(tmp_path: Path) -> None:
    graphs = manifest(tmp_path)
    # One per node; then two on one of them, and so many that each has a fraction of a core.
    for workers, count, cpus, threads in ((None, 2, 3, 4), (3, 3, 1, 2), (16, 16, 0.45, 1)):
        machine = MachineSettings(threads=threads)
        expected = Share(count=count, cpus=cpus, gpus=0, device="cpu", machine=machine)
        assert plan_share(options(workers=workers), [graphs], NODES) == expected
    assert plan_share(options(threads=5), [graphs], NODES).machine.threads == 5
    assert plan_share(options("cuda"), [graphs], NODES).gpus == 1
    with pytest.raises(UsageError, match="no CPU for workers"):
        plan_share(options(), [graphs], [{"GPU": 1.0}])


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    manifests.write(tmp_path / "toy")
    (tmp_path / "prompts").write_text("one\n")
    code = (
        "import sys; sys.modules['ray'] = None; from flowblending.runtime.cli import main; "
        f"main([{str(tmp_path / 'toy')!r}, '--prompts', {str(tmp_path / 'prompts')!r}, '--out', "
        f"{str(tmp_path / 'out')!r}, '--ray', 'local'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        "error: Ray is not installed; run pip install '.[ray]' in a checkout of FlowBlending, or use --workers."
        in result.stderr
    )


@pytest.fixture
def home() -> Iterator[Path]:
    """A place for Ray's token, sockets and logs, whose path is short enough for sockets."""
    if importlib.util.find_spec("ray") is None:
        unavailable("Ray is not installed.")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fb_run(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowblending.runtime.cli", *map(str, arguments)]
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.mark.slow
def test_a_cluster_that_is_not_there(tmp_path: Path, home: Path) -> None:
    manifests.write(tmp_path / "toy")
    (tmp_path / "prompts").write_text("one\n")
    for address in ("auto", "nonsense", "127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"):
        arguments = ("--prompts", tmp_path / "prompts", "--out", tmp_path / "out", "--ray", address)
        result = fb_run(home, tmp_path / "toy", *arguments)
        assert result.returncode == 1, result.stderr
        assert f"error: Cannot connect to the Ray cluster {address} (" in result.stderr
        assert "Traceback" not in result.stderr


def makers(home: Path) -> list[int]:
    """The workers that make a video now, of the clusters that were started with this home."""
    return ray_processes(home, "ray::Maker.make")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def killer(home: Path, choose: Callable[[int], bool]) -> Iterator[list[int]]:
    """While the block runs, kill every worker that is chosen; gives the list of them."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for pid in makers(home):
                if pid not in killed and choose(len(killed)) and cpu_seconds(pid) > 0:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.long  # replicas are killed every time, in tests/runtime/serve/http/test_ray.py
def test_killed_workers_on_a_local_cluster(
    build: Build, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    bundle = build("wan", size="128x96", frames=33).folder  # on which the endless prompt outlasts the killer
    arguments = (bundle, "--prompts", prompts, "--out", out, "--ray", "local", "--workers", 2)
    # One worker dies, and its prompt is tried again; on another prompt every worker dies, and the rest is made.
    prompts.write_text('one\ntwo\n{"prompt": "forever", "steps": 1000, "solver": "euler"}\nfour\n{broken\n')
    # Killed workers leave temporary folders, which later ones remove.
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    kept = contextlib.ExitStack()
    others = kept.enter_context(scratch())
    stale = let_go(others)
    made = ("one", "two", "four")
    with kept, killer(home, lambda count: not count or set(map(prompt_of, out.glob("*.mp4"))) == set(made)) as killed:
        result = fb_run(home, *arguments, "--steps", 100)
        assert others.exists()
    assert len(killed) == 3
    assert result.returncode == 1, result.stderr
    assert "the prompt is tried once again" in result.stderr
    assert "line 3 failed: worker" in result.stderr
    assert "3 made, 0 skipped, 2 failed" in result.stdout
    assert "Traceback" not in result.stderr
    assert sorted(map(prompt_of, out.glob("*.mp4"))) == sorted(made)
    assert not makers(home)
    assert not stale.exists()


def prompt_of(video: Path) -> str:
    """The first word of its prompt, which stands in a video's name behind the line's number."""
    return video.name.split("-")[1]
