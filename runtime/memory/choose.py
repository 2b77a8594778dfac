"""Which way a run goes about memory: as it was asked for, or by what is free. Refused before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowblending import OutOfMemoryError, UsageError
from flowblending.runtime.memory.plan import (
    AUTO,
    PHASES,
    STREAM,
    MemoryPlan,
    RunMemory,
    plan_phases,
    plan_resident,
    plan_stream,
)


def choose_plan(
    run: RunMemory, mode: str, budget: int | None, open_now: Sequence[str] = (), host: int | None = None
) -> MemoryPlan:
    """The plan of a run.

    Args:
        run: what it takes.
        mode: ``auto`` takes the first of ``resident``, ``phases`` and ``stream`` that fits.
        budget: bytes of the device that the run may take, those of engines that are open among them; None where
            nobody knows, as on a CPU.
        open_now: the engines that are open.
        host: bytes of the host's memory that are free, those of engines that are open among them; None where nobody
            knows.

    Raises:
        UsageError: ``stream`` with engines that cannot.
        OutOfMemoryError: it does not fit; the message has the smallest way in which it would, or what to build.
    """
    streams = _streams(run)
    if mode == STREAM and not streams:
        raise UsageError(
            "--memory stream was given, but no engine of this run was built for it; build the bundle with TensorRT or "
            "TensorRT-RTX and --weight-streaming, or use --memory phases."
        )
    if budget is None:
        make = {PHASES: plan_phases, STREAM: plan_stream}.get(mode)
        return plan_resident(run, open_now) if make is None else make(run, None, open_now)
    plans = [plan_resident(run, open_now), plan_phases(run, budget, open_now)]
    if streams:
        plans.append(plan_stream(run, budget, open_now, host))
    fitting = [plan for plan in plans if plan.needs <= budget and (host is None or plan.host <= host)]
    allowed = [plan for plan in fitting if mode in (AUTO, plan.mode)]
    if allowed:
        return allowed[0]
    asked = next((plan for plan in plans if plan.mode == mode), plans[-1])
    raise OutOfMemoryError(f"{_excess(asked, budget, host)}; {_remedy(run, fitting, budget)}.")


def _streams(run: RunMemory) -> bool:
    return any(run.engines[name].streams for name in (*run.encoders, *run.stages, *run.decoders))


def _excess(plan: MemoryPlan, budget: int, host: int | None) -> str:
    """What is too much of a plan."""
    if plan.needs <= budget and host is not None:
        return (
            f"This run keeps {gigabytes(plan.host)} of weights in the host's memory, from which they can be streamed, "
            f"and {gigabytes(host)} are free"
        )
    worst = max(plan.phases, key=lambda each: each.peak)
    return (
        f"This run takes {gigabytes(plan.needs)} of the GPU with --memory {plan.mode} (most of it to "
        f"{worst.name}), and {gigabytes(budget)} are free"
    )


def _remedy(run: RunMemory, fitting: Sequence[MemoryPlan], budget: int) -> str:
    """The way that would fit, or what to build."""
    if fitting:
        return f"--memory {fitting[0].mode} takes {gigabytes(fitting[0].needs)}"
    streaming = {
        name: dataclasses.replace(each, streams=True)
        for name, each in run.engines.items()
        if each.streams is False and name in (*run.encoders, *run.stages)
    }
    built = plan_stream(dataclasses.replace(run, engines={**run.engines, **streaming}), budget)
    if streaming and built.needs <= budget:
        return (
            "build the bundle with --weight-streaming, with which it fits and streams "
            f"{gigabytes(max(each.streamed for each in built.phases))} of weights a call"
        )
    return (
        "stop other programs on the GPU, make a smaller video, or build the bundle with a smaller --precision, such "
        "as large=fp8"
    )


def gigabytes(size: int) -> str:
    """A size as people read it."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
