"""A calibration as a picture: divergence by step with the stages shaded, and what the boundaries were chosen by."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowblending import FlowBlendingError
from flowblending.runtime.calibrate.divergence import COSINE, RELATIVE_L2, Divergence, Series, mean_of, spread_of
from flowblending.runtime.calibrate.findings import BudgetTest, DistanceTest, Findings, SimilarityTest, statistics
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.system.extras import install
from flowblending.system.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIRST, _SECOND = "#cfe0f5", "#fbe3c6"
"""Shades of the two models' stages."""
_NAMES = {COSINE: "cosine distance", RELATIVE_L2: "relative L2 distance"}


def check_plotting() -> None:
    """Find out before a long run whether there will be a plot.

    Raises:
        FlowBlendingError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - is it there?
    except ImportError as error:
        raise FlowBlendingError(
            f"A plot needs matplotlib ({error}); {install('calibrate')}, or leave it out with --no-plot."
        ) from None


def write_plot(findings: Findings, path: Path) -> None:
    """Write a PNG file, whole or not at all.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    from matplotlib.figure import Figure

    below = _of_results(findings)
    figure = Figure(figsize=(9, 6.5 if below else 3.5), layout="constrained")
    grid = figure.subplots(2 if below else 1, 2, squeeze=False)
    for axes, measure in zip(grid[0], (COSINE, RELATIVE_L2), strict=True):
        _divergence(axes, findings, measure)
    if below:
        for axes in grid[1][len(below) :]:
            axes.set_axis_off()
        for axes, draw in zip(grid[1], below, strict=False):
            draw(axes)
    figure.suptitle(
        f"{findings.runs}: {findings.solver}, guidance {findings.guidance:g}, {len(findings.prompts)} prompts"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def _of_results(findings: Findings) -> list[Callable[[Axes], None]]:
    """What draws the second row; nothing if only the divergence was measured."""
    draw: list[Callable[[Axes], None]] = []
    if findings.early is not None:
        draw.append(partial(_similarity, test=findings.early))
    if findings.late is not None:
        draw.append(partial(_distance, test=findings.late))
    if findings.budget is not None and findings.budget.blocks:
        draw += [partial(_blocks, test=findings.budget, findings=findings), partial(_tried, test=findings.budget)]
    return draw


def _divergence(axes: Axes, findings: Findings, measure: str) -> None:
    """Every branch's mean and spread along the all-large trajectory, and the guided mean along others."""
    steps = np.arange(1, findings.steps + 1)
    _shade(axes, findings)
    first, *others = findings.divergences.items()
    mean, spread = _folded(first[1])
    for name in mean:
        middle, width = np.array(mean[name][measure]), np.array(spread[name][measure])
        (line,) = axes.plot(
            steps, middle, marker="." if findings.steps <= 20 else "", label=f"{name}, along {first[0]}"
        )
        axes.fill_between(steps, np.maximum(middle - width, 0), middle + width, color=line.get_color(), alpha=0.2)
    for runs, found in others:
        mean, _ = _folded(found)
        last = list(mean)[-1]
        axes.plot(steps, mean[last][measure], linestyle="--", label=f"{last}, along {runs}")
    axes.set(xlabel="step", ylabel=_NAMES[measure], ylim=(0, None))
    axes.legend(fontsize="small")


def _similarity(axes: Axes, test: SimilarityTest) -> None:
    counts = sorted(test.values)
    numbers = [statistics(test.values[count]) for count in counts]
    axes.errorbar(
        counts, [each["mean"] for each in numbers], yerr=[each["spread"] for each in numbers], marker="o", capsize=3
    )
    axes.axhline(test.threshold, color="grey", linestyle=":")
    axes.axvline(test.chosen, color="black", linestyle="--")
    axes.set(xlabel="large steps before the small ones", ylabel=f"similarity to all-large ({test.measure})")


def _distance(axes: Axes, test: DistanceTest) -> None:
    counts = sorted(test.values)
    axes.plot(counts, [test.values[count] for count in counts], marker="o")
    axes.axhspan(max(test.all_large - test.noise, 0), test.all_large + test.noise, color="grey", alpha=0.25)
    axes.axvline(test.chosen, color="black", linestyle="--")
    axes.set(xlabel="large steps at the end", ylabel=f"Fréchet distance ({test.measure})")


def _blocks(axes: Axes, test: BudgetTest, findings: Findings) -> None:
    _shade(axes, findings)
    edges = [start + 0.5 for start in (*test.blocks, findings.steps)]
    axes.stairs([255 * square**0.5 for square in test.blocks.values()], edges, color="black")
    axes.set(xlabel="block of small steps", ylabel="RMS difference of the frames (of 255)", ylim=(0, None))


def _tried(axes: Axes, test: BudgetTest) -> None:
    numbers = [statistics(each.measured) for each in test.tried]
    rows = range(len(test.tried))
    axes.errorbar(
        [each["mean"] for each in numbers], rows, xerr=[each["spread"] for each in numbers], fmt="o", capsize=3
    )
    axes.plot([each.predicted for each in test.tried], rows, "x", color="grey", label="predicted")
    axes.set_yticks(rows, [each.schedule for each in test.tried])
    axes.set(xlabel="PSNR to all-large in dB")
    axes.legend(fontsize="small")


def _shade(axes: Axes, findings: Findings) -> None:
    start = 0.5
    for stage in StageSchedule.runs(findings.runs).stages:
        shade = _FIRST if stage.letter == findings.pair.first else _SECOND
        axes.axvspan(start, start + stage.steps, color=shade, zorder=0)
        start += stage.steps


def _folded(found: Sequence[Divergence]) -> tuple[Series, Series]:
    distances = [each.distances for each in found]
    return mean_of(distances), spread_of(distances)
