"""What a user sees: progress on a real pseudo-terminal, plain lines in a pipe, one sentence and a code at the end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

import flowblending
from flowblending import FlowBlendingError, UsageError
from flowblending.system.console import run_program

LONG = "/a/rather/long/path" * 20
WORK = f"""
import sys
from pathlib import Path
from flowblending.system.console import Console
console = Console(quiet="--quiet" in sys.argv, document="--json" in sys.argv)
with console.phase("loading engines") as report:
    report("text_encoder")
with console.steps(4) as advance:
    advance(1, "large", 2.5)
    advance(4, "small", 0.25)
with console.progress("verifying", total=3_000_000, unit="B") as advance:
    advance(3_000_000)
with console.progress("decoding", total=9) as advance:
    advance(1)
    advance(8)
with console.progress("nothing to do", total=0) as advance:
    pass
console.log("made [x] {LONG}")
console.warn("the prompt [cut]")
console.result("wan: [bold] built")
console.table("a title", ("run", "time"), [("L20 [x]", "1.5 s")])
console.document("fb-x", {{"video": Path("a b.mp4"), "seconds": {{"all": float("inf"), "one": 1.5}}, "two": (1, 2)}})
"""
LINES = f"made [x] {LONG}\nwarning: the prompt [cut]\n"
RESULT = "wan: [bold] built\na title\nrun       time\nL20 [x]  1.5 s\n"


def environment() -> dict[str, str]:
    """A usual terminal and buffered output, whatever the tests themselves run in."""
    overrides = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in overrides} | {"TERM": "xterm-256color"}


def write_to(stdout: IO[bytes] | int, text: str) -> subprocess.CompletedProcess[bytes]:
    """A program that prints an expression to ``stdout``."""
    source = f"from flowblending.system.console import run_program; run_program(lambda: print({text}))"
    command = [sys.executable, "-c", source]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, env=environment())


def on_a_terminal(*arguments: str) -> str:
    """Everything that the work writes to a terminal as its standard error."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", WORK, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 1 << 16):
                written += part
        except OSError:  # Linux reports the end of a terminal as an input/output error
            pass
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


def test_a_terminal_shows_progress_and_then_the_lines() -> None:
    seen = on_a_terminal()
    for part in ("loading engines", "text_encoder", "step 4/4", "4.00 it/s", "3.0/3.0 MB", "decoding", "9/9", "ETA"):
        assert part in seen
    assert "nothing to do" not in seen
    assert "0/0" not in seen
    assert seen.index("decoding") < seen.index("made [x]") < seen.index("warning: the prompt [cut]")


def test_quiet_leaves_only_the_warning() -> None:
    seen = on_a_terminal("--quiet")
    assert "warning: the prompt [cut]" in seen
    assert seen.count("\n") == 1
    assert "made" not in seen


def test_a_pipe_gets_the_lines_alone() -> None:
    command = [sys.executable, "-c", WORK]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert result.stdout == RESULT
    assert result.stderr == LINES
    # CI that asks for colours has still nobody who watches.
    asked = {**environment(), "FORCE_COLOR": "1"}
    errors = subprocess.run(command, capture_output=True, text=True, check=True, env=asked).stderr
    assert "made [x]" in errors
    assert "decoding" not in errors
    assert errors.count("\n") == 2


@pytest.mark.parametrize("options", [["--json"], ["--json", "--quiet"]])
def test_with_json_standard_output_is_one_document(options: list[str]) -> None:
    command = [sys.executable, "-c", WORK, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert result.stderr == (LINES if len(options) == 1 else "warning: the prompt [cut]\n")
    assert json.loads(result.stdout, parse_constant=pytest.fail) == {
        "program": "fb-x",
        "version": flowblending.__version__,
        "video": "a b.mp4",
        "seconds": {"all": None, "one": 1.5},
        "two": [1, 2],
        "warnings": ["the prompt [cut]"],
    }
    quiet = subprocess.run([*command[:3], "--quiet"], capture_output=True, text=True, check=True, env=environment())
    assert quiet.stdout == ""


def fail(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (fail(FlowBlendingError("The bundle [x] is damaged; build it again.")), 1, "error: The bundle [x] is damaged;"),
        (fail(UsageError("0 steps were asked for.")), 2, "error: 0 steps were asked for."),
        (fail(KeyboardInterrupt()), 130, "interrupted"),
    ],
    ids=["done", "a code", "an error", "a wrong argument", "Ctrl-C"],
)
def test_a_program_ends_with_a_code_and_one_line(
    main: Callable[[], int | None], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_program(main)
    assert end.value.code == code
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith(message)
    assert errors.count("\n") == bool(message)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program(fail(ZeroDivisionError("a bug")))


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_reader_that_has_gone_is_no_error(count: int) -> None:
    # One line fails when the program flushes at its end, many lines fail in the middle.
    ours, theirs = os.pipe()
    os.close(ours)
    result = write_to(theirs, f"'line\\n' * {count}")
    os.close(theirs)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_to_a_full_disk_is_a_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        result = write_to(full, "'line'")
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: Cannot write the output (No space left on device)")
    assert result.stderr.count(b"\n") == 1
