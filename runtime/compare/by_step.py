"""Charts by step as inline SVG: likeness to the reference above the runs' stages, and the two models' divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flowblending.runtime.compare.charts import LEFT, LETTER, RIGHT, TOP, WIDTH, Scale, colour, grid, scale, svg
from flowblending.runtime.compare.report import (
    CalibrationDivergence,
    ChartLine,
    ComparedRun,
    ComparisonReport,
    steps_of,
)

FLOOR = 240
"""Where the plot ends and what is below it begins."""
STRIP = 18
"""From one run's stages to the next run's."""


@dataclass(frozen=True, kw_only=True)
class DivergenceChart:
    """One measure of the divergence."""

    measure: str
    svg: str


def steps_chart(report: ComparisonReport) -> str:
    """The latents' cosine with the reference's after every step, above each run's stages; empty if unknown."""
    lines = [(run, steps_of(report, run)) for run in report.runs[1:]]
    lines = [(run, values) for run, values in lines if values]
    count = max((len(values) for _, values in lines), default=0)
    # Runs of other lengths have no steps in common.
    lines = [(run, values) for run, values in lines if len(values) == count]
    if not lines:
        return ""
    bars = [report.runs[0], *(run for run, _ in lines)]
    horizontal = _steps(count, bars)
    vertical = scale([1.0, *(value for _, values in lines for value in values)], FLOOR, TOP)
    parts = [_frame(horizontal, vertical, "cosine with the reference's latents")]
    for run, values in lines:
        points = _points(horizontal, vertical, values)
        parts.append(
            f'<polyline class="run{" cached" if run.cache else ""}" style="stroke:{colour(report, run)}" '
            f'points="{points}"><title>{escape(run.label)}</title></polyline>'
        )
    below, height = _below(report, bars, horizontal)
    return svg("Cosine with the reference's latents by step", height, [*parts, *below])


def divergence_charts(report: ComparisonReport) -> list[DivergenceChart]:
    """The divergence by every measure, on the stages that the calibration chose, above those of the runs."""
    divergence = report.divergence
    if divergence is None:
        return []
    count = sum(length for _, length in _runs(divergence.stages))
    bars = [run for run in report.runs if sum(length for _, length in _runs(run.stages)) == count]
    return [
        DivergenceChart(measure=measure, svg=_divergence(report, divergence, measure, lines, bars))
        for measure, lines in divergence.lines.items()
    ]


def _divergence(
    report: ComparisonReport,
    divergence: CalibrationDivergence,
    measure: str,
    lines: Sequence[ChartLine],
    bars: Sequence[ComparedRun],
) -> str:
    horizontal = _steps(len(lines[0].mean), bars)
    tops = [mean + spread for line in lines for mean, spread in zip(line.mean, line.spread, strict=True)]
    vertical = scale(tops, FLOOR, TOP, zero=True)
    parts = [*_shades(divergence.stages, divergence.first, horizontal), _frame(horizontal, vertical, measure)]
    for index, line in enumerate(lines):
        high = [mean + spread for mean, spread in zip(line.mean, line.spread, strict=True)]
        low = [max(0.0, mean - spread) for mean, spread in zip(line.mean, line.spread, strict=True)]
        band = f"{_points(horizontal, vertical, high)} {' '.join(_points(horizontal, vertical, low).split()[::-1])}"
        followed = "" if index == 0 else " followed"
        parts.append(f'<polygon class="band" points="{band}"/>')
        parts.append(
            f'<polyline class="divergence{followed}" points="{_points(horizontal, vertical, line.mean)}">'
            f"<title>{escape(line.about)}</title></polyline>"
        )
    below, height = _below(report, bars, horizontal)
    return svg(f"{measure} of the two models' velocities by step", height, [*parts, *below])


def _shades(stages: str, first: str, horizontal: Scale) -> list[str]:
    """The stages as bands behind the plot, with their names."""
    parts, step = [], 0
    for letter, length in _runs(stages):
        kind = "large" if letter == first else "small"
        left, right = horizontal(step + 0.5), horizontal(step + length + 0.5)
        parts.append(
            f'<rect class="shade {kind}" x="{left:.1f}" y="{TOP}" '
            f'width="{right - left:.1f}" height="{FLOOR - TOP}"/>'
            f'<text class="tick" x="{(left + right) / 2:.1f}" y="{TOP + 14}">{letter}{length}</text>'
        )
        step += length
    return parts


def _steps(count: int, bars: Sequence[ComparedRun]) -> Scale:
    """The scale of steps, right of the longest label."""
    left = LEFT + LETTER * max(0, max((len(run.label) for run in bars), default=0) - 7)
    return Scale(low=0.5, high=count + 0.5, start=left, stop=WIDTH - RIGHT, ticks=_step_ticks(count))


def _frame(horizontal: Scale, vertical: Scale, title: str) -> str:
    left = horizontal.start
    form = ".4f" if vertical.high - vertical.low < 0.01 else "g"
    return f'{grid(vertical, left, form)}<text class="title" x="{left:.0f}" y="{TOP - 8}">{escape(title)}</text>'


def _points(horizontal: Scale, vertical: Scale, values: Sequence[float]) -> str:
    return " ".join(f"{horizontal(step):.1f},{vertical(value):.1f}" for step, value in enumerate(values, start=1))


def _below(report: ComparisonReport, bars: Sequence[ComparedRun], horizontal: Scale) -> tuple[list[str], int]:
    """What stands under a plot: the runs' stages and the steps' numbers; and the chart's height."""
    parts, top = [], FLOOR + 16.0
    for run in bars:
        parts.append(_stages(report, run, horizontal, top))
        top += STRIP
    parts += [
        f'<text class="tick" x="{horizontal(tick):.1f}" y="{top + 12:.0f}">{tick:g}</text>' for tick in horizontal.ticks
    ]
    parts.append(f'<text class="title" text-anchor="end" x="{WIDTH - RIGHT}" y="{top + 28:.0f}">step</text>')
    return parts, round(top + 36)


def _stages(report: ComparisonReport, run: ComparedRun, horizontal: Scale, top: float) -> str:
    """A strip with a run's stages: full for the first model, light for the others, low where a cache stands in."""
    place = f'x="{horizontal.start - 8:.0f}" y="{top + 10:.0f}"'
    parts = [f'<text class="label" text-anchor="end" {place}>{escape(run.label)}</text>']
    step = 0
    for letter, length in _runs(run.stages):
        kind = "large" if letter == next(iter(report.models), "") else "small"
        for index in range(step, step + length):
            computed = run.computed[index] if index < len(run.computed) else "1"
            high = {"1": 13.0, "c": 8.0}.get(computed, 3.0)
            x, wide = horizontal(index + 0.5), horizontal(index + 1.5) - horizontal(index + 0.5)
            said = _said(report.models.get(letter, letter), computed)
            parts.append(
                f'<rect class="{kind}" x="{x:.2f}" y="{top + 13 - high:.1f}" '
                f'width="{max(wide - 0.75, 0.5):.2f}" height="{high}" style="fill:{colour(report, run)}">'
                f"<title>{escape(run.label)}, step {index + 1}: {said}</title></rect>"
            )
        step += length
    return "".join(parts)


def _runs(stages: str) -> list[tuple[str, int]]:
    """``L20 S20`` as letters and lengths; nothing of another remark, such as prompts that differ in their steps."""
    words = stages.split()
    if not all(word[:1].isupper() and word[1:].isdigit() for word in words):
        return []
    return [(word[0], int(word[1:])) for word in words]


def _said(model: str, computed: str) -> str:
    return f"{model} model" + {"1": "", "c": ", conditional branch only"}.get(computed, ", from the cache")


def _step_ticks(count: int) -> tuple[float, ...]:
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count / size <= 12)
    return (1.0, *(float(tick) for tick in range(max(step, 2), count + 1, step)))
