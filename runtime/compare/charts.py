"""Charts as inline SVG: their parts, and quality against cost.

Colours are the page's: ``--run-0`` to ``--run-7`` for schedules, and its text colours. Marks stand for caches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flowblending.runtime.compare.columns import BOUND, FLOPS, SECONDS, SMOOTHNESS, SPEEDUP, WHOLE, Column
from flowblending.runtime.compare.report import ComparedRun, ComparisonReport, cell, text_of

WIDTH, HEIGHT = 620, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 20, 44
COLOURS = 8
LETTER = 6.6
"""Width of a letter of a label, roughly."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

NO_QUALITY = {SECONDS, WHOLE, FLOPS, SPEEDUP, BOUND, SMOOTHNESS}
"""Costs, and what only compares videos of like motion."""

_MARKS = ("circle", "square", "diamond", "triangle", "cross", "ring")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart and what it shows, for the page's choices."""

    x: str
    y: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear scale from values to places on the page, with round ticks."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def scale(values: Sequence[float], start: float, stop: float, *, zero: bool = False) -> Scale:
    """A scale that holds all values, and zero if asked, with about five ticks of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = tuple(round(index * step, digits) for index in range(first, last + 1))
    return Scale(low=ticks[0], high=ticks[-1], start=start, stop=stop, ticks=ticks)


def scatter_charts(report: ComparisonReport) -> list[Chart]:
    """Quality against cost, for every cost and every measure of quality; better is always up."""
    columns = {column.key: column for column in report.columns}
    costs = [columns[key] for key in (SECONDS, FLOPS) if key in columns]
    qualities = [column for column in report.columns if column.key not in NO_QUALITY]
    return [
        Chart(x=cost.heading, y=quality.heading, svg=_scatter(report, cost, quality))
        for quality, cost in itertools.product(qualities, costs)
    ]


def _scatter(report: ComparisonReport, cost: Column, quality: Column) -> str:
    points, aside = [], []
    for run in report.runs:
        x, y = cell(report, run, cost).value, cell(report, run, quality).value
        if x is not None and y is not None and math.isfinite(y):
            points.append((run, x, y))
        elif x is not None:
            aside.append((run, x, y))
    xs = [x for _, x, _ in [*points, *aside]] or [0.0, 1.0]
    horizontal = scale(xs, LEFT, WIDTH - RIGHT, zero=True)
    down = quality.better < 0
    ends = (TOP, HEIGHT - BOTTOM) if down else (HEIGHT - BOTTOM, TOP)
    vertical = scale([y for _, _, y in points] or [0.0, 1.0], *ends, zero=down)
    above = f"{_title(quality)}, less is better" if down else _title(quality)
    parts = [_axes(horizontal, vertical, _title(cost), above, quality)]
    front = pareto([(x, quality.better * y) for _, x, y in points])
    if len(front) > 1:
        path = " ".join(f"{horizontal(x):.1f},{vertical(quality.better * y):.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{path}"/>')
    asides, beside = _asides(report, [(run, horizontal(x), y is not None) for run, x, y in aside])
    parts += asides
    places = [(horizontal(x), vertical(y)) for _, x, y in points]
    taken = [*beside, *((x - 7, y - 7, x + 7, y + 7) for x, y in places)]
    for (run, x, y), (left, top) in zip(points, places, strict=True):
        told = f"{run.label}: {text_of(x, cost, unit=True)}, {quality.heading} {text_of(y, quality, unit=True)}"
        parts.append(
            f'<g style="color:{colour(report, run)}"><title>{escape(told)}</title>{mark(report, run, left, top)}</g>'
        )
        parts.append(_label(run.label, left, top, taken))
    return svg(f"{quality.heading} against {cost.heading}", HEIGHT, parts)


def _asides(report: ComparisonReport, places: Sequence[tuple[ComparedRun, float, bool]]) -> tuple[list[str], list[Box]]:
    """Upright lines for runs that have a cost and no figure, the reference and what equals it; and where labels are."""
    parts: list[str] = []
    boxes: list[Box] = []
    for run, x, equal in places:
        text = f"{run.label} ({'equal to the reference' if equal else 'reference'})"
        top = max((box[3] + 10 for box in boxes if abs(box[2] - x) < LETTER * 2), default=TOP + 4.0)
        boxes.append((x - 16, top, x, top + LETTER * len(text)))
        parts.append(
            f'<line class="aside" style="stroke:{colour(report, run)}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="label" text-anchor="end" transform="translate({x - 5:.1f} {top:.1f}) rotate(-90)">'
            f"{escape(text)}</text>"
        )
    return parts, boxes


def _label(text: str, x: float, y: float, taken: list[Box]) -> str:
    """A label at the first place around its point, within the axes, where it covers no point and no other label."""
    wide = LETTER * len(text)
    around = [(10 * side, 4 + 13.0 * row) for row in (0, -1, 1, -2, 2, -3, 3) for side in (1, -1)]
    boxes = [
        (x + dx - (wide if dx < 0 else 0), y + dy - 10, x + dx + (wide if dx > 0 else 0), y + dy + 3)
        for dx, dy in around
    ]
    free = [
        index
        for index, box in enumerate(boxes)
        if box[0] > LEFT
        and box[2] < WIDTH
        and box[3] < HEIGHT - BOTTOM
        and not any(_overlap(box, other) for other in taken)
    ]
    chosen = free[0] if free else 0
    taken.append(boxes[chosen])
    dx, dy = around[chosen]
    anchor = "start" if dx > 0 else "end"
    return f'<text class="label" x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both cost (less) and quality (more), by cost."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def mark(report: ComparisonReport, run: ComparedRun, x: float, y: float, size: float = 5.5) -> str:
    """The mark of a run's cache, in the colour that it inherits."""
    caches = list(dict.fromkeys(each.cache for each in report.runs))
    shape = _MARKS[caches.index(run.cache) % len(_MARKS)]
    match shape:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="currentColor"/>'
        case "ring":
            return (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size - 1}" fill="none" stroke="currentColor" '
                'stroke-width="2.5"/>'
            )
        case "cross":
            return (
                f'<path d="M{x - size:.1f} {y - size:.1f}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}" '
                'stroke="currentColor" stroke-width="2.5" fill="none"/>'
            )
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.15), (1.15, 0.95), (-1.15, 0.95)],
    }[shape]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="currentColor"/>'


def colour_index(report: ComparisonReport, run: ComparedRun) -> int:
    """Which of the page's colours a run has: its schedule's."""
    return list(dict.fromkeys(each.schedule for each in report.runs)).index(run.schedule) % COLOURS


def colour(report: ComparisonReport, run: ComparedRun) -> str:
    """The page's colour of a run, for CSS."""
    return f"var(--run-{colour_index(report, run)})"


def _title(column: Column) -> str:
    return column.heading + (f" ({column.unit})" if column.unit and column.unit not in (column.heading, "x") else "")


def _axes(horizontal: Scale, vertical: Scale, below: str, above: str, quality: Column) -> str:
    form = "%" if quality.unit == "%" else "g"
    parts = [grid(vertical, LEFT, form)]
    for tick in horizontal.ticks:
        x = horizontal(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{tick:g}</text>')
    parts.append(
        f'<text class="title" text-anchor="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}">{escape(below)}</text>'
        f'<text class="title" x="{LEFT}" y="{TOP - 8}">{escape(above)}</text>'
    )
    return "".join(parts)


def grid(vertical: Scale, left: float, form: str) -> str:
    """Horizontal lines with their values left of them."""
    parts = []
    for tick in vertical.ticks:
        y = vertical(tick)
        text = f"{100 * tick:g} %" if form == "%" else f"{tick:{form}}"
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick side" x="{left - 8:.0f}" y="{y + 4:.1f}">{text}</text>')
    return "".join(parts)


def svg(about: str, height: int, parts: Sequence[str]) -> str:
    """A whole chart of the usual width."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(about, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
