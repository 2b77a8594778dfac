"""Calling a function in a process of its own.

What lasts minutes, takes much memory and listens to nobody meanwhile can so be interrupted at once, gives all its
memory back, and when the system kills it for want of memory, somebody is left to say so.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any, TypeVar

from flowblending import FlowBlendingError
from flowblending.system.signals import leave_signals_to_parent

_PR_SET_PDEATHSIG = 1

Progress = Callable[[str], None]
Request = TypeVar("Request")
Result = TypeVar("Result")


class EndedError(Exception):
    """The process ended without an answer.

    Attributes:
        killed: by SIGKILL, as the system does when memory runs out.
        how: ``SIGSEGV``, or ``exit code 1``.
        last: the last line of its output.
    """

    def __init__(self, code: int, output: IO[bytes]) -> None:
        super().__init__(code)
        self.killed = code == -signal.SIGKILL
        self.how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        output.seek(0)
        self.last = (output.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]


def call_in_subprocess(work: Callable[[Request, Progress], Result], request: Request, progress: Progress) -> Result:
    """Call ``work(request, progress)`` in a new process, and wait for its result.

    Args:
        work: a function of a module, which the process imports, and with it no more than that module needs.
        request: anything that can be pickled; so must the result be, which is no string.
        progress: told what the process reports. What it raises, and Ctrl-C, end the process at once.

    Raises:
        EndedError: the process ended without an answer.
        Exception: what the work there raised.
    """
    ours, theirs = multiprocessing.Pipe()
    # Not multiprocessing.Process, which would run the caller's main program again.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import {_answer.__name__} as answer; "
    with (
        ours,
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [sys.executable, "-c", f"{code}answer({theirs.fileno()})"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
        ) as process,
    ):
        theirs.close()
        try:
            ours.send((work, request))
            result: Result = _follow(ours, progress)
        except (EOFError, ConnectionError):
            raise EndedError(process.wait(), output) from None
        finally:
            # When the answer is here, all that is left to do there is to take down the library.
            process.kill()
    return result


def _follow(connection: Connection, progress: Progress) -> Any:
    while True:
        message = connection.recv()
        if isinstance(message, Exception):
            raise message
        if not isinstance(message, str):
            return message
        progress(message)


def _answer(descriptor: int) -> None:
    """What the process does: receive the work and its request, report progress, send the result or the error."""
    # The parent ends this process when it has to end itself; so does the parent's death, however it came.
    leave_signals_to_parent()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)
    try:
        work, request = connection.recv()
        result = work(request, connection.send)
    except Exception as error:
        if not isinstance(error, FlowBlendingError | OSError):
            error.add_note(traceback.format_exc())
        result = error
    connection.send(result)
