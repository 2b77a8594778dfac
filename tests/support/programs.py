"""The programs, called in the tests' own process: what they print and their exit code, without the start of a Python.

Most of what tests ask of a program takes milliseconds, and a process that imports numpy takes half a second. Signals,
broken pipes, missing packages and what libraries print past Python are for real processes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import traceback

MODULES = {
    "fb-run": "flowblending.runtime.cli",
    "fb-build-engines": "flowblending.engine.cli",
    "fb-calibrate": "flowblending.runtime.calibrate.cli",
    "fb-compare": "flowblending.runtime.compare.cli",
    "fb-export-triton": "flowblending.runtime.serve.triton.cli",
    "fb-client": "flowblending.runtime.serve.triton.client_cli",
}
"""The module of each program."""

Result = subprocess.CompletedProcess[str]


def run(program: str, *arguments: object) -> Result:
    """Run a program to its end; a traceback is printed and ends it with 1, as Python does it."""
    words = [str(each) for each in arguments]
    with _Captured() as printed:
        code = _exit_code(MODULES[program], words)
    return subprocess.CompletedProcess([program, *words], code, printed.stdout, printed.stderr)


def _exit_code(module: str, words: list[str]) -> int:
    try:
        importlib.import_module(module).main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # whatever it is, a test wants to see it
        traceback.print_exc()
        return 1
    return 0


class _Captured(contextlib.ExitStack):
    """Standard output and standard error as text, with the bytes beneath that some writers ask for."""

    stdout = stderr = ""

    def __enter__(self) -> _Captured:
        super().__enter__()
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
            self.callback(self._keep, name, stream)
            self.enter_context(redirect(stream))
        return self

    def _keep(self, name: str, stream: io.TextIOWrapper) -> None:
        stream.flush()
        stream.seek(0)
        setattr(self, name, stream.read())
