"""Many jobs from one prompt file: a failed one is reported and the rest still run, a finished one is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.engine.console import Console
from flowblending.runtime.generate import generate
from flowblending.runtime.jobs import Line
from flowblending.runtime.pipeline import Pipeline

SUFFIX = ".mp4"


def run_batch(pipeline: Pipeline, lines: Sequence[Line], folder: Path, console: Console) -> int:
    """Make the videos of a prompt file in ``folder``.

    A video's name contains a digest of its job, so a changed line makes a new video, and an unchanged
    line whose video is there is skipped. Videos appear under their names only when they are whole.

    Returns:
        The exit code: 0 when every line has its video, 1 when a line failed.

    Raises:
        FlowBlendingError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowBlendingError(f"Cannot make the folder {folder} ({error.strerror}); choose another --out.") from None
    counts = {"made": 0, "skipped": 0, "failed": 0}
    for position, line in enumerate(lines, start=1):
        counts[_run_line(pipeline, line, folder, console, f"[{position}/{len(lines)}]")] += 1
    console.log(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 1 if counts["failed"] else 0


def _run_line(pipeline: Pipeline, line: Line, folder: Path, console: Console, where: str) -> str:
    if line.job is None:
        console.warn(f"line {line.number} failed: {line.error}")
        return "failed"
    out = folder / (line.job.file_stem(pipeline.bundle.manifest.id) + SUFFIX)
    if out.exists():
        console.log(f"{where} {out.name}: already there, skipped")
        return "skipped"
    try:
        outcome = generate(pipeline, line.job, out, console)
    except FlowBlendingError as error:
        console.warn(f"line {line.number} failed: {error}")
        return "failed"
    except Exception as error:
        # Hours of other lines must not be lost to what nobody thought of.
        console.warn(f"line {line.number} failed: {type(error).__name__}: {error}; please report this.")
        return "failed"
    console.log(f"{where} {out.name}: {outcome.seconds['total']:.1f} s")
    return "made"
