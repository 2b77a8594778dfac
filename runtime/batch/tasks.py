"""Many jobs from one prompt file: what is to be done, what became of it, and what is tried again.

A failed line is reported and the rest still run; a finished one is skipped when the file is run again. Who makes the
videos is not known here: this process (`run_batch`), processes of its own (`workers`) or a Ray cluster (`ray_pool`).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flowblending import DeviceError, DiskError, FlowBlendingError, OutOfMemoryError, UsageError
from flowblending.runtime.generate import generate
from flowblending.runtime.option import RUN
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.prompt_file import PromptLine
from flowblending.system.console import Console
from flowblending.system.temporary import sweep_folder
from flowblending.system.whole_file import write_whole

SUFFIX = ".mp4"
_NUMBER = re.compile(r"^\d{4,}-")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A line whose video is to be made at ``out``.

    Attributes:
        crashed: the worker that died of it, if one did.
    """

    number: int
    job: Job
    out: Path
    crashed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of ``count`` equal parts of a prompt file: every ``count``-th line, from line ``index`` on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``.

        Raises:
            UsageError: not two numbers of which the first is from 1 to the second.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(
                f"The shard is {text!r}, but i/n with i from 1 to n was expected; give --shard 2/8, for example."
            )
        return cls(index=int(match[1]), count=int(match[2]))

    def holds(self, number: int) -> bool:
        """Whether a line of the file, from 1 on, is in this part."""
        return (number - 1) % self.count == self.index - 1


class Cause(StrEnum):
    """What kept a video from being made, and so which others it keeps from it."""

    JOB = "job"
    MEMORY = "memory"
    DEVICE = "device"
    DISK = "disk"


def cause_of(error: Exception) -> Cause:
    """What an error is about."""
    if isinstance(error, OutOfMemoryError | MemoryError):
        return Cause.MEMORY
    if isinstance(error, DeviceError):
        return Cause.DEVICE
    # Whatever else the system refuses, such as another open file, it refuses the next line too.
    return Cause.DISK if isinstance(error, DiskError | OSError) else Cause.JOB


def _shares(waiting: Task, failed: Task, cause: Cause) -> bool:
    if cause == Cause.MEMORY:
        return (waiting.job.size, waiting.job.frames) == (failed.job.size, failed.job.frames)
    return cause != Cause.JOB


class Batch:
    """The videos of a prompt file in a folder.

    A video's name is the number of its line, words of its prompt and a digest of its job: a changed line makes a new
    video, and a line whose video is there, under whatever number, is skipped. Videos appear under their names only
    when they are whole.

    Args:
        lines: of the file; those without a job are reported at once.
        folder: for the videos; made if it is not there.
        edition: of the bundle that makes them, which is part of their names.
        console: told of every line's end.
        check: raises UsageError for a job that the bundle cannot run; asked of every line before any is made.
        suffix: of the videos; empty for folders of PNG images.
        program: whose result is told.

    Raises:
        FlowBlendingError: the folder cannot be made.
    """

    def __init__(
        self,
        lines: Sequence[PromptLine],
        folder: Path,
        edition: str,
        console: Console,
        *,
        check: Callable[[Job], object] = lambda _: None,
        suffix: str = SUFFIX,
        program: str = RUN,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowBlendingError(
                f"Cannot make the folder {folder} ({error.strerror}); choose another --out."
            ) from None
        sweep_folder(folder)
        self._console = console
        self._program = program
        self._counts = {"made": 0, "skipped": 0, "failed": 0}
        self._waiting: deque[Task] = deque()
        self._running = 0
        self._total = len(lines)
        self._folder = folder
        self._entries: list[dict[str, str | int]] = []
        self._states: dict[int, dict[str, str]] = {}
        there = _videos(folder, suffix)
        first: dict[str, Task] = {}
        for line in lines:
            why = _refused(line, check)
            if line.job is None or why is not None:
                self._fail(line.number, why or "")
                self._entries.append({"line": line.number, "error": why or ""})
                continue
            stem = line.job.file_stem(edition)
            found = there.get(stem)
            task = Task(number=line.number, job=line.job, out=found or folder / f"{line.number:04}-{stem}{suffix}")
            one = first.setdefault(stem, task)
            self._entries.append(
                {"line": line.number, "video": one.out.name, "prompt": line.job.prompt, "seed": line.job.seed}
            )
            if found is not None:
                self._count("skipped", line.number, f"{found.name}: already there, skipped")
            elif one is not task:
                # Two workers that write the same video would remove one another's beginnings.
                self._count(
                    "skipped", line.number, f"{one.out.name}: line {line.number} is line {one.number} again, skipped"
                )
            else:
                self._waiting.append(task)

    def write_index(self, name: str) -> None:
        """Write which line has which video.

        The file is a JSON array of objects with ``line``, and ``video``, ``prompt`` and ``seed``, or ``error`` for a
        line that makes none.

        Args:
            name: of the file, in the folder.

        Raises:
            FlowBlendingError: it cannot be written.
        """
        write_whole(self._folder / name, (json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def unfinished(self) -> int:
        """Tasks that wait or run."""
        return len(self._waiting) + self._running

    def take(self, worker: str, *, alone: bool) -> Task | None:
        """The next task for a worker; None if none waits that it may have.

        Args:
            worker: its name.
            alone: whether there is no other; if so, it also gets tasks that it has died of.
        """
        for task in self._waiting:
            if alone or task.crashed != worker:
                self._waiting.remove(task)
                self._running += 1
                return task
        return None

    def made(self, task: Task, seconds: float) -> None:
        """The video is there."""
        self._running -= 1
        self._count("made", task.number, f"{task.out.name}: {seconds:.1f} s")

    def failed(self, task: Task, why: str, cause: Cause = Cause.JOB) -> None:
        """It will fail again, and is not tried again; nor are those that wait and share the cause."""
        self._running -= 1
        self._fail(task.number, why)
        shared = [each for each in self._waiting if _shares(each, task, cause)]
        if shared:
            for each in shared:
                self._waiting.remove(each)
                self._states[each.number] = {"state": "not tried"}
            self._counts["not tried"] = self._counts.get("not tried", 0) + len(shared)
            lines = "line was" if len(shared) == 1 else "lines were"
            self._console.warn(
                f"{len(shared)} more {lines} not tried, which would fail alike; mend that and run again."
            )

    def crashed(self, task: Task, worker: str, how: str) -> None:
        """The worker died of it, or with it: it is tried once again, elsewhere."""
        self._running -= 1
        if task.crashed is not None:
            self._fail(task.number, f"{worker} crashed ({how}), as {task.crashed} had before.")
            return
        self._console.warn(f"line {task.number}: {worker} crashed ({how}); the prompt is tried once again.")
        self._waiting.appendleft(Task(number=task.number, job=task.job, out=task.out, crashed=worker))

    def finish(self) -> int:
        """Report what is left as failed, and the counts.

        Returns:
            The exit code: 0 when every line has its video, 1 when a line failed.
        """
        while self._waiting:
            self._fail(self._waiting.popleft().number, "no worker is left; run again to make it.")
        self._console.result(", ".join(f"{count} {what}" for what, count in self._counts.items()))
        lines = [{**entry, **self._states.get(int(entry["line"]), {})} for entry in self._entries]
        counts = {what.replace(" ", "_"): count for what, count in self._counts.items()}
        self._console.document(self._program, {"folder": self._folder, **counts, "lines": lines})
        return 1 if self._counts["failed"] else 0

    def _fail(self, number: int, why: str) -> None:
        self._counts["failed"] += 1
        self._states[number] = {"state": "failed", "error": why}
        self._console.warn(f"line {number} failed: {why}")

    def _count(self, what: str, number: int, line: str) -> None:
        self._counts[what] += 1
        self._states[number] = {"state": what}
        self._console.log(f"[{sum(self._counts.values())}/{self._total}] {line}")


def _refused(line: PromptLine, check: Callable[[Job], object]) -> str | None:
    """Why a line makes no video; None if it does."""
    if line.job is None:
        return line.error
    try:
        check(line.job)
    except UsageError as error:
        return str(error)
    return None


def _videos(folder: Path, suffix: str) -> dict[str, Path]:
    """The videos of a folder by their names without suffix, with and without the number of a line."""
    videos = [path for path in folder.iterdir() if path.suffix == suffix]
    stems = {path.name.removesuffix(suffix): path for path in videos}
    return {_NUMBER.sub("", stem): path for stem, path in stems.items()} | stems


def run_batch(pipeline: Pipeline, batch: Batch, console: Console) -> int:
    """Make the videos one after the other in this process; returns the exit code."""
    while task := batch.take("this process", alone=True):
        try:
            outcome = generate(pipeline, task.job, task.out, console)
        except FlowBlendingError as error:
            batch.failed(task, str(error), cause_of(error))
        except Exception as error:
            # Hours of other lines must not be lost to what nobody thought of.
            batch.failed(task, f"{type(error).__name__}: {error}; please report this.", cause_of(error))
        else:
            batch.made(task, outcome.seconds["total"])
    return batch.finish()
