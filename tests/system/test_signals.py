"""Real signals to real programs; number 1 of a process namespace is what a container's first process is."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child"]

WRITES = """
import pathlib, sys, time
from flowblending.system.console import run_program
from flowblending.system.whole_file import whole_file
def main():
    with whole_file(pathlib.Path(sys.argv[1])) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(float(sys.argv[2]))
run_program(main)
"""


@pytest.fixture(scope="session")
def namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("process namespaces are not permitted here")


@contextmanager
def ready(
    code: str, *arguments: object, before: list[str] | None = None, session: bool = False
) -> Iterator[subprocess.Popen[str]]:
    command = [*(before or []), sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=session
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def first_child(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_unwinds_a_program(tmp_path: Path, number: signal.Signals) -> None:
    with ready(WRITES, tmp_path / "out", 0) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    how = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert errors == f"{how}; nothing was left half-written\n"
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("number", ENDING)
def test_number_one_of_a_container_ends_too(tmp_path: Path, number: signal.Signals) -> None:
    with ready(WRITES, tmp_path / "out", 0, before=NAMESPACE) as process:
        os.kill(first_child(process.pid), number)
        _, errors = process.communicate(timeout=30)
    assert "nothing was left half-written" in errors
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path) == []


def test_a_second_signal_does_not_disturb_the_tidying_up(tmp_path: Path) -> None:
    with ready(WRITES, tmp_path / "out", 1) as process:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.2)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_nohup_is_respected(tmp_path: Path) -> None:
    with ready(WRITES, tmp_path / "out", 0, before=["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_an_error_that_a_library_makes_of_the_signal_is_the_signal() -> None:
    code = """
    import time
    from flowblending.system.console import run_program
    def main():
        print("ready", flush=True)
        try:
            time.sleep(60)
        except BaseException:
            raise ImportError("initialization failed") from None
    run_program(main)
    """
    with ready(code) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert errors == "ended by SIGTERM; nothing was left half-written\n"
    assert process.returncode == 128 + signal.SIGTERM


CALLS = """
from flowblending.system.console import run_program
from flowblending.system.subprocess_call import call_in_subprocess
from tests.support.subprocess_work import busy
def tell(what):
    print(what, flush=True)
run_program(lambda: call_in_subprocess(busy, None, tell))
"""


@pytest.mark.parametrize("number", [*ENDING, signal.SIGKILL])
@pytest.mark.parametrize("group", [False, True])
def test_a_subprocess_ends_with_its_parent(number: signal.Signals, group: bool) -> None:
    """Whether the signal goes to the parent alone, as from a supervisor, or to both, as from a terminal."""
    with ready(CALLS, session=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.communicate(timeout=30)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the subprocess outlived its parent")
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)


PROGRAMS = {
    "flowblending.runtime.cli": "{folder} --prompt x --out {out}.mp4",
    "flowblending.runtime.calibrate.cli": "{folder} --prompts {folder}/prompts --no-plot",
    "flowblending.runtime.compare.cli": "{folder} --prompts {folder}/prompts --out {out}",
    "flowblending.runtime.serve.triton.cli": "{folder} --out {out}",
    "flowblending.runtime.serve.triton.client_cli": "--model x --prompt x --noise {folder}/prompts --out {out}.npy",
    "flowblending.engine.cli": "--prove {folder}",
}


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_ends_as_number_one(tmp_path: Path, program: str) -> None:
    """Each waits for a file that is a pipe, into which nobody writes."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("manifest.json", "prompts"):
        os.mkfifo(folder / name)
    arguments = PROGRAMS[program].format(folder=folder, out=tmp_path / "out").split()
    command = [*NAMESPACE, sys.executable, "-m", program, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until_blocked(process)
            os.kill(first_child(process.pid), signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert errors.splitlines()[-1] == "ended by SIGTERM; nothing was left half-written"
    assert process.returncode == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == ["folder"]


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    """Wait until the program has used no processor time for a while: it has been started, and waits."""
    last, quiet = -1, 0
    for _ in range(600):
        time.sleep(0.1)
        assert process.poll() is None
        fields = Path(f"/proc/{first_child(process.pid)}/stat").read_text().rpartition(")")[2].split()
        used = int(fields[11]) + int(fields[12])
        quiet = quiet + 1 if used == last and fields[0] == "S" and used > 10 else 0
        if quiet == 10:
            return
        last = used
    pytest.fail("the program never waited")
