"""The arithmetic of memory by phases, on figures that compilers have stated, in GB."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from flowblending import OutOfMemoryError
from flowblending.runtime.memory.choose import choose_plan, gigabytes
from flowblending.runtime.memory.describe import memory_facts, memory_lines, tell_memory
from flowblending.runtime.memory.plan import (
    SLACK,
    EngineMemory,
    MemoryPlan,
    RunMemory,
    plan_phases,
    plan_resident,
)

GB = 10**9


def run_of(
    stages: str = "LSL",
    *,
    weights: dict[str, float] | None = None,
    scratch: dict[str, float] | None = None,
    encoders: tuple[str, ...] = ("text",),
    decoders: tuple[str, ...] = ("first", "next"),
) -> RunMemory:
    """Wan 14B and 1.3B in bf16 at 832x480, 81 frames, unless told otherwise; models by their letters."""
    held = {"L": 28.6, "S": 2.84, "text": 11.4, "first": 0.15, "next": 0.15} | (weights or {})
    taken: dict[str, float | None] = {
        "L": 4.11,
        "S": 1.36,
        "text": 0.30,
        "first": 1.24,
        "next": 7.98,
        **(scratch or {}),
    }
    return RunMemory(
        engines={
            name: EngineMemory(
                name=name,
                weights=round(size * GB),
                scratch=None if taken.get(name) is None else round((taken[name] or 0) * GB),
            )
            for name, size in held.items()
        },
        encoders=encoders,
        stages=tuple(stages),
        decoders=decoders,
        conditions=round(0.01 * GB),
        slots=round(0.05 * GB),
        decoding=round(7.6 * GB),
    )


def peaks(plan: MemoryPlan) -> list[float]:
    return [round(phase.peak / GB, 1) for phase in plan.phases]


def test_what_is_resident_is_the_sum_with_one_arena() -> None:
    plan = plan_resident(run_of())
    weights = 28.6 + 2.84 + 11.4 + 0.3
    assert peaks(plan) == [round(weights + 7.98 + tensors, 1) for tensors in (0.01, 0.06, 0.06, 0.06, 7.6)]
    assert [phase.opened for phase in plan.phases[1:]] == [()] * 4
    assert plan.reads == plan.phases[0].reads == round(weights * GB)


def test_phases_take_the_largest_of_them() -> None:
    """The figures that were worked out by hand for this pair: 35.6 GB sampling, 16.1 decoding (here without caches)."""
    plan = plan_phases(run_of(), None)
    assert [phase.name for phase in plan.phases] == ["encode", "sample L", "sample S", "sample L", "decode"]
    assert peaks(plan) == [11.7, 35.6, 35.6, 32.8, 15.9]
    assert [phase.resident for phase in plan.phases] == [
        ("text",),
        ("L", "S"),
        ("S", "L"),
        ("L",),
        ("first", "next"),
    ]
    # The large model is read once, though two stages run it.
    assert plan.reads == round((11.4 + 28.6 + 2.84 + 0.3) * GB)


def test_what_does_not_fit_beside_a_stage_is_closed_and_read_again() -> None:
    plan = plan_phases(run_of(), round(35 * GB))
    assert [phase.resident for phase in plan.stages] == [("L",), ("S",), ("L",)]
    assert peaks(plan)[1:4] == [32.8, 7.0, 32.8]
    assert plan.reads == round((11.4 + 2 * 28.6 + 2.84 + 0.3) * GB)
    least = plan_phases(run_of(), 0)
    assert [phase.resident for phase in least.stages] == [("L",), ("S",), ("L",)]
    assert peaks(least) == peaks(plan)


def test_three_models_and_experts() -> None:
    run = run_of("HWS", weights={"H": 28.6, "W": 28.6}, scratch={"H": 4.11, "W": 4.11})
    roomy, tight = plan_phases(run, 100 * GB), plan_phases(run, 48 * GB)
    assert [phase.resident for phase in roomy.stages] == [("H", "W"), ("W", "S"), ("S",)]
    assert [phase.resident for phase in tight.stages] == [("H",), ("W", "S"), ("S",)]
    assert tight.needs < 48 * GB < roomy.needs


@pytest.mark.parametrize("stages", ["L", "LSL", "SLS", "LSLSL"])
@pytest.mark.parametrize("budget", [*range(30, 70, 3), None])
def test_a_plan_keeps_its_promises(stages: str, budget: int | None) -> None:
    """Every engine is open where it runs; what is opened was closed; with no more memory, never more is read."""
    run = run_of(stages)
    limit = None if budget is None else budget * GB
    plan, least = plan_phases(run, limit), plan_phases(run, 0)
    before: set[str] = set()
    for phase in plan.phases:
        assert {*phase.runs} <= {*phase.resident}
        assert {*phase.opened} == {*phase.resident} - before
        assert phase.reads == sum(run.engines[name].weights for name in phase.opened)
        assert phase.arena >= max(run.engines[name].scratch or 0 for name in phase.runs)
        before = {*phase.resident}
    assert len({phase.arena for phase in plan.stages}) == 1
    assert least.peak <= plan.peak <= plan_resident(run).peak
    assert plan.reads <= least.reads
    if limit is not None and least.needs <= limit:
        assert plan.needs <= limit


def test_engines_that_are_open_are_not_read_again() -> None:
    run = run_of()
    assert plan_resident(run, tuple(run.engines)).reads == 0
    # What a text encoder alone leaves open is closed by the first phase that has no use for it.
    given = dataclasses.replace(run, encoders=())
    plan = plan_phases(given, None, ("text", "L"))
    assert plan.phases[0].name == "sample L"
    assert plan.phases[0].opened == ("S",)


def test_auto_takes_the_first_that_fits() -> None:
    run = run_of()
    resident, phases = plan_resident(run).needs, plan_phases(run, 0).needs
    assert choose_plan(run, "auto", None).mode == "resident"
    assert choose_plan(run, "phases", None).mode == "phases"
    for budget, mode in ((resident, "resident"), (resident - 1, "phases"), (phases, "phases")):
        assert choose_plan(run, "auto", budget).mode == mode
    assert choose_plan(run, "phases", 10 * resident).mode == "phases"
    with pytest.raises(
        OutOfMemoryError, match=r"takes 33\.4 GB .*phases \(most of it to sample L\), and 33\.4 GB are fr"
    ):
        choose_plan(run, "auto", phases - 1)
    with pytest.raises(
        OutOfMemoryError,
        match=r"59\.9 GB of the GPU with --memory resident \(most of it to decode\).*; --memory phases t",
    ):
        choose_plan(run, "resident", resident - 1)
    with pytest.raises(OutOfMemoryError, match=r"with --memory resident .*; stop other programs .*large=fp8"):
        choose_plan(run, "resident", GB)


def test_what_nobody_has_stated_is_said() -> None:
    run = run_of(scratch={})
    bare = dataclasses.replace(run, engines={n: dataclasses.replace(e, scratch=None) for n, e in run.engines.items()})
    plan = plan_phases(bare, None)
    assert plan.unknown == tuple(run.engines)
    assert {phase.arena for phase in plan.phases} == {0}
    lines = memory_lines(tell_memory(bare, "auto", None))
    assert lines[-1] == "  scratch memory on top that nobody has stated: of L, S, text, first, next"


def test_a_plan_in_lines_and_as_data() -> None:
    told = tell_memory(run_of(), "auto", 48 * GB)
    assert memory_lines(told) == [
        "memory    phases, at most 35.6 GB of 48.0 GB free; reads 43.1 GB of weights",
        "  encode     11.7 GB: opens text (11.4 GB), scratch 300.0 MB, tensors 10.0 MB",
        "  sample L   35.6 GB: opens L, S (31.4 GB), scratch 4.1 GB, tensors 60.0 MB",
        "  sample S   35.6 GB: keeps S, L, scratch 4.1 GB, tensors 60.0 MB",
        "  sample L   32.8 GB: keeps L, scratch 4.1 GB, tensors 60.0 MB",
        "  decode     15.9 GB: opens first, next (300.0 MB), scratch 8.0 GB, tensors 7.6 GB",
    ]
    refused = tell_memory(run_of(), "auto", 24 * GB)
    assert memory_lines(refused)[-1].startswith("  refused: This run takes 33.4 GB of the GPU with --memory phases")
    facts = memory_facts(refused)
    assert facts["peak_bytes"] == refused.plan.peak
    assert facts["refusal"] == refused.refusal


def test_the_slack_is_of_the_peak() -> None:
    plan = plan_resident(run_of())
    assert plan.needs == round(plan.peak * (1 + SLACK))
    assert list(itertools.starmap(gigabytes, [(0,), (999,), (1500,), (2_500_000,), (12_340_000_000,)])) == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "12.3 GB",
    ]
