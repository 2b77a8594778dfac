"""Building plans with TensorRT and TensorRT-RTX, each in a process of its own.

A compiler is one call that lasts minutes, takes memory in proportion to the weights, and listens to
nobody meanwhile. In its own process it can be interrupted at once, gives all its memory back, and when
the system kills it for want of memory, somebody is left to say so.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flowblending import FlowBlendingError
from flowblending.engine.protocol import ShapeProfile
from flowblending.engine.trt_compile import PlanInfo, PlanRequest, compile_plan
from flowblending.engine.trt_library import load
from flowblending.engine.trt_targets import check_targets
from flowblending.export.spec import GraphSpec

if TYPE_CHECKING:
    from flowblending.engine.manifest import Backend

_PR_SET_PDEATHSIG = 1


def build_plan(
    *,
    library: Backend,
    onnx: Path,
    spec: GraphSpec,
    profile: ShapeProfile,
    targets: Sequence[str],
    out: Path,
    progress: Callable[[str], None],
) -> PlanInfo:
    """Compile a graph into the plan ``out``, which appears when it is whole and not before.

    Args:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        onnx: the graph, with its external weights beside it.
        spec: what the graph takes and gives.
        profile: the sizes to compile for; every symbol of ``spec`` has a range.
        targets: architectures (``sm89``) to compile for; none means the GPU present.
        out: replaced if it exists.
        progress: told the compiler's phases. What it raises, and Ctrl-C, end the compilation at once.

    Raises:
        UsageError: a target that cannot be compiled for, or none and no GPU.
        FlowBlendingError: the library is not installed, the graph or its weights are damaged, a symbol has
            no size, memory ran out, or the compiler refuses; its own words are in the message.
        OSError: ``out`` cannot be written.
    """
    temporary = out.with_name(f"{out.name}.{os.getpid()}.partial")
    request = PlanRequest(
        library=library,
        onnx=onnx.absolute(),
        spec=spec,
        profile=profile,
        targets=check_targets(library, targets),
        out=temporary.absolute(),
    )
    try:
        info = _compile_elsewhere(request, progress)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return info


def _compile_elsewhere(request: PlanRequest, progress: Callable[[str], None]) -> PlanInfo:
    ours, theirs = multiprocessing.Pipe()
    # Not multiprocessing.Process, which would run the caller's main program again.
    code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as build; build.serve({theirs.fileno()})"
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
            raise _ended(request, process.wait(), output) from None
        finally:
            # When the answer is here, all that is left to do there is to take down the compiler.
            process.kill()


def _follow(connection: Connection, request: PlanRequest, progress: Callable[[str], None]) -> PlanInfo:
    connection.send(request)
    while True:
        message: str | PlanInfo | Exception = connection.recv()
        if isinstance(message, PlanInfo):
            return message
        if isinstance(message, Exception):
            raise message
        progress(message)


def _ended(request: PlanRequest, code: int, output: IO[bytes]) -> FlowBlendingError:
    """The sentence for a process that ended without an answer."""
    name, title = request.spec.name, load(request.library).title
    if code == -signal.SIGKILL:
        return FlowBlendingError(
            f"{title} was killed while compiling {name}, most likely because memory ran out; "
            "use a machine with more memory, or build a smaller size."
        )
    output.seek(0)
    last = (output.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return FlowBlendingError(
        f"{title} ended with {how} while compiling {name} ({last}); try another --precision, --target or --backend."
    )


def serve(descriptor: int) -> None:
    """What the process does: receive a request, report progress, send the result or the error."""
    # Ctrl-C goes to the parent too, which ends this process; so does the parent's death, however it came.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)
    answer: PlanInfo | Exception
    try:
        request: PlanRequest = connection.recv()
        answer = compile_plan(request, connection.send)
    except Exception as error:
        if not isinstance(error, FlowBlendingError | OSError):
            error.add_note(traceback.format_exc())
        answer = error
    connection.send(answer)
