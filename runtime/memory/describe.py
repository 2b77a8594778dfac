"""A plan of memory in lines, and as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from flowblending import OutOfMemoryError
from flowblending.runtime.memory.choose import choose_plan, gigabytes
from flowblending.runtime.memory.plan import MemoryPlan, Phase, RunMemory, plan_phases, plan_stream


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is told of a run's memory before it.

    Attributes:
        plan: that it would go by; the least that it can take where that does not fit.
        free: bytes of the device; None where nobody knows.
        refusal: why it would not run; None if it would.
        note: what is done otherwise than it would be with more memory; empty for nothing.
    """

    plan: MemoryPlan
    free: int | None
    refusal: str | None
    note: str = ""


def tell_memory(run: RunMemory, mode: str, free: int | None, host: int | None = None) -> Told:
    """The plan that a run would go by; what does not fit is not refused here.

    Args:
        run: what it takes.
        mode: that was asked for.
        free: bytes of the device; None where nobody knows.
        host: bytes of the host's memory, likewise.

    Raises:
        UsageError: a way that the run's engines cannot go.
    """
    try:
        return Told(plan=choose_plan(run, mode, free, host=host), free=free, refusal=None)
    except OutOfMemoryError as error:
        streams = any(each.streams for each in run.engines.values())
        return Told(plan=plan_stream(run, 0) if streams else plan_phases(run, 0), free=free, refusal=str(error))


def memory_lines(told: Told) -> list[str]:
    """The plan: its way, its peak, and a line for each phase."""
    plan = told.plan
    free = "" if told.free is None else f" of {gigabytes(told.free)} free"
    width = max(len(phase.name) for phase in plan.phases)
    lines = [f"memory    {plan.mode}, at most {gigabytes(plan.peak)}{free}; reads {gigabytes(plan.reads)} of weights"]
    if plan.host:
        lines[0] += f", and keeps up to {gigabytes(plan.host)} of them in the host's memory"
    lines += [f"  {phase.name:<{width}}  {_phase(phase, resident=not plan.by_phases)}" for phase in plan.phases]
    if plan.unknown:
        lines.append(f"  scratch memory on top that nobody has stated: of {', '.join(plan.unknown)}")
    if told.note:
        lines.append(f"  {told.note}")
    return lines if told.refusal is None else [*lines, f"  refused: {told.refusal}"]


def tiles_instead(tiling: object) -> str:
    """What to tell of tiles that nobody has asked for."""
    return (
        f"whole frames do not fit, so that the video is decoded in tiles of {tiling}, which is not quite the same; "
        "give --vae-tiling off to have it refused instead."
    )


def _phase(phase: Phase, *, resident: bool) -> str:
    kept = [] if resident else [name for name in phase.resident if name not in phase.opened]
    parts = [
        *([f"opens {', '.join(phase.opened)} ({gigabytes(phase.reads)})"] if phase.opened else []),
        *([f"keeps {', '.join(kept)}"] if kept else []),
        *([f"streams {gigabytes(phase.streamed)} a call"] if phase.streamed else []),
        f"scratch {gigabytes(phase.arena)}",
        f"tensors {gigabytes(phase.tensors)}",
    ]
    return f"{gigabytes(phase.peak):>8}: {', '.join(parts)}"


def memory_facts(told: Told) -> dict[str, object]:
    """The same as plain data; docs/json.md tells the keys."""
    return {
        "mode": told.plan.mode,
        "peak_bytes": told.plan.peak,
        "free_bytes": told.free,
        "read_bytes": told.plan.reads,
        "host_bytes": told.plan.host,
        "unknown_scratch": list(told.plan.unknown),
        "refusal": told.refusal,
        "note": told.note or None,
        "phases": [
            {
                "name": phase.name,
                "peak_bytes": phase.peak,
                "resident": list(phase.resident),
                "opened": list(phase.opened),
                "read_bytes": phase.reads,
                "streamed_bytes": phase.streamed,
                "scratch_bytes": phase.arena,
                "tensor_bytes": phase.tensors,
            }
            for phase in told.plan.phases
        ],
    }
