"""What a program tells: results on standard output; on standard error progress, and one sentence per error.

Live displays go to a terminal only; elsewhere (a log file, a pipe, CI) they are left out and the plain lines remain.
With ``--json``, standard output is one JSON document and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import flowblending
from flowblending import FlowBlendingError
from flowblending.system.extras import missing_extra
from flowblending.system.processors import limit_threads
from flowblending.system.signals import stop_on_signals
from flowblending.system.table import table_lines

WIDTH = 80
"""Of tables in a file or a pipe, which have no width of their own."""


class Board:
    """What several workers do, and how much of it is done. Made by `Console.board`."""

    def __init__(self, progress: Progress, everything: TaskID, rows: Mapping[str, TaskID]) -> None:
        self._progress = progress
        self._everything = everything
        self._rows = rows

    def left(self, count: int) -> None:
        """How much is not done yet."""
        total = self._progress.tasks[self._everything].total or 0
        self._progress.update(self._everything, completed=total - count)

    def show(self, row: str, doing: str, done: int, of: int) -> None:
        """What one worker does, and how far it is."""
        self._progress.update(self._rows[row], doing=doing, completed=done, total=of or None)


class Console:
    """Progress bars, log lines and results of one program.

    Args:
        quiet: errors and warnings only.
        document: the result is one JSON document, see `document`, in place of lines and tables.
    """

    def __init__(self, *, quiet: bool = False, document: bool = False) -> None:
        self._quiet = quiet
        self._document = document
        self._warnings: list[str] = []
        # Not rich's own idea of a terminal, which an environment variable can change.
        self._live = sys.stderr is not None and sys.stderr.isatty() and not quiet
        self._rich = RichConsole(stderr=True, highlight=False, emoji=False)

    @property
    def live(self) -> bool:
        """Whether progress is shown."""
        return self._live

    def log(self, line: str) -> None:
        """One line about something that has happened."""
        if not self._quiet:
            self._rich.print(line, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """One line that the user should not miss; shown even when quiet."""
        self._warnings.append(line)
        self._rich.print(f"warning: {line}", markup=False, soft_wrap=True, style="yellow")

    @contextmanager
    def phase(self, title: str) -> Iterator[Callable[[str], None]]:
        """Work of unknown length: shows the title, what it is doing, and the time elapsed."""
        columns: list[ProgressColumn] = [
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self._rich, transient=True, disable=not self.live) as progress:
            task = progress.add_task(title, total=None, doing="")
            yield lambda doing: progress.update(task, doing=doing)

    @contextmanager
    def progress(self, title: str, *, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Work of known length: the block is given a function to call with every advance."""
        count: ProgressColumn = DownloadColumn() if unit == "B" else MofNCompleteColumn()
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            count,
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        ]
        shown = self.live and total > 0
        with Progress(*columns, console=self._rich, transient=True, disable=not shown) as progress:
            task = progress.add_task(title, total=total)
            yield lambda amount: progress.update(task, advance=amount)

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[int, str, float], None]]:
        """ModelSampling: step k of N, the model at work, steps per second, time left."""
        columns: list[ProgressColumn] = [
            TextColumn("sampling"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[stage]}", style="bold"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self._rich, transient=True, disable=not self.live) as progress:
            task = progress.add_task("sampling", total=total, stage="", rate="")

            def advance(done: int, model: str, seconds: float) -> None:
                rate = f"{1 / seconds:.2f} it/s" if seconds < 1 else f"{seconds:.2f} s/it"
                progress.update(task, completed=done, stage=model[0].upper(), rate=rate)

            yield advance

    @contextmanager
    def board(self, title: str, *, total: int, rows: Sequence[str]) -> Iterator[Board]:
        """Work of known length that several do at a time: a bar for all of it, and a row for each of them."""
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[doing]}", markup=False),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self._rich, transient=True, disable=not self.live) as progress:
            everything = progress.add_task(title, total=total, doing="")
            yield Board(progress, everything, {row: progress.add_task(row, total=None, doing="") for row in rows})

    def result(self, line: str) -> None:
        """One line of the result."""
        if not (self._quiet or self._document):
            print(line)

    def table(self, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        """A table of the result, see `table_lines`; an empty title is left out."""
        if self._quiet or self._document:
            return
        width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
        for line in (*[title] * bool(title), *table_lines(columns, rows, width)):
            print(line)

    def document(self, program: str, content: Mapping[str, object]) -> None:
        """The result as one JSON document, if that was asked for: docs/json.md tells the keys.

        ``program``, ``version`` and ``warnings`` are added. Numbers that are not finite become null, paths texts.
        """
        if self._document:
            about = {"program": program, "version": flowblending.__version__}
            print(json.dumps(_plain({**about, **content, "warnings": self._warnings}), indent=1, default=str))


def _plain(content: object) -> object:
    """Without numbers that JSON has no word for."""
    if isinstance(content, Mapping):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and exit.

    An error that the user can mend becomes one line. SIGINT (Ctrl-C), SIGTERM and SIGHUP become one line and the exit
    code 128 + the signal's number.
    """
    limit_threads()
    with stop_on_signals() as signals:
        try:
            code = main() or 0
            code = _flush() or code
        except KeyboardInterrupt:
            code = _stopped(signals.asked or signal.SIGINT)
        except Exception as error:
            code = _failed(error, signals.asked)
    sys.exit(code)


def _failed(error: Exception, asked: signal.Signals | None) -> int:
    """Say how a program failed, and return its exit code; what nobody thought of is raised again."""
    if asked is not None:
        # The signal may have come anywhere, amid the import of a library that makes an error of its own of it.
        return _stopped(asked)
    if isinstance(error, FlowBlendingError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return _give_up_output(0)
    missing = missing_extra(error) if isinstance(error, ImportError) else None
    if missing is not None:
        print(f"error: {missing}", file=sys.stderr)
        return FlowBlendingError.exit_code
    raise error


def _stopped(by: signal.Signals) -> int:
    how = "interrupted" if by == signal.SIGINT else f"ended by {by.name}"
    with contextlib.suppress(OSError):  # a terminal that was closed takes nothing any more
        print(f"{how}; nothing was left half-written", file=sys.stderr, flush=True)
    return 128 + by


def _flush() -> int:
    """Write what is still to be printed; Python itself would do it later, and fail with a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _give_up_output(0)
    except OSError as error:
        print(f"error: Cannot write the output ({error.strerror}); check where it goes.", file=sys.stderr)
        return _give_up_output(1)
    return 0


def _give_up_output(code: int) -> int:
    """The reader of our output (head, say) has gone: drop the rest, or Python tries to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
