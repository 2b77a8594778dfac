"""The report's folder, and the layout of videos that VBench takes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.compare.figures import LATENTS
from flowblending.runtime.compare.page import page
from flowblending.runtime.compare.report import ComparisonReport, as_json
from flowblending.system.temporary import sweep_folder
from flowblending.system.whole_file import whole_file, write_whole

PAGE, FIGURES = "index.html", "report.json"
LONGEST = 255
"""Bytes of a file's name, on the usual file systems."""


def prepare(folder: Path, parts: Sequence[str]) -> None:
    """Make the report's folder, or see that it is one.

    Args:
        parts: folders in it.

    Raises:
        UsageError: it holds something else, or the report of another kind of comparison.
        FlowBlendingError: it cannot be made or written to.
    """
    for each in (folder, *(folder / name for name in parts)):
        sweep_folder(each)
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(folder / FIGURES):
        raise UsageError(f"{folder} holds other files and no report of fb-compare; name a new folder with --out.")
    of_a_bundle = (folder / LATENTS).is_dir()
    if _has_runs(folder / FIGURES) and of_a_bundle != (LATENTS in parts):
        held = "a bundle's runs" if of_a_bundle else "existing videos"
        raise UsageError(
            f"{folder} holds a report of {held}, which this one would replace; name a new folder with --out."
        )
    try:
        for each in (folder, *(folder / name for name in parts)):
            each.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowBlendingError(f"Cannot make the folder {folder} ({error.strerror}); give another --out.") from None
    if not (folder / FIGURES).exists():
        write_whole(folder / FIGURES, b'{"version": 1, "runs": [], "prompts": []}\n')


def _is_report(path: Path) -> bool:
    return {"version", "runs", "prompts"} <= _content(path).keys()


def _has_runs(path: Path) -> bool:
    """Whether there is a report that tells of something: one that was just begun does not."""
    return bool(_content(path).get("runs"))


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(folder: Path, report: ComparisonReport) -> None:
    """Write the page and the figures; each appears whole or stays as it was.

    Raises:
        FlowBlendingError: they cannot be written.
    """
    content = json.dumps(as_json(report), ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(folder / FIGURES, f"{content}\n".encode())
    write_whole(folder / PAGE, page(report).encode())


def words_of(stem: str) -> str:
    """What of another's file name is fit for a name of ours: no more than 40 letters, and nothing that links mind."""
    return re.sub(r"\W+", "-", stem)[:40].strip("-")


def check_names(prompts: Sequence[str]) -> None:
    """See that VBench's names can be files.

    Raises:
        UsageError: a prompt is too long for a file's name, or holds what none may hold.
    """
    for prompt in prompts:
        if "/" in prompt or "\0" in prompt or len(f"{prompt}-999.mp4".encode()) > LONGEST:
            raise UsageError(
                f"VBench names videos by their prompts, but {prompt[:60]!r} cannot be a file's name (a slash, or more "
                f"than {LONGEST} bytes); shorten it, or leave out --vbench."
            )


def lay_out(report: ComparisonReport, folder: Path, target: Path) -> int:
    """Copy the videos to ``target/RUN/PROMPT-INDEX.mp4``; the index counts the videos of one prompt, from 0 on.

    That is how VBench finds the videos of a prompt (Vchitect/VBench, prompts/README.md).

    Returns:
        How many videos there are.

    Raises:
        FlowBlendingError: they cannot be written.
    """
    count = 0
    try:
        for run in report.runs:
            seen: Counter[str] = Counter()
            place = target / run.label
            for case in report.cases:
                if (clip := case.clips.get(run.label)) is None:
                    continue
                place.mkdir(parents=True, exist_ok=True)
                with whole_file(place / f"{case.title}-{seen[case.title]}.mp4") as temporary:
                    shutil.copyfile(folder / clip.video, temporary)
                seen[case.title] += 1
                count += 1
    except OSError as error:
        raise FlowBlendingError(f"Cannot write to {target} ({error.strerror}); give another --vbench.") from None
    return count
