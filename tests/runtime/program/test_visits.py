"""Which engine every step calls, and with which guidance; what depends on it in a program."""

from __future__ import annotations

import pytest

from flowblending.contracts.graph import SigmaGrid
from flowblending.contracts.models import by_letter
from flowblending.contracts.program import Program, Run
from flowblending.runtime.golden.closed_form import LATENT, MODELS
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.visits import visits_of

LETTERS = by_letter(MODELS)
GRID = sigma_grid(SigmaGrid(kind="shifted", shift=3.0), "unipc", 6, 0)
"""Timesteps 999, 937, 857, 750, 600 and 376; the experts of D change below 700."""


def program(schedule: str, **options: object) -> Program:
    return compile_program(
        schedule=StageSchedule.runs(schedule),
        models=LETTERS,
        solver="unipc",
        grid=GRID,
        latent_shape=LATENT,
        guidance=5.0,
        batched=False,
        **options,  # type: ignore[arg-type] # a table of options
    )


def test_experts_by_timestep_and_stages_where_they_change() -> None:
    found = visits_of(StageSchedule.runs("L1 D4 W1"), LETTERS, GRID, {"duo_low": 3.0})
    assert found.models == ("large", "duo_high", "duo_high", "duo_high", "duo_low", "duo_low")
    assert found.scales == (None, None, None, None, 3.0, 3.0)
    # Where the model changes, where the expert does, and where a stage is written to begin.
    assert found.switches == {1, 4, 5}
    assert str(found) == "L1 D4 W1"


def test_a_stages_own_scale_goes_before_the_experts() -> None:
    found = visits_of(StageSchedule.runs("D5:g2 D1"), LETTERS, GRID, {"duo_low": 3.0})
    assert found.scales == (2.0,) * 5 + (3.0,)
    assert found.guidance(5.0) == (2.0,) * 5 + (3.0,)


def test_nothing_is_kept_from_one_expert_for_the_other() -> None:
    made = program("D6", cache=parse_cache("interval:6"))
    calls = [[each.model for each in step.instructions if isinstance(each, Run)] for step in made.steps]
    assert [sorted(set(each)) for each in calls] == [["duo_high"], [], [], [], ["duo_low"], []]


def test_a_solvers_history_goes_on_from_one_expert_to_the_other() -> None:
    """As WanPipeline's does; only where it is asked for does a stage begin anew."""
    kept, anew = program("D6"), program("D6", restart_at_switch=True)
    assert kept.steps[4].instructions != anew.steps[4].instructions
    alone = program("L6")
    assert [step.instructions[2:] for step in kept.steps] == [step.instructions[2:] for step in alone.steps]


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (3.0, 2)])
def test_the_second_scale_turns_guidance_off_for_the_second_expert_alone(scale: float, calls: int) -> None:
    made = program("D6", engine_guidance={"duo_low": scale})
    assert (made.calls("duo_high"), made.calls("duo_low")) == (8, 2 * calls)
    assert [step.guidance for step in made.steps] == [None] * 4 + [scale] * 2
