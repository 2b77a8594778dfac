"""Runs one stage, in a process of its own: what a library does to a process ends with the stage.

python -m benchmarks.gpu.worker LIST STAGE OUT WORK SECONDS TINY
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.record import FAILED, LEFT_OUT, Record, read_record
from benchmarks.gpu.stage import Stage, Unavailable, Work, run_items, sentence_of

_TO_CLOSE = 10.0
"""Seconds for closing what is open, and for the process to end."""


def find_stage(where: str, name: str) -> Stage:
    """A stage of a list, which is named as ``module:NAME``."""
    module, _, variable = where.partition(":")
    stages: Sequence[Stage] = getattr(importlib.import_module(module), variable)
    return next(stage for stage in stages if stage.name == name)


def run_stage(stage: Stage, out: Path, work: Path, seconds: float, *, tiny: bool) -> Record:
    """Run a stage in this process; its record is on the disk when it returns, and after every measurement.

    Args:
        out: where the records are.
        work: for checkpoints, graphs and plans.
        seconds: that it may take from now on.
    """
    begun = time.monotonic()
    record = replace(read_record(out, stage.name), state="", sentence=None, tiny=tiny)
    before = record.seconds

    def save() -> None:
        record.seconds = before + time.monotonic() - begun
        record.write(out)

    work.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as closing:
            given = Work(folder=work, tiny=tiny, seconds=seconds - _TO_CLOSE, closing=closing)
            run_items(stage, given, record, save, begun + seconds - _TO_CLOSE)
    except Unavailable as error:
        record.state, record.sentence = LEFT_OUT, str(error)
    except Exception as error:  # of a library: the next stage may work
        record.state, record.sentence = FAILED, sentence_of(error)
    record.running = None
    save()
    return record


def main() -> None:
    """Run the stage that the command line names."""
    where, name, out, work, seconds, tiny = sys.argv[1:]
    run_stage(find_stage(where, name), Path(out), Path(work), float(seconds), tiny=bool(int(tiny)))


if __name__ == "__main__":
    main()
