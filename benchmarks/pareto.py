"""Which combinations are worth having: none is both cheaper and better. And the picture of it."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.system.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MIDDLE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One combination.

    Args:
        schedule: its stages or its name.
        variant: what is done to it: a step cache, or fewer steps; empty for nothing.
        flops: of the transformers, relative to the reference's.
        time: of the sampling loop, relative to the reference's.
        psnr: to the reference's clips, in dB; infinite for the reference.
    """

    schedule: str
    variant: str
    flops: float
    time: float
    psnr: float


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The points that no other one is at most as expensive and at least as good as, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (cost(point), -point.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best


def write_plot(path: Path, points: Sequence[Point], title: str) -> None:
    """Quality against FLOPs and against measured time, with the front of each, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    by_flops, by_time = figure.subplots(1, 2, sharey=True)
    _panel(by_flops, points, lambda point: point.flops, "FLOPs of the transformers, all-large = 1")
    _panel(by_time, points, lambda point: point.time, "sampling loop's time, all-large = 1")
    by_flops.set_ylabel("PSNR to all-large sampling [dB]")
    by_flops.legend(fontsize="small", loc="lower right")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())


def _panel(axes: Axes, points: Sequence[Point], cost: Callable[[Point], float], label: str) -> None:
    # All-large sampling equals itself; it has no place on a scale in dB.
    finite = [point for point in points if math.isfinite(point.psnr)]
    best = front(finite, cost)
    axes.step(
        [cost(point) for point in best],
        [point.psnr for point in best],
        where="post",
        color="grey",
        linewidth=1,
        zorder=1,
    )
    for schedule in dict.fromkeys(point.schedule for point in points):
        own = [point for point in finite if point.schedule == schedule]
        axes.scatter([cost(point) for point in own], [point.psnr for point in own], label=schedule, zorder=2)
    named: list[Point] = []
    for point in sorted(finite, key=lambda each: bool(each.variant)):
        hidden = any(abs(cost(point) - cost(other)) < 0.15 and abs(point.psnr - other.psnr) < 1.5 for other in named)
        if hidden or not (point in best or not point.variant):
            continue
        named.append(point)
        axes.annotate(
            point.variant or f"{point.schedule}, all calls",
            (cost(point), point.psnr),
            xytext=(-4, 4) if cost(point) > _MIDDLE else (4, -9),
            ha="right" if cost(point) > _MIDDLE else "left",
            textcoords="offset points",
            fontsize=7,
        )
    axes.set(xlabel=label, xlim=(0, 1.05))
    axes.grid(alpha=0.3)
