"""The arithmetic of memory by phases, on figures that compilers have stated, in GB."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from flowblending import OutOfMemoryError, UsageError
from flowblending.runtime.memory.choose import choose_plan, gigabytes
from flowblending.runtime.memory.describe import memory_facts, memory_lines, tell_memory
from flowblending.runtime.memory.plan import (
    LEAST,
    SLACK,
    EngineMemory,
    MemoryPlan,
    RunMemory,
    plan_phases,
    plan_resident,
    plan_stream,
)

GB = 10**9


def run_of(
    stages: str = "LSL",
    *,
    weights: dict[str, float] | None = None,
    scratch: dict[str, float] | None = None,
    encoders: tuple[str, ...] = ("text",),
    decoders: tuple[str, ...] = ("first", "next"),
    streams: str = "",
) -> RunMemory:
    """Wan 14B and 1.3B in bf16 at 832x480, 81 frames, unless told otherwise; models by their letters.

    Args:
        streams: the engines that can stream weights.
    """
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
                streams=name in streams.split() if name in ("L", "S", "text") else None,
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


ALL = "L S text"


def test_what_does_not_fit_is_streamed() -> None:
    """24 GB, less 0.5 for the driver: the large model's calls stream what is too much, and it stays between stages."""
    run, budget = run_of(streams=ALL, decoders=()), round(23.5 * GB)
    plan = plan_stream(run, budget)
    assert [phase.resident for phase in plan.stages] == [("L",), ("S", "L"), ("L",)]
    room = budget / (1 + SLACK)
    assert plan.streamed == {"L": pytest.approx(28.6 * GB + 2.84 * GB + 4.11 * GB + 0.06 * GB - room, abs=2)}
    assert peaks(plan) == [11.7, 20.2, 23.0, 20.2]
    assert [phase.streamed for phase in plan.phases] == [0, plan.streamed["L"], 0, plan.streamed["L"]]
    assert plan.needs <= budget
    assert plan.reads == round((11.4 + 28.6 + 2.84) * GB)
    assert plan.host == round(31.44 * GB)
    # Where the host's memory does not hold both, it is read again.
    alone = plan_stream(run, budget, host=30 * GB)
    assert [phase.resident for phase in alone.stages] == [("L",), ("S",), ("L",)]
    assert alone.host == round(28.6 * GB)
    assert alone.streamed["L"] == plan.streamed["L"] - round(2.84 * GB)
    # The text encoder, whose phase is another one, has a share of its own.
    small = plan_stream(run, 10 * GB)
    assert small.streamed["text"] == pytest.approx((11.4 + 0.31) * GB - 10 * GB / (1 + SLACK), abs=2)


@pytest.mark.parametrize("streams", [ALL, "L", "S"])
@pytest.mark.parametrize("stages", ["L", "LSL", "SLS", "LSLSL"])
def test_a_plan_that_streams_keeps_its_promises(stages: str, streams: str) -> None:
    run = run_of(stages, streams=streams)
    least = plan_stream(run, 0)
    for budget in (None, *(number * GB for number in range(8, 70, 3))):
        plan = plan_stream(run, budget)
        assert plan.peak <= plan_phases(run, None).peak
        for name, size in plan.streamed.items():
            assert name in streams
            assert 0 < size <= (1 - LEAST) * run.engines[name].weights
        for phase in plan.phases:
            assert {*phase.runs} <= {*phase.resident}
            assert phase.peak == phase.arena + phase.tensors + sum(
                run.engines[name].weights - plan.streamed.get(name, 0) for name in phase.resident
            )
        if budget is None or plan_phases(run, 0).needs + 4 * GB <= budget:
            assert plan.streamed.get("S", 0) == 0 or streams == "S"
        if budget is not None and least.needs <= budget:
            assert plan.needs <= budget
    if streams != ALL:
        return
    # What takes the most is then the decoder, which streams nothing.
    assert least.needs < plan_phases(run, 0).needs
    assert max(least.phases, key=lambda each: each.peak).name == "decode"


def test_auto_streams_what_fits_in_no_other_way() -> None:
    run = run_of(streams=ALL)
    resident, phases = plan_resident(run).needs, plan_phases(run, 0).needs
    for budget, mode in ((resident, "resident"), (phases, "phases"), (phases - 1, "stream"), (20 * GB, "stream")):
        assert choose_plan(run, "auto", budget).mode == mode
    assert choose_plan(run, "stream", 10 * resident).streamed == {}
    assert choose_plan(run, "stream", None).streamed == {}
    with pytest.raises(OutOfMemoryError, match=r"with --memory stream \(most of it to decode\), and 14\.0 GB are f"):
        choose_plan(run, "auto", 14 * GB)
    with pytest.raises(OutOfMemoryError, match=r"with --memory phases .*; --memory stream takes 2\d\.\d GB"):
        choose_plan(run, "phases", 24 * GB)
    with pytest.raises(OutOfMemoryError, match=r"keeps 28\.6 GB of weights in the host's memory, .* and 20\.0 GB are"):
        choose_plan(run, "auto", 24 * GB, host=20 * GB)
    # Built without, the way that would do is named; of engines that cannot be built so, nothing is said.
    with pytest.raises(OutOfMemoryError, match=r"build the bundle with --weight-streaming, .* streams 1\d\.\d GB of w"):
        choose_plan(run_of(), "auto", 24 * GB)
    with pytest.raises(UsageError, match=r"no engine of this run was built for it; build .* and --weight-streaming"):
        choose_plan(run_of(), "stream", 80 * GB)
    told = tell_memory(run, "auto", 24 * GB, 64 * GB)
    lines = memory_lines(told)
    assert lines[0] == (
        "memory    stream, at most 23.5 GB of 24.0 GB free; reads 43.1 GB of weights, and keeps up to 31.4 GB of them "
        "in the host's memory"
    )
    assert (
        lines[2] == "  sample L   20.7 GB: opens L (28.6 GB), streams 12.1 GB a call, scratch 4.1 GB, tensors 60.0 MB"
    )
    assert memory_facts(told)["host_bytes"] == round(31.44 * GB)


def test_frames_are_encoded_before_texts() -> None:
    run = dataclasses.replace(run_of(weights={"see": 0.2}), frame_encoders=("see",), framing=3 * GB)
    plan = plan_phases(run, 0)
    assert [phase.name for phase in plan.phases][:3] == ["encode frames", "encode", "sample L"]
    assert plan.framing == plan.phases[0]
    assert plan.first == plan.phases[1]
    assert plan.phases[0].resident == ("see",)
    assert peaks(plan)[0] == 3.2
    assert "see" in plan_resident(run).phases[0].resident
    assert plan_phases(run_of(), 0).framing is None


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
