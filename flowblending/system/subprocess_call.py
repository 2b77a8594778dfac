"""Work in a process of its own, which is another module's ``serve``.

What lasts minutes, takes much memory and listens to nobody meanwhile can so be interrupted at once, gives all its
memory back, and when the system kills it for want of memory, somebody is left to say so. The module is told by its
name: the calibration of fp8 is the runtime's work, and this package does not import the runtime.
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
from typing import IO, Any

from flowblending import FlowBlendingError
from flowblending.system.signals import leave_signals_to_parent

_PR_SET_PDEATHSIG = 1


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


def call_in_subprocess(module: str, request: object, progress: Callable[[str], None]) -> Any:
    """Start a process, send it a request, and wait for its answer.

    Args:
        module: whose ``serve(descriptor)`` is called there; it calls `answer`.
        request: anything that can be pickled.
        progress: told what the process reports. What it raises, and Ctrl-C, end the process at once.

    Raises:
        EndedError: the process ended without an answer.
        Exception: what the work there raised.
    """
    ours, theirs = multiprocessing.Pipe()
    # Not multiprocessing.Process, which would run the caller's main program again.
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module} as work; work.serve({theirs.fileno()})"
    with (
        ours,
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
        ) as process,
    ):
        theirs.close()
        try:
            return _follow(ours, request, progress)
        except (EOFError, ConnectionError):
            raise EndedError(process.wait(), output) from None
        finally:
            # When the answer is here, all that is left to do there is to take down the library.
            process.kill()


def _follow(connection: Connection, request: object, progress: Callable[[str], None]) -> Any:
    connection.send(request)
    while True:
        message = connection.recv()
        if isinstance(message, Exception):
            raise message
        if not isinstance(message, str):
            return message
        progress(message)


def answer(descriptor: int, work: Callable[[Any, Callable[[str], None]], object]) -> None:
    """What the process does: receive a request, report progress, send the result or the error.

    Args:
        descriptor: of the connection.
        work: takes the request and a function to report progress to, and returns anything but a string.
    """
    # The parent ends this process when it has to end itself; so does the parent's death, however it came.
    leave_signals_to_parent()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)
    try:
        result = work(connection.recv(), connection.send)
    except Exception as error:
        if not isinstance(error, FlowBlendingError | OSError):
            error.add_note(traceback.format_exc())
        result = error
    connection.send(result)
