"""Functions called in a process of their own: what comes back, what is raised, and how it dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.system.subprocess_call import EndedError, call_in_subprocess
from tests.support import subprocess_work as work
from tests.support.plans import ignore


def children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_the_process_imports_the_module_of_the_work_alone() -> None:
    told: list[str] = []
    found = call_in_subprocess(work.modules, "flowblending", told.append)
    system = [f"flowblending.system{name}" for name in ("", ".signals", ".subprocess_call")]
    assert found == ["flowblending", *system]
    assert told == ["looking"]
    assert "tests.support.subprocess_work" in call_in_subprocess(work.modules, "tests", ignore)
    assert not call_in_subprocess(work.modules, "pytest", ignore)
    assert not call_in_subprocess(work.modules, "numpy", ignore)


def test_errors_come_back_and_those_of_programmers_with_their_traceback() -> None:
    with pytest.raises(UsageError, match=r"^this is wrong\.$") as mendable:
        call_in_subprocess(work.refuse, "this", ignore)
    assert not hasattr(mendable.value, "__notes__")
    with pytest.raises(ZeroDivisionError) as unexpected:
        call_in_subprocess(work.divide, 0, ignore)
    assert "in divide" in unexpected.value.__notes__[0]


def test_a_process_that_ends_without_an_answer_is_told() -> None:
    with pytest.raises(EndedError) as left:
        call_in_subprocess(work.leave, 3, ignore)
    assert (left.value.killed, left.value.how, left.value.last) == (False, "exit code 3", "so long")
    with pytest.raises(EndedError) as killed:
        call_in_subprocess(work.kill, signal.SIGKILL, ignore)
    assert (killed.value.killed, killed.value.how, killed.value.last) == (True, "SIGKILL", "no output")
    with pytest.raises(EndedError) as terminated:
        call_in_subprocess(work.kill, signal.SIGTERM, ignore)
    assert (terminated.value.killed, terminated.value.how) == (False, "SIGTERM")


def test_what_progress_raises_ends_the_process() -> None:
    before, during = children(), list[int]()

    def cancel(_doing: str) -> None:
        during.extend(set(children()) - set(before))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_in_subprocess(work.modules, "x", cancel)
    assert len(during) == 1
    assert children() == before
