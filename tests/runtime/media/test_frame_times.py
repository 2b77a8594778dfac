"""Times of frames: what is one rate and what is not, and which frame is shown when."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from flowblending.runtime.media.frame_times import FrameTimes, middles


def even(rate: float, count: int, unit: float = 1e-6) -> FrameTimes:
    """A video of one rate, in a container that counts in such seconds."""
    starts = [round(index / rate / unit) * unit for index in range(count)]
    return FrameTimes(starts=starts, length=count / rate)


@pytest.mark.parametrize("rate", [8, 12.5, 24000 / 1001, 25, 30000 / 1001, 50])
@pytest.mark.parametrize("unit", [1e-6, 1 / 90000, 1e-3, 1e-2])
def test_rounding_by_the_container_is_no_variable_rate(rate: float, unit: float) -> None:
    times = even(rate, 300, unit)
    assert times.constant
    assert times.rate([None, Fraction(1000), Fraction(rate).limit_denominator(1001)]) == pytest.approx(rate)
    assert times.rate([]) == pytest.approx(rate, rel=2e-3)
    assert times.shown(middles(rate, 300)) == list(range(300))


@pytest.mark.parametrize("lost", [[1], [40], [79], [3, 4, 5], list(range(1, 80, 2))[:20]])
def test_frames_left_out_are_shown_by_the_one_before(lost: list[int]) -> None:
    kept = [index for index in range(81) if index not in lost]
    times = FrameTimes(starts=[kept[i] / 16 for i in range(len(kept))], length=81 / 16)
    assert not times.constant
    assert times.rate([Fraction(16)]) == pytest.approx(16)
    expected = [int(np.searchsorted(kept, index, side="right")) - 1 for index in range(81)]
    assert times.shown(middles(16, 81)) == expected


def test_two_rates_in_one_file_are_variable() -> None:
    first = [index / 24 for index in range(48)]
    times = FrameTimes(starts=[*first, *(2 + index / 30 for index in range(60))], length=4)
    assert not times.constant
    assert 24 <= times.rate([]) <= 30


def test_rates_faster_than_screens_are_not_followed() -> None:
    times = FrameTimes(starts=[0, 0.0001, 0.0002, 1.0], length=2)
    assert times.rate([]) <= 60


def test_one_frame_has_the_rate_that_the_file_says() -> None:
    alone = FrameTimes(starts=[0.0], length=0.125)
    assert (alone.constant, alone.rate([None, Fraction(24)]), alone.rate([])) == (True, 24, 8)
    assert FrameTimes(starts=[0.0], length=0).rate([None]) == 25
