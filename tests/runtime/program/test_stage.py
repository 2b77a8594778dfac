import pytest

from flowblending import UsageError
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.stage import Stage, read_stage


@pytest.mark.parametrize(
    ("text", "expected", "printed"),
    [
        ("L20", Stage(letter="L", steps=20), "L20"),
        ("s20:G1", Stage(letter="S", steps=20, guidance=1.0), "S20:g1"),
        ("S4:t975,909.40,725", Stage(letter="S", steps=4, timesteps=(975.0, 909.4, 725.0)), "S4:t975,909.4,725"),
        ("S4:t0.03:g3.50", Stage(letter="S", steps=4, timesteps=(0.03,), guidance=3.5), "S4:g3.5:t0.03"),
        ("S4:t*:g0", Stage(letter="S", steps=4, timesteps=(), guidance=0.0), "S4:g0:t*"),
        ("S4:Lightning4", Stage(letter="S", steps=4, preset="lightning4"), "S4:lightning4"),
        (
            "S4:EULER:ltxv7:g2",
            Stage(letter="S", steps=4, guidance=2.0, preset="ltxv7", euler=True),
            "S4:g2:ltxv7:euler",
        ),
    ],
)
def test_parses_and_prints(text: str, expected: Stage, printed: str) -> None:
    assert read_stage(text) == expected
    assert str(expected) == printed
    assert read_stage(printed) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "S20:",
            "The stage S20: has an empty option; give g and a guidance scale, t and timesteps, such as S20:g1:t909,725,"
            " euler, or a preset: lightning4, ltxv7, ltxv8.",
        ),
        ("S20:x3", "The stage S20:x3 has the unknown option x3; give g and a guidance scale, t and timesteps,"),
        ("S20:g", "The stage S20:g has nothing where a number was expected; give one such as 5 or 3.5."),
        ("S20:g1e3", "The stage S20:g1e3 has 1e3 where a number was expected"),
        ("S20:g-1", "The stage S20:g-1 has -1 where a number was expected"),
        ("S20:gnan", "The stage S20:gnan has nan where a number was expected"),
        (
            "S20:lightning5",
            "The stage S20:lightning5 has the unknown option lightning5; give g and a guidance scale, t",
        ),
        (
            "S20:lightning4:t900",
            "The stage S20:lightning4:t900 has timesteps, and a preset with its own; leave one out.",
        ),
        ("S20:t*:ltxv7", "The stage S20:t*:ltxv7 has timesteps, and a preset with its own; leave one out."),
        ("S20:ltxv7:ltxv8", "The stage S20:ltxv7:ltxv8 has two presets; leave one out."),
        ("S20:euler:euler", "The stage S20:euler:euler has euler twice; leave one out."),
        ("S20:g1:g1", "The stage S20:g1:g1 has two guidance scales; leave one out."),
        ("S20:t*:t900", "The stage S20:t*:t900 has two lists of timesteps; leave one out."),
        ("S20:t900,", "The stage S20:t900, has nothing where a number was expected"),
        ("S20:t900,950", "The stage S20:t900,950 has timesteps that do not fall to the end, above 0"),
        ("S20:t900,0", "The stage S20:t900,0 has timesteps that do not fall to the end, above 0"),
        ("S0:g1", "The run S0:G1 has no steps; leave it out or give it at least 1."),
        ("S:g1", "S:G1 does not say how many steps it has; give a name such as LSL or runs such as L20 S20 L10."),
        ("S@0.5:g1", "S@0.5:G1 does not say how many steps it has; give a name such as LSL or runs such as L20"),
    ],
)
def test_refuses_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_stage(text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "printed", "switches"),
    [
        ("l2 s3:g1:t900,800 l1", "L2 S3:g1:t900,800 L1", {2, 5}),
        ("L2:g5 L2:g5 L1", "L4:g5 L1", {4}),
        ("S1:t900 S1:t800", "S1:t900 S1:t800", {1}),  # two lists: the solver starts anew between them
        ("S1:t* S1:t*", "S2:t*", set()),
        ("L2 S1:lightning4 S1:lightning4", "L2 S2:lightning4", {2}),
        ("S1:euler S1", "S1:euler S1", {1}),
    ],
)
def test_schedules_of_stages_with_options(text: str, printed: str, switches: set[int]) -> None:
    schedule = StageSchedule.runs(text)
    assert str(schedule) == printed
    assert StageSchedule.parse(printed, schedule.steps, 0.4, 0.2) == schedule
    assert schedule.switches == switches


def test_the_length_of_a_run_counts_and_not_its_timesteps() -> None:
    message = "The runs of the schedule L2 S3:t900 L1 add up to 6 steps, but 4 steps were asked for; change the runs"
    with pytest.raises(UsageError, match=message):
        StageSchedule.parse("L2 S3:t900 L1", 4, 0.4, 0.2)
    assert StageSchedule.runs("L2 S2:g1 S1:g0").guidance(5.0) == (5.0, 5.0, 1.0, 1.0, 0.0)
