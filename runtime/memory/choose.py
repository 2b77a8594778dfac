"""Which way a run goes about memory: as it was asked for, or by what is free. Refused before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

from flowblending import OutOfMemoryError
from flowblending.runtime.memory.plan import AUTO, PHASES, RESIDENT, MemoryPlan, RunMemory, plan_phases, plan_resident


def choose_plan(run: RunMemory, mode: str, budget: int | None, open_now: Sequence[str] = ()) -> MemoryPlan:
    """The plan of a run.

    Args:
        run: what it takes.
        mode: ``auto`` takes the first of ``resident`` and ``phases`` that fits.
        budget: bytes of the device that the run may take, those of engines that are open among them; None where
            nobody knows, as on a CPU.
        open_now: the engines that are open.

    Raises:
        OutOfMemoryError: it does not fit; the message has the smallest way in which it would, or what to build.
    """
    resident = plan_resident(run, open_now)
    if budget is None:
        return plan_phases(run, None, open_now) if mode == PHASES else resident
    if mode in (AUTO, RESIDENT) and resident.needs <= budget:
        return resident
    phases = plan_phases(run, budget, open_now)
    if mode in (AUTO, PHASES) and phases.needs <= budget:
        return phases
    asked = resident if mode == RESIDENT else phases
    worst = max(asked.phases, key=lambda each: each.peak)
    sentence = (
        f"This run takes {gigabytes(asked.needs)} of the GPU with --memory {asked.mode} (most of it to "
        f"{worst.name}), and {gigabytes(budget)} are free"
    )
    if mode == RESIDENT and phases.needs <= budget:
        raise OutOfMemoryError(f"{sentence}; --memory phases takes {gigabytes(phases.needs)}.")
    raise OutOfMemoryError(
        f"{sentence}; stop other programs on the GPU, make a smaller video, or build the bundle with a smaller "
        "--precision, such as large=fp8."
    )


def gigabytes(size: int) -> str:
    """A size as people read it."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
