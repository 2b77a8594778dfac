"""Display matrices, the shapes of pixels, transparency and odd sizes: what a player makes of decoded pictures."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from flowblending.runtime.media.display import even_sided, on_black, orientation_of, shown_size
from tests.support.clips import MATRICES, TURNED

ONE = 1 << 16


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_every_quarter_turn_and_flip_is_numpys(name: str, scale: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 3), np.uint8)
    a, b, c, d = (round(each * scale * ONE) for each in MATRICES[name])
    orientation = orientation_of((a, b, 0, c, d, 0, 0, 0, 1 << 30))
    np.testing.assert_array_equal(orientation.turn(picture[0]), TURNED[name](picture)[0])
    assert orientation.mirrored == (np.linalg.det(np.reshape(MATRICES[name], (2, 2))) < 0)
    if not orientation.mirrored:
        assert str(orientation.degrees) == name.replace("as it is", "0")


def test_a_matrix_need_not_be_exact_but_no_other_angle_is_guessed() -> None:
    almost = orientation_of((-ONE, 400, 0, -400, -ONE, 0, 0, 0, 1 << 30))
    assert (almost.degrees, almost.mirrored) == (180, False)
    assert orientation_of((0,) * 9).degrees == 0
    for degrees in (30, 45, 100):
        cos, sin = (round(ONE * f(np.radians(degrees))) for f in (np.cos, np.sin))
        with pytest.raises(ValueError, match="another angle than quarter turns"):
            orientation_of((cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [
        (Fraction(1), (720, 480)),
        (Fraction(8, 9), (720, 540)),
        (Fraction(32, 27), (853, 480)),
        (Fraction(2), (1440, 480)),
        (Fraction(1, 1000000), (720, 480000000)),
    ],
)
def test_pixels_become_square_by_growing(aspect: Fraction, shown: tuple[int, int]) -> None:
    assert shown_size(720, 480, aspect) == shown


def test_what_is_transparent_lies_on_black() -> None:
    picture = np.full((2, 2, 4), 200, np.uint8)
    picture[..., 3] = [[255, 0], [128, 51]]
    np.testing.assert_array_equal(on_black(picture)[..., 0], [[200, 0], [100, 40]])


def test_odd_sides_grow_by_their_last_pixels() -> None:
    picture = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    even = even_sided(picture)
    assert even.shape == (4, 6, 3)
    np.testing.assert_array_equal(even[:3, :5], picture)
    np.testing.assert_array_equal(even[3, :5], picture[2])
    np.testing.assert_array_equal(even[:3, 5], picture[:, 4])
    assert even_sided(even).shape == even.shape
