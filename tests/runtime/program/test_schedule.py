import pytest

from flowblending import UsageError
from flowblending.runtime.program.schedule import StageSchedule

WAN = (0.4, 0.2)


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("LSL", 50, "L20 S20 L10"),
        ("LLL", 50, "L50"),
        ("SSS", 50, "S50"),
        ("LSS", 50, "L20 S30"),
        ("SLL", 50, "S20 L30"),
        ("LLS", 50, "L40 S10"),
        (" lsl ", 50, "L20 S20 L10"),
        ("L", 1, "L1"),
        ("s", 7, "S7"),
        ("L2 S", 7, "L2 S5"),
        ("LSL", 1, "L1"),
        ("LSL", 2, "L2"),
        ("LSL", 3, "L1 S1 L1"),
        ("LSL", 4, "L2 S1 L1"),
        ("LSL", 8, "L3 S3 L2"),
        ("LSS", 1, "L1"),
        ("SLS", 2, "S2"),
        ("L20 S20 L10", 50, "L20 S20 L10"),
        ("  l20\ts20  l10 ", 50, "L20 S20 L10"),
        ("L1 L2 S3 S1 L1", 8, "L3 S4 L1"),
        ("s7", 7, "S7"),
        ("L1 S1 L1 S1 L1", 5, "L1 S1 L1 S1 L1"),
    ],
)
def test_parses_and_prints(text: str, steps: int, expected: str) -> None:
    schedule = StageSchedule.parse(text, steps, *WAN)
    assert str(schedule) == expected
    assert len(schedule.letters) == steps
    assert StageSchedule.parse(str(schedule), steps, *WAN) == schedule


def test_models_and_switches() -> None:
    schedule = StageSchedule.parse("L2 S1 L1", 4, *WAN)
    assert schedule.letters == ("L", "L", "S", "L")
    assert schedule.switches == {2, 3}
    assert StageSchedule.parse("LLL", 4, *WAN).switches == frozenset()


def test_shares_round_half_up_and_fill_the_steps() -> None:
    assert str(StageSchedule.parse("LSL", 10, 0.25, 0.15)) == "L3 S5 L2"
    assert str(StageSchedule.parse("LSL", 50, 0.29, 0.0)) == "L15 S35"  # 0.29 * 50 = 14.499999999999998
    assert str(StageSchedule.parse("LSL", 3, 0.5, 0.5)) == "L3"
    assert str(StageSchedule.parse("LSS", 3, 0.5, 0.5)) == "L2 S1"
    assert str(StageSchedule.parse("LSL", 3, 0.5, 0.4)) == "L1 S1 L1"  # the middle's share of 0.1 is not lost
    assert str(StageSchedule.parse("LSL", 5, 0.0, 0.0)) == "S5"
    for steps in range(1, 120):
        for early, late in ((0.4, 0.2), (0.325, 0.175), (0.01, 0.01), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
            assert len(StageSchedule.parse("LSL", steps, early, late).letters) == steps


@pytest.mark.parametrize(
    ("text", "steps", "message"),
    [
        (
            "L20 S20",
            50,
            "The runs of the schedule L20 S20 add up to 40 steps, but 50 steps were asked for; "
            "change the runs or the number of steps.",
        ),
        ("LSL", 0, "0 steps were asked for, but at least 1 is needed; give a positive number of steps."),
        ("L5", -3, "-3 steps were asked for, but at least 1 is needed; give a positive number of steps."),
        (" \n", 50, "The schedule is empty; give a name such as LSL or runs such as L20 S20 L10."),
        ("L50 S0", 50, "The run S0 has no steps; leave it out or give it at least 1."),
        (
            "L20,S30",
            50,
            "L20,S30 is neither a schedule nor a run of one; give a name such as LSL or runs such as L20 S20 L10.",
        ),
        ("L-", 1, "L- is neither a schedule nor a run of one; give a name such as LSL or runs such as L20 S20 L10."),
        (
            "L-5 S55",
            50,
            "L-5 is neither a schedule nor a run of one; give a name such as LSL or runs such as L20 S20 L10.",
        ),
    ],
)
def test_refuses_in_one_sentence(text: str, steps: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        StageSchedule.parse(text, steps, *WAN)
    assert str(error.value) == message


def test_refuses_what_int_cannot_read() -> None:
    for text in ("L" + "9" * 5000, "L٣"):  # beyond int()'s digit limit; an Arabic-Indic digit
        with pytest.raises(UsageError, match="neither a schedule nor a run"):
            StageSchedule.parse(text, 3, *WAN)


@pytest.mark.parametrize(("early", "late"), [(0.7, 0.5), (-0.1, 0.2), (float("nan"), 0.2)])
def test_refuses_shares_that_do_not_fit(early: float, late: float) -> None:
    with pytest.raises(UsageError, match="add up to 1 at most"):
        StageSchedule.parse("LSL", 50, early, late)
