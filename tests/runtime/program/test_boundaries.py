"""Boundaries of stages by noise level, timestep and share of the steps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.boundaries import Boundary, read_boundaries, read_boundary
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid, sigma_grid
from flowblending.runtime.program.solvers.registry import SOLVERS

FAMILY = (0.4, 0.2)


def levels(steps: int, shift: float = 3.0, solver: str = "unipc") -> Grid:
    return sigma_grid(SigmaGrid(kind="shifted", shift=shift), solver, steps, 0)


def parse(text: str, grid: Grid, boundaries: str | None = None) -> StageSchedule:
    given = () if boundaries is None else read_boundaries(boundaries)
    return StageSchedule.parse(text, len(grid.timesteps), *FAMILY, boundaries=given, grid=grid)


def test_reads_and_prints() -> None:
    assert read_boundaries("0.82, T429 ,80%") == (
        Boundary(kind="sigma", value=0.82),
        Boundary(kind="timestep", value=429.0),
        Boundary(kind="share", value=80.0),
    )
    for text in ("0.82", "t429.5", "33.3%"):
        assert str(read_boundary(text, "it")) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1", "has the boundary 1, but a noise level between 0 and 1 was expected"),
        ("818", "has the boundary 818, but a noise level between 0 and 1"),
        ("0", "has the boundary 0, but a noise level between 0 and 1"),
        ("t1000", "has the boundary t1000, but a timestep between 0 and 1000"),
        ("0%", "has the boundary 0%, but a share in per cent between 0 and 100"),
        ("100%", "has the boundary 100%, but a share in per cent between 0 and 100"),
        ("-0.5", "has -0.5 where a boundary was expected"),
        ("0.8,", "has nothing where a boundary was expected"),
        ("0.8 0.4", "has 0.8 0.4 where a boundary was expected"),
        ("t", "has t where a boundary was expected"),
        ("nan", "has nan where"),
        ("0.43,0.82", "has 0.43 before 0.82, but they have to fall from stage to stage"),
        ("0.5,0.5", "has 0.5 before 0.5, but they have to fall"),
        ("t429,t818", "has t429 before t818, but they have to fall"),
        ("80%,40%", "has 80% before 40%, but they have to rise"),
    ],
)
def test_refuses_what_no_run_has(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        read_boundaries(text)
    assert words in str(error.value)


@pytest.mark.parametrize("solver", SOLVERS.built_in)
@pytest.mark.parametrize(("steps", "shift"), [(12, 1.0), (12, 3.0), (20, 1.0), (20, 5.0), (50, 3.0), (50, 12.0)])
def test_fixed_in_sigma_they_hold_for_any_steps_solver_and_shift(solver: str, shift: float, steps: int) -> None:
    grid = levels(steps, shift, solver)
    for text, ends in (("0.82,0.43", (820, 430)), ("t818,t429", (818, 429)), ("0.9,t300", (900, 300))):
        letters = parse("LSL", grid, text).letters
        for letter, sigma, timestep in zip(letters, grid.sigmas, grid.timesteps, strict=False):
            level = [timestep if word.startswith("t") else 1000 * sigma for word in text.split(",")]
            assert letter == ("S" if level[0] < ends[0] and level[1] >= ends[1] else "L")


def test_the_steps_of_the_authors_boundaries() -> None:
    """40 and 80 per cent of 50 steps are timesteps 818 and 429 at a shift of 3, where the next stage begins."""
    at_3, at_5 = levels(50), levels(50, 5.0)
    assert (at_3.timesteps[20], at_3.timesteps[40]) == (818, 429)
    assert str(parse("LSL", at_3, "40%,80%")) == "L20 S20 L10"
    # The step at a boundary belongs before it.
    assert str(parse("LSL", at_3, "t819,t430")) == "L20 S20 L10"
    assert str(parse("LSL", at_3, "t818,t429")) == "L21 S20 L9"
    assert str(parse("LSL", at_5, "40%,80%")) == "L20 S20 L10"
    assert str(parse("LSL", at_5, "t819,t430")) == "L27 S17 L6"


def test_a_level_as_it_is_printed_is_the_steps_own() -> None:
    """0.7 and 0.9 are a little less in float32, 0.1 and 0.6 a little more."""
    grid = sigma_grid(SigmaGrid(kind="linear-quadratic"), "euler", 10, 0)
    grid = dataclasses.replace(grid, sigmas=tuple(float(np.float32(1 - step / 10)) for step in range(11)))
    for tenth in range(1, 10):
        assert read_boundary(f"0.{tenth}", "it").step(grid) == 11 - tenth


def test_the_switch_of_wan_2_2_is_that_of_diffusers() -> None:
    """Steps of the expert for high noise, t >= boundary_ratio * 1000: those counted with diffusers' WanPipeline."""
    for steps, shift, boundary, count in ((40, 3.0, 0.875, 13), (40, 12.0, 0.875, 26), (40, 5.0, 0.9, 15)):
        schedule = parse("LS", levels(steps, shift), str(boundary))
        assert str(schedule) == f"L{count} S{steps - count}"
        assert schedule == parse("LS", levels(steps, shift), f"t{1000 * boundary:g}")


@pytest.mark.parametrize("boundaries", ["0.82,0.43", "t818,t429", "40%,80%", "0.82,80%"])
def test_a_stage_list_says_the_same(boundaries: str) -> None:
    first, second = boundaries.split(",")
    grid = levels(50)
    assert parse(f"L@{first} S@{second} L", grid) == parse("LSL", grid, boundaries)
    options = parse(f"l@{first} s@{second}:g1:t700,600 l:g2", grid)
    assert [stage.steps for stage in options.stages] == [stage.steps for stage in parse("LSL", grid, boundaries).stages]
    assert [stage.guidance for stage in options.stages] == [None, 1.0, 2.0]


def test_lists_may_mix_steps_and_boundaries() -> None:
    grid = levels(50)
    assert str(parse("L20 S@0.43 L", grid)) == "L20 S20 L10"
    assert str(parse("L@0.82 S20 L10", grid)) == "L20 S20 L10"
    assert str(parse("L@0.82 L5 S", grid)) == "L25 S25"


def test_letters_of_any_number() -> None:
    grid = levels(50)
    assert str(parse("LSLS", grid, "40%,60%,80%")) == "L20 S10 L10 S10"
    assert str(parse("LL", grid, "0.5")) == "L50"
    assert str(parse("SL", grid, "0.5")) == "S38 L12"


@pytest.mark.parametrize(
    ("text", "boundaries", "steps", "words"),
    [
        ("LSL", "0.5", 50, "1 boundary was given for the schedule LSL, but its stages have 2 between them"),
        ("LS", "0.5,0.4", 50, "2 boundaries were given for the schedule LS, but its stages have 1 between them"),
        ("L", "0.5", 50, "1 boundary was given for the schedule L, but its stages have 0 between them"),
        ("LS", None, 50, "The schedule LS has 2 stages, but a model family gives the boundaries of three"),
        ("L20 S20 L10", "0.5,0.4", 50, "Boundaries are for a schedule of stage letters such as LSL, but L20 S20 L10"),
        (
            "LSL",
            "0.82,0.2",
            4,
            "Of 4 steps none is left for stage 3, L: step 4 has sigma 0.5010 (timestep 500); move the boundaries",
        ),
        ("LSL", "0.82,0.819", 10, "none is left for stage 2, S@0.819: step 4 has sigma"),
        ("LS", "0.9999999", 5, "Of 5 steps none is left for stage 1, L@0.9999999: step 1 has sigma 1.0000"),
        ("LSL", "0.82,10%", 50, "none is left for stage 2, S@10%"),
        ("L50 S", None, 50, "none is left for stage 2, S: step 50 has sigma"),
        ("L60 S", None, 50, "none is left for stage 2, S: all are taken"),
        ("L S20", None, 50, "The stage L says neither how many steps it has nor where it ends"),
        ("L20 S@0.2", None, 50, "The last stage S@0.2 ends before the run does"),
        ("L@0.8 S5", None, 50, "add up to 27 steps, but 50 steps were asked for"),
        ("L@0.4 S@0.8 L", None, 50, "The schedule has 0.4 before 0.8, but they have to fall"),
        ("L@ S", None, 50, "The stage L@ has nothing where a boundary was expected"),
        ("L@1.5 S", None, 50, "The stage L@1.5 has the boundary 1.5, but a noise level between 0 and 1"),
    ],
)
def test_refuses_what_fits_no_run(text: str, boundaries: str | None, steps: int, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text, levels(steps), boundaries)
    assert words in str(error.value)
    assert str(error.value).endswith(".")


def test_explicit_runs_say_their_steps() -> None:
    for text in ("L@0.5 S20", "L20 S"):
        with pytest.raises(UsageError, match="does not say how many steps it has"):
            StageSchedule.runs(text)


def test_every_share_takes_its_steps() -> None:
    for steps, share in itertools.product(range(2, 60), (1, 25, 33.3, 50, 99)):
        before = int(share * steps / 100 + 0.5)
        if 0 < before < steps:
            assert str(parse("LS", levels(steps), f"{share:g}%")) == f"L{before} S{steps - before}"
