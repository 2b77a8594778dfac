"""The report as plain data: what was compared, every video's figures, and the table that sums them up."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowblending.runtime.compare.columns import BOUND, FLOPS, SECONDS, SPEEDUP, WHOLE, Column

Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A way to make videos, or an existing video.

    Attributes:
        schedule: what its colour stands for.
        cache: what its mark stands for; empty for none.
        stages: ``L20 S20 L10``, or another remark.
        computed: see `Figures`; empty if unknown.
    """

    label: str
    schedule: str
    cache: str = ""
    stages: str = ""
    computed: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedVideo:
    """One video.

    Attributes:
        video: its file, from the report's folder.
        values: figures by their column's key.
        steps: cosine with the reference's latents after every step.
    """

    video: str
    values: Values
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GivenPicture:
    """An image or a video that a prompt gave beside its text.

    Attributes:
        option: ``image``, ``video``, ``mask`` or ``reference``.
        file: as the prompt file names it, from where fb-compare was called.
        about: what it is, for the page.
        picture: its first frame, as an address that holds it.
    """

    option: str
    file: str
    about: str
    picture: str


@dataclass(frozen=True, kw_only=True)
class ComparedPrompt:
    """A prompt, and its clips by the run's label; one that could not be made is missing."""

    title: str
    note: str = ""
    given: tuple[GivenPicture, ...] = ()
    clips: Mapping[str, ComparedVideo] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ChartLine:
    """A distance of the two models' velocities at every step, the mean over prompts, and its standard deviation."""

    about: str
    mean: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationDivergence:
    """What ``fb-calibrate`` measured on the bundle.

    Attributes:
        about: a sentence on it.
        first: the letter of the model that the other one is compared with.
        stages: the schedule that it chose, ``L14 S26 L10``.
        lines: by the measure's name, along the trajectories that were followed; the all-large one first.
    """

    about: str
    first: str
    stages: str
    lines: Mapping[str, tuple[ChartLine, ...]]


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """Everything that the page shows.

    Attributes:
        name: of what was compared.
        subtitle: what was compared, in a line.
        facts: name and value of what holds for all runs.
        runs: the reference first.
        columns: of the table, those without any figure left out.
        notes: sentences on what was measured and what was not.
        frame_rate: of the videos, in frames per second.
        sets: by the run's label, figures of all its videos together, by their column's key.
        divergence: None where it was not measured.
        models: names by the letters of stages, the first model first; none where stages are not known.
        warnings: sentences that a reader must not miss.
    """

    name: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    runs: tuple[ComparedRun, ...]
    cases: tuple[ComparedPrompt, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    frame_rate: float
    sets: Mapping[str, Values] = field(default_factory=dict)
    divergence: CalibrationDivergence | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure of the table over ``count`` videos; ``error`` is its standard error, if it has one."""

    value: float | None
    error: float | None = None
    count: int = 0


def cell(report: ComparisonReport, run: ComparedRun, column: Column) -> Cell:
    """One figure of the table: a median of times, a ratio of medians, or a mean."""
    values = _values(report, run, column.key)
    if (together := report.sets.get(run.label, {}).get(column.key)) is not None:
        return Cell(value=together, count=sum(run.label in case.clips for case in report.cases))
    if column.key in (SPEEDUP, BOUND):
        return _ratio(report, run, SECONDS if column.key == SPEEDUP else FLOPS)
    if not values:
        return Cell(value=None)
    if column.key in (SECONDS, WHOLE, FLOPS):
        return Cell(value=statistics.median(values), count=len(values))
    # A video that equals the reference's has an infinite PSNR, which would hide all others.
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Cell(value=math.inf, count=len(values))
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None
    return Cell(value=statistics.fmean(finite), error=error, count=len(finite))


def _values(report: ComparisonReport, run: ComparedRun, key: str) -> list[float]:
    clips = [case.clips.get(run.label) for case in report.cases]
    return [clip.values[key] for clip in clips if clip is not None and key in clip.values]


def _ratio(report: ComparisonReport, run: ComparedRun, key: str) -> Cell:
    """The reference's median over the run's, of the prompts that both have."""
    first = report.runs[0].label
    pairs = [
        (case.clips[first].values[key], case.clips[run.label].values[key])
        for case in report.cases
        if all(label in case.clips and key in case.clips[label].values for label in (first, run.label))
    ]
    if not pairs:
        return Cell(value=None)
    theirs, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Cell(value=theirs / ours if ours else None, count=len(pairs))


def in_use(columns: Sequence[Column], cases: Sequence[ComparedPrompt]) -> tuple[Column, ...]:
    """The columns of which some video has a figure."""
    there = {key for case in cases for clip in case.clips.values() for key in clip.values}
    needed = {SPEEDUP: SECONDS, BOUND: FLOPS}
    return tuple(column for column in columns if needed.get(column.key, column.key) in there)


def text_of(value: float | None, column: Column, *, unit: bool = False) -> str:
    """A figure as it is read."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "equal"
    if column.unit == "%":
        return f"{100 * value:.1f} %"
    if column.unit in ("s", "TFLOPs"):
        # Three digits tell runs apart, whether they take milliseconds or hours.
        number = f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
        return f"{number} {column.unit}" if unit else number
    number = f"{value:.{column.digits}f}"
    return (
        number
        + (f" {column.unit}" if column.unit and unit and column.unit != "x" else "")
        + ("x" if column.unit == "x" else "")
    )


def steps_of(report: ComparisonReport, run: ComparedRun) -> list[float]:
    """The cosine with the reference's latents after every step, the mean over the prompts; empty if unknown."""
    trails = [case.clips[run.label].steps for case in report.cases if run.label in case.clips]
    trails = [steps for steps in trails if steps]
    if not trails or len({len(steps) for steps in trails}) > 1:
        return []
    return [statistics.fmean(values) for values in zip(*trails, strict=True)]


def as_json(report: ComparisonReport) -> dict[str, Any]:
    """``report.json``: the table, and every video's figures; what is no finite number is null."""
    return {
        "version": 1,
        "name": report.name,
        "subtitle": report.subtitle,
        "facts": dict(report.facts),
        "notes": [*report.warnings, *report.notes],
        "frame_rate": report.frame_rate,
        "divergence": None if report.divergence is None else dataclasses.asdict(report.divergence),
        "runs": [
            {
                "label": run.label,
                "schedule": run.schedule,
                "cache": run.cache,
                "stages": run.stages,
                "table": {column.key: _plain(cell(report, run, column)) for column in report.columns},
            }
            for run in report.runs
        ],
        "prompts": [
            {
                "prompt": case.title,
                "note": case.note,
                **({"given": [{each.option: each.file} for each in case.given]} if case.given else {}),
                "videos": {
                    label: {
                        "file": clip.video,
                        "figures": {key: _finite(value) for key, value in clip.values.items()},
                        "latent_cosine_by_step": list(clip.steps),
                    }
                    for label, clip in case.clips.items()
                },
            }
            for case in report.cases
        ],
    }


def _plain(cell: Cell) -> dict[str, float | int | None]:
    return {"value": _finite(cell.value), "standard_error": _finite(cell.error), "count": cell.count}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
