"""Runs stages one after the other, each in a process of its own that is ended when its time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from benchmarks.gpu.record import FAILED, FINISHED, LEFT_OUT, STOPPED, Record, read_record, read_records
from benchmarks.gpu.stage import Stage
from flowblending import UsageError
from flowblending.system.console import Console

_TERMINATION = 5.0
_LAST_WORDS = 4000


def check_out(out: Path, stages: Sequence[Stage], gpu: str | None, *, tiny: bool) -> None:
    """Refuse to put measurements of two GPUs, or of trials, side by side.

    Raises:
        UsageError: there are some of others.
    """
    for name, record in read_records(out, [stage.name for stage in stages]).items():
        if record.tiny != tiny:
            raise UsageError(
                f"{out} has {'a trial' if record.tiny else 'measurements'} of the stage {name}, and this run is "
                f"{'a trial' if tiny else 'none'}; give another --out."
            )
        if record.gpu != gpu:
            raise UsageError(
                f"{out} has the stage {name} of {record.gpu or 'no GPU'}, but here is {gpu or 'no GPU'}; give another "
                "--out."
            )


def run_stages(
    stages: Sequence[Stage],
    *,
    where: str,
    out: Path,
    work: Path,
    seconds: float,
    gpu: str | None,
    tiny: bool,
    again: bool,
    console: Console,
) -> Iterator[Record]:
    """Run the stages that are not finished, and tell of each in a line.

    Args:
        where: the list that the stages are in, as ``module:NAME``.
        out: for the records.
        work: for checkpoints, graphs and plans.
        seconds: that each may take.
        gpu: the name of the GPU.
        again: finished ones, too, from their beginning.

    Yields:
        The record of each.
    """
    for index, stage in enumerate(stages, start=1):
        known = read_record(out, stage.name)
        title = f"[{index}/{len(stages)}] {stage.name}"
        if known.state == FINISHED and not again:
            console.log(f"{title}: is there already")
            yield known
            continue
        replace(Record(stage=stage.name) if again else known, gpu=gpu, tiny=tiny).write(out)
        console.log(f"{title}: {stage.title}")
        record = _run(stage, where, out, work, seconds, tiny=tiny)
        state = record.state if record.sentence is None else f"{record.state}: {record.sentence}"
        console.log(f"{title}: {state} ({record.seconds:.0f} s in all)")
        yield record


def failed(records: Sequence[Record]) -> bool:
    """Whether some stage has to be run again; what is left out has not."""
    return any(record.state not in (FINISHED, LEFT_OUT) for record in records)


def _run(stage: Stage, where: str, out: Path, work: Path, seconds: float, *, tiny: bool) -> Record:
    """Run a stage, and say in its record what it could not say itself."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.worker", where, stage.name, str(out), str(work)]
    log = out / f"{stage.name}.log"
    with log.open("wb") as file:
        ended = _watch([*command, f"{seconds:g}", str(int(tiny))], file, begun + seconds)
    record = read_record(out, stage.name)
    if ended == 0 and record.state:
        return record
    # It was ended, or has ended in the midst of something.
    doing = record.running or "its beginning"
    if record.running is not None and record.running not in record.ended:
        record.ended.append(record.running)
    record.running = None
    if ended is None:
        record.state = STOPPED
        record.sentence = f"{doing} was ended after {seconds:.0f} s; run it again, or give it more with --limit."
    else:
        record.state = FAILED
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        record.sentence = f"its process ended with {how} at {doing} ({_last_line(log)}); {log} has all of it."
    record.seconds += time.monotonic() - begun
    record.write(out)
    return record


def _watch(command: Sequence[str], log: IO[bytes], end: float) -> int | None:
    """Run a program until it ends, or is ended with all that it has started.

    Returns:
        Its exit code; None if its time was up.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            return process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children: those of a compiler hold the GPU's memory."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATION)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "no words"
