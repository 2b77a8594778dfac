"""What a stage has found: one JSON file, written whole after every measurement, so that nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.system.whole_file import replace_file

FORMAT = 1

FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"
"""At its time limit; the next run goes on."""
LEFT_OUT = "left out"
"""What it measures is not installed here."""


@dataclass(kw_only=True)
class Record:
    """A stage's results.

    Attributes:
        stage: its name.
        state: one of this module's; empty while it runs for the first time.
        sentence: why it is not finished.
        gpu: the name of the GPU that it was measured on; None without one.
        tiny: whether it was a trial with tiny models.
        seconds: that it has taken, all runs together.
        items: what was measured, by key.
        failures: what failed, by key: a sentence each.
        running: the key of the measurement under way.
        ended: those that the process did not survive, which are tried last the next time.
    """

    stage: str
    state: str = ""
    sentence: str | None = None
    gpu: str | None = None
    tiny: bool = False
    seconds: float = 0.0
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    running: str | None = None
    ended: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace ``folder/STAGE.json``."""
        content = {"format": FORMAT, **asdict(self)}
        replace_file(path_of(folder, self.stage), (json.dumps(content, indent=2) + "\n").encode())


def path_of(folder: Path, stage: str) -> Path:
    """A stage's file."""
    return folder / f"{stage}.json"


def read_record(folder: Path, stage: str) -> Record:
    """What a stage has found so far; an empty record if it has not run.

    Raises:
        FlowBlendingError: its file is damaged, or of another format.
    """
    path = path_of(folder, stage)
    if not path.exists():
        return Record(stage=stage)
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
        return Record(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlowBlendingError(
            f"{path} is no record of a stage ({error}); remove it to measure that stage again."
        ) from None


def read_records(folder: Path, stages: Iterable[str]) -> dict[str, Record]:
    """The records of the stages that have run, by name."""
    return {stage: read_record(folder, stage) for stage in stages if path_of(folder, stage).exists()}
