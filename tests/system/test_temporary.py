import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowblending.system.scratch import scratch, sweep_scratch
from flowblending.system.temporary import NAME, sweep, sweep_folder, temporary_folder
from flowblending.system.whole_file import replace_file, whole_file, whole_folder

LONGEST = "x" * 255


@contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready, and is killed at the end of the block."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


WRITES_A_FILE = """
import pathlib, sys, time
from flowblending.system.whole_file import whole_file
with whole_file(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""

REPLACES_A_FOLDER = """
import pathlib, sys, time
from flowblending.system import whole_file as module
from flowblending.system.whole_file import whole_folder
def set_aside(target, folder, original=module.set_aside):
    original(target, folder)
    print("ready", flush=True)
    time.sleep(600)
module.set_aside = set_aside
target = pathlib.Path(sys.argv[1])
with whole_folder(target, replace=True, beside=target if len(sys.argv) == 2 else pathlib.Path(sys.argv[2])) as new:
    (new / "content").write_text("new")
"""


@pytest.mark.parametrize("name", ["video.mp4", "a[1]*?.mp4", "#%03d:?.mp4", "line\nbreak", "中" * 80 + ".mp4", LONGEST])
def test_what_a_killed_process_left_goes_when_its_output_is_made_again(tmp_path: Path, name: str) -> None:
    target, other = tmp_path / name, tmp_path / "other"
    with running(WRITES_A_FILE, target), running(WRITES_A_FILE, other):
        assert not target.exists()
    left = os.listdir(tmp_path)
    assert len(left) == 2
    assert all(NAME.fullmatch(each) for each in left)
    replace_file(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert len(os.listdir(tmp_path)) == 2  # the file and what is left of the other one
    sweep(other)
    assert os.listdir(tmp_path) == [name]


NOBODY_LEAVES_THE_BLOCK = """
import os, pathlib, sys, threading, time
from flowblending.system.console import run_program
from flowblending.system.whole_file import whole_file
def main():
    block = whole_file(pathlib.Path(sys.argv[1]))
    # A thread that goes on has the block for ever.
    threading.Thread(target=lambda held: time.sleep(600), args=(block,), daemon=True).start()
    block.__enter__().write_text("half")
    if os.fork() == 0:
        sys.exit()  # as a worker ends, which has the folder's name and did not make it
    os.wait()
    assert list(pathlib.Path(sys.argv[1]).parent.rglob("new")), "the other process has removed it"
    raise KeyboardInterrupt
run_program(main)
"""


def test_a_block_that_nobody_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    """As one is that a signal interrupts between being made and being entered."""
    command = [sys.executable, "-c", NOBODY_LEAVES_THE_BLOCK, str(tmp_path / "video.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130, done.stderr
    assert not list(tmp_path.iterdir())


def test_what_was_left_of_outputs_that_are_there_goes_with_the_folders(tmp_path: Path) -> None:
    """A process may be killed between the last rename and the end of its temporary folder."""
    with running(WRITES_A_FILE, tmp_path / "a"), running(WRITES_A_FILE, tmp_path / "b"):
        pass
    (tmp_path / "a").write_bytes(b"whole")
    with running(WRITES_A_FILE, tmp_path / "c"):
        sweep_folder(tmp_path)
        (alive,) = (name for name in os.listdir(tmp_path) if NAME.fullmatch(name))
    sweep_folder(tmp_path)
    assert os.listdir(tmp_path) == ["a"]
    assert alive
    sweep_folder(tmp_path / "none")


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    with running(WRITES_A_FILE, target) as process:
        replace_file(target, b"ours")
        assert len(os.listdir(tmp_path)) == 2
        # Stopped is not dead.
        process.send_signal(signal.SIGSTOP)
        sweep(target)
        assert len(os.listdir(tmp_path)) == 2
    sweep(target)
    assert os.listdir(tmp_path) == ["video.mp4"]


@pytest.mark.skipif(os.geteuid() != 0, reason="making namespaces takes root")
@pytest.mark.parametrize("killed", [False, True])
def test_a_process_of_another_container_is_told_alive_or_dead(tmp_path: Path, killed: bool) -> None:
    """Both are number 1 of their own namespace, where neither sees the other."""
    space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*space, "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    target = tmp_path / "video.mp4"
    sweeps = "import pathlib, sys; from flowblending.system.temporary import sweep; sweep(pathlib.Path(sys.argv[1]))"
    command = [*space, sys.executable, "-c", WRITES_A_FILE, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if killed:
            process.kill()
            process.wait()
            process.stdout.read()  # its end comes when the child, which has it too, has gone
        subprocess.run([*space, sys.executable, "-c", sweeps, target], check=True)
        assert len(os.listdir(tmp_path)) == (0 if killed else 1)
        process.kill()


def test_a_folder_set_aside_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with whole_folder(target) as new:
        (new / "content").write_text("old")
    with running(REPLACES_A_FOLDER, target):
        assert not target.exists()
    sweep(target)
    assert (target / "content").read_text() == "old"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_of_a_folder_set_aside_is_put_back(tmp_path: Path) -> None:
    outer = tmp_path / "models"
    (outer / "a").mkdir(parents=True)
    (outer / "a" / "content").write_text("old")
    with running(REPLACES_A_FOLDER, outer / "a", outer):
        assert os.listdir(outer) == []
    with whole_folder(outer / "b", beside=outer):
        pass
    assert (outer / "a" / "content").read_text() == "old"
    assert os.listdir(tmp_path) == ["models"]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_many_at_a_time_take_nothing_from_one_another(tmp_path: Path) -> None:
    target = tmp_path / "file"
    contents = [bytes([number]) * 1000 for number in range(8)]

    def write(content: bytes) -> None:
        for _ in range(30):
            replace_file(target, content, durable=False)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for content in (b"first", b"second"):
        replace_file(tmp_path / "link", content)
        assert (tmp_path / "disk" / "file").read_bytes() == content
        assert (tmp_path / "link").readlink() == Path("disk/file")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_was_there_stays_when_a_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    target, folder = tmp_path / "file", tmp_path / "folder"
    target.write_text("old")
    folder.mkdir()
    (folder / "content").write_text("old")
    with pytest.raises(error), whole_file(target) as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), whole_folder(folder, replace=True) as new:
        (new / "content").write_text("half")
        raise error
    assert target.read_text() == (folder / "content").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_that_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as new:
        (new / "first").touch()
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "out") as new:
        (new / "second").touch()
    assert os.listdir(tmp_path / "out") == ["first"]
    assert os.listdir(tmp_path) == ["out"]


def test_files_have_the_rights_that_others_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", b"")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_scratch_folders_of_dead_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = f"""
    import tempfile, time
    tempfile.tempdir = {str(tmp_path)!r}
    from flowblending.system.scratch import scratch
    with scratch():
        print("ready", flush=True)
        time.sleep(600)
    """
    with running(code), scratch() as ours:
        sweep_scratch()
        assert len(os.listdir(tmp_path)) == 2
    with scratch() as ours:
        assert os.listdir(tmp_path) == [ours.name]


def _leave(target: Path) -> None:
    folder = temporary_folder(target)
    folder.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)


def test_another_users_leftover_is_left_alone(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_leave, args=(tmp_path / "file",))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    (left / "lock").unlink()
    (left / "lock").symlink_to(tmp_path / "victim")  # a trap: opening it would make the file
    sweep(tmp_path / "file")
    assert os.listdir(tmp_path) == [left.name]
