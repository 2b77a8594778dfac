"""A calibration's evidence on the terminal: what was tried, what it gave, and what was chosen."""

from __future__ import annotations

from typing import Any

from flowblending.contracts.evidence import (
    CacheEvidence,
    EarlyBoundary,
    Evidence,
    LateBoundary,
    MeasuredDivergence,
    ScheduleEvidence,
)
from flowblending.contracts.program import COND
from flowblending.runtime.calibrate.budget import words_of_budget
from flowblending.runtime.calibrate.divergence import COSINE, GUIDED, RELATIVE_L2
from flowblending.system.console import Console

ROWS = 12
"""Of the table of divergences; the evidence holds every step."""


def show(evidence: Evidence, console: Console) -> None:
    """Print the tables of a calibration."""
    if isinstance(evidence, CacheEvidence):
        _show_constants(evidence, console)
        return
    for runs, found in evidence.divergence.items():
        _show_divergence(runs, found, evidence, console)
    if evidence.early is not None:
        _show_early(evidence.early, evidence, console)
    if evidence.late is not None:
        _show_late(evidence.late, evidence.letters[0], console)
    if evidence.budget is not None:
        _show_budget(evidence.budget, console)
    first, proxy = evidence.letters[0], evidence.proxy
    console.result(f"by the divergence alone: {first}{proxy.early} at the start and {first}{proxy.late} at the end")


def _show_constants(evidence: CacheEvidence, console: Console) -> None:
    rows = [
        (name, model, f"{min(values[2:]):.4f}", f"{max(values[2:]):.4f}")
        for name, found in evidence.caches.items()
        for model, values in found.mean.items()
    ]
    console.table(
        f"measured at {evidence.steps} steps, {count_prompts(len(evidence.prompts))}",
        ("cache", "model", "lowest", "highest"),
        rows,
    )


def _show_divergence(runs: str, found: MeasuredDivergence, evidence: ScheduleEvidence, console: Console) -> None:
    mean, spread, steps = found.mean, found.spread, evidence.steps
    shown = sorted({round(row * (steps - 1) / (ROWS - 1)) for row in range(ROWS)}) if steps > ROWS else range(steps)
    last = GUIDED if GUIDED in mean else COND
    rows = []
    for step in shown:
        cells = [_cell(mean[name][COSINE][step], spread[name][COSINE][step]) for name in mean]
        l2 = _cell(mean[last][RELATIVE_L2][step], spread[last][RELATIVE_L2][step])
        rows.append((str(step + 1), f"{evidence.sigmas[step]:.4f}", *cells, l2))
    console.table(
        f"distance of the two velocities along {runs}, {count_prompts(len(evidence.prompts))}: the cosine of every "
        f"branch, and the relative L2 of {last}",
        ("step", "sigma", *mean, f"{last} L2"),
        rows,
    )


def _cell(mean: float, spread: float) -> str:
    return f"{mean:.3f} ± {spread:.3f}" if mean >= 0.1 else f"{mean:.1e} ± {spread:.0e}"


def _show_early(test: EarlyBoundary, evidence: ScheduleEvidence, console: Console) -> None:
    rows = [
        (
            _runs(each.large_steps_first, evidence),
            f"{each.mean:.2%} ± {each.spread:.2%}",
            f"{min(each.prompts):.2%}",
            "chosen" if each.large_steps_first == test.chosen else "",
        )
        for each in test.tried
    ]
    console.result(f"early boundary: {test.criterion}")
    console.table("", ("schedule", "similarity", "lowest", ""), rows)


def _show_late(test: LateBoundary, first: str, console: Console) -> None:
    rows = [("all-large", f"{test.all_large:.4g} ± {test.noise:.2g}", "", "")]
    for each in test.tried:
        mark = "chosen" if test.decided and each.large_steps_last == test.chosen else ""
        similar = f"{each.similarity.mean:.2%}"
        rows.append((f"{first}{each.large_steps_last} at the end", f"{each.distance:.4g}", similar, mark))
    console.result(f"late boundary: {test.criterion}")
    console.table("", ("schedule", "distance", "similarity", ""), rows)
    if not test.decided:
        console.result(_undecided(test, first))


def _undecided(test: LateBoundary, first: str) -> str:
    difference = test.tried[0].distance - test.all_large
    needed = (
        "no number of prompts can be told that would"
        if test.prompts_needed is None
        else (f"about {test.prompts_needed} prompts would")
    )
    return (
        f"leaving out the late stage changes the distance by {difference:.2g} ± {test.spread:.2g}, which decides "
        f"nothing: the family's {first}{test.chosen} at the end is kept; {needed} decide, if the difference stays"
    )


def _show_budget(test: dict[str, Any], console: Console) -> None:
    rows = []
    for each in test["tried"]:
        numbers = each["measured"]
        notes = ["in one piece"] if each["schedule"] == test["three_stages"] else []
        notes += ["chosen"] if each["schedule"] == test["chosen"] else []
        rows.append(
            (
                each["schedule"],
                str(each["switches"]),
                f"{each['predicted']:.2f} dB" if numbers else f"{each['predicted']:.4g}",
                f"{numbers['mean']:.2f} ± {numbers['spread']:.2f} dB" if numbers else "",
                ", ".join(notes),
            )
        )
    within = words_of_budget(test["budget"], test["seconds"])
    console.result(f"within {within}: {test['small_steps']} small steps; {test['criterion']}")
    console.table("", ("schedule", "switches", "predicted", "measured", "small steps"), rows)


def count_prompts(number: int) -> str:
    """``1 prompt``, ``8 prompts``."""
    return f"{number} prompt{'' if number == 1 else 's'}"


def _runs(large: int, evidence: ScheduleEvidence) -> str:
    lengths = zip(evidence.letters, (large, evidence.steps - large), strict=True)
    return " ".join(f"{letter}{count}" for letter, count in lengths if count)
