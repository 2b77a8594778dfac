"""A calibration on the terminal: what was tried, what it gave, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending.contracts.program import COND
from flowblending.runtime.calibrate.divergence import COSINE, GUIDED, RELATIVE_L2, Divergence, mean_of, spread_of
from flowblending.runtime.calibrate.findings import BudgetTest, DistanceTest, Findings, SimilarityTest, statistics
from flowblending.system.console import Console

ROWS = 12
"""Of the table of divergences; the evidence holds every step."""


def show(findings: Findings, console: Console) -> None:
    """Print the tables of a calibration."""
    for runs, found in findings.divergences.items():
        _show_divergence(runs, found, findings.sigmas, console)
    if findings.early is not None:
        _show_early(findings.early, findings.steps, console)
    if findings.late is not None:
        _show_late(findings.late, console)
    if findings.budget is not None:
        _show_budget(findings.budget, console)


def _show_divergence(runs: str, found: Sequence[Divergence], sigmas: Sequence[float], console: Console) -> None:
    mean, spread = mean_of([each.distances for each in found]), spread_of([each.distances for each in found])
    steps = len(sigmas)
    shown = sorted({round(row * (steps - 1) / (ROWS - 1)) for row in range(ROWS)}) if steps > ROWS else range(steps)
    last = GUIDED if GUIDED in mean else COND
    columns = ["step", "sigma", *(f"{name} cosine" for name in mean), f"{last} relative L2"]
    rows = []
    for step in shown:
        cells = [f"{mean[name][COSINE][step]:.2e} ± {spread[name][COSINE][step]:.0e}" for name in mean]
        l2 = f"{mean[last][RELATIVE_L2][step]:.3f} ± {spread[last][RELATIVE_L2][step]:.3f}"
        rows.append((str(step + 1), f"{sigmas[step]:.4f}", *cells, l2))
    console.table(f"distance of the two velocities along {runs}, {len(found)} prompts", tuple(columns), rows)


def _show_early(test: SimilarityTest, steps: int, console: Console) -> None:
    rows = []
    for count, values in sorted(test.values.items()):
        numbers = statistics(values)
        mark = "chosen" if count == test.chosen else ""
        rows.append(
            (
                _runs(count, steps - count),
                f"{numbers['mean']:.2%} ± {numbers['spread']:.2%}",
                f"{min(values):.2%}",
                mark,
            )
        )
    console.log(f"early boundary: {test.criterion}")
    console.table("", ("schedule", "similarity", "lowest", ""), rows)


def _show_late(test: DistanceTest, console: Console) -> None:
    rows = [("all-large", f"{test.all_large:.4g} ± {test.noise:.2g}", "", "")]
    for count, value in sorted(test.values.items()):
        mark = "chosen" if count == test.chosen else ""
        similar = statistics(test.similarities[count])["mean"]
        rows.append((f"L{count} at the end", f"{value:.4g}", f"{similar:.2%}", mark))
    console.log(f"late boundary: {test.criterion}")
    console.table("", ("schedule", "distance", "similarity", ""), rows)


def _show_budget(test: BudgetTest, console: Console) -> None:
    columns = ("schedule", "switches", "predicted", "measured", "")
    rows = []
    for each in test.tried:
        numbers = statistics(each.measured) if each.measured else None
        notes = ["small steps in one piece"] if each.schedule == test.three_stages else []
        notes += ["chosen"] if each == test.chosen else []
        rows.append(
            (
                each.schedule,
                str(each.switches),
                f"{each.predicted:.4g}" if numbers is None else f"{each.predicted:.2f} dB",
                "" if numbers is None else f"{numbers['mean']:.2f} ± {numbers['spread']:.2f} dB",
                ", ".join(notes),
            )
        )
    console.log(f"within {test.allowance}: {test.allowance.small_steps} small steps; {test.criterion}")
    console.table("", columns, rows)


def _runs(large: int, small: int) -> str:
    return " ".join(f"{letter}{count}" for letter, count in (("L", large), ("S", small)) if count)
