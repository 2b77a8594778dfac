import pytest
from pydantic import ValidationError

from flowblending import UsageError
from flowblending.contracts.model_sampling import (
    ModelSampling,
    read_number,
    read_sampling,
    read_timesteps,
    write_number,
)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.5, 993.7, 0.03, 1e-7, 1000.0, 0.1 + 0.2])
def test_numbers_read_back(value: float) -> None:
    assert read_number(write_number(value), "x") == value


def test_numbers_are_short() -> None:
    assert [write_number(value) for value in (1.0, 3.5, 993.7, 1e-7)] == ["1", "3.5", "993.7", "0.0000001"]


def test_what_the_options_say() -> None:
    assert read_sampling("small", None, None) is None
    assert read_sampling("small", None, "1") == ModelSampling(guidance=1.0)
    assert read_sampling("small", "1000,993.7,0.03", None) == ModelSampling(timesteps=(1000.0, 993.7, 0.03))


def test_what_a_build_says() -> None:
    assert str(ModelSampling(guidance=1.0)) == "guidance 1, timesteps the run's"
    assert str(ModelSampling(timesteps=(1000.0, 993.7))) == "guidance the run's, timesteps 1000,993.7"


@pytest.mark.parametrize(
    ("timesteps", "guidance", "message"),
    [
        ("", None, "--small-timesteps has nothing where a number was expected; give one such as 5 or 3.5."),
        ("900,x", None, "--small-timesteps has x where a number was expected"),
        ("900,1e2", None, "--small-timesteps has 1e2 where"),
        ("900,-5", None, "--small-timesteps has -5 where"),
        ("900,900", None, "--small-timesteps has timesteps that do not fall to the end, above 0; give them as 1000,"),
        ("900,0", None, "--small-timesteps has timesteps that do not fall to the end, above 0"),
        ("1000.5,900", None, "--small-timesteps begins at 1000.5, but timesteps end at 1000."),
        (None, "inf", "--small-guidance has inf where a number was expected"),
        (None, "٣", "--small-guidance has ٣ where a number was expected"),
    ],
)
def test_refuses_in_one_sentence(timesteps: str | None, guidance: str | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_sampling("small", timesteps, guidance)
    assert str(error.value).startswith(message)


def test_a_manifest_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="timesteps fall, and end above 0"):
        ModelSampling(timesteps=(900.0, 950.0))
    assert read_timesteps("5", "x") == (5.0,)
