"""The shapes data: what is drawn, and what captions say of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.shapes.render import centre, coverage
from benchmarks.shapes.scene import BACKGROUNDS, COLOURS, HELD_OUT, KINDS, RELATIONS, Scene, caption, parse_caption
from tests.support.scenes import film, one, scenes, two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.513, 0.481)])
def test_every_kind_has_the_area_and_the_centre_of_its_disk(kind: str, at: tuple[float, float]) -> None:
    size, radius = 256, 0.15
    covered = coverage(kind, at, radius, (size, size))
    assert covered.sum() == pytest.approx(math.pi * (radius * size) ** 2, rel=1e-3)
    places = (np.arange(size) + 0.5) / size
    assert covered.sum(0) @ places / covered.sum() == pytest.approx(at[0], abs=0.05 / size)
    assert covered.sum(1) @ places / covered.sum() == pytest.approx(at[1], abs=0.05 / size)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_wide_frame_shapes_keep_their_form(kind: str) -> None:
    wide = coverage(kind, (0.25, 0.5), 0.1, (256, 128))
    square = coverage(kind, (0.5, 0.5), 0.2, (128, 128))
    np.testing.assert_allclose(wide[:, :128], square, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_as_soft_as_a_mean_over_every_pixel(kind: str) -> None:
    covered = coverage(kind, (0.507, 0.493), 0.15, (64, 64))
    fine = coverage(kind, (0.507, 0.493), 0.15, (1024, 1024)) > 0.5
    mean = fine.reshape(64, 16, 64, 16).mean((1, 3))
    # The distance to an edge says the share of a pixel exactly only where it is upright; corners differ most.
    assert np.abs(covered - mean).max() < 0.35
    assert np.sqrt(np.mean((covered - mean) ** 2)) < 0.5 * np.sqrt(np.mean(((covered > 0.5) - mean) ** 2))


def test_frames() -> None:
    for scene in scenes(0, 50):
        clip = film(scene, (5, 48, 64))
        assert clip.shape == (5, 48, 64, 3)
        assert clip.dtype == np.float32
        assert clip.min() >= 0
        assert clip.max() <= 1


def test_colours_are_those_of_the_palette() -> None:
    clip = film(two())
    assert np.round(255 * clip[6, 32, 48]).tolist() == list(COLOURS["blue"])
    assert np.round(255 * clip[0, 44, 15]).tolist() == list(COLOURS["red"])
    assert np.abs(255 * clip[:, 0] - BACKGROUNDS["white"]).max() < 2
    assert np.abs(255 * clip[:, -1] - BACKGROUNDS["black"]).max() < 2


def test_the_seed_decides_all() -> None:
    first, again, other = scenes(1, 5), scenes(1, 5), scenes(2, 5)
    assert first == again != other
    assert all(np.array_equal(film(a), film(b)) for a, b in zip(first, again, strict=True))


def test_the_palette_is_as_distinct_as_the_judge_assumes() -> None:
    def apart(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
        return float(np.linalg.norm(np.subtract(a, b))) / 255

    assert min(apart(a, b) for a, b in itertools.combinations(COLOURS.values(), 2)) > 0.47
    assert min(apart(a, b) for a, b in itertools.combinations(BACKGROUNDS.values(), 2)) > 0.71
    grounds = [
        np.add(np.multiply(a, 1 - t), np.multiply(b, t))
        for a, b in itertools.combinations(BACKGROUNDS.values(), 2)
        for t in np.linspace(0, 1, 33)
    ]
    assert min(apart(ground, colour) for ground in grounds for colour in COLOURS.values()) > 0.4


def test_held_out_combinations() -> None:
    def looks(scene: Scene) -> list[tuple[str, str]]:
        return [(shape.colour, shape.kind) for shape in scene.shapes]

    trained = {look for scene in scenes(3, 3000) for look in looks(scene)}
    assert trained == set(itertools.product(COLOURS, KINDS)) - HELD_OUT
    unseen = scenes(4, 1000, held_out=True)
    assert {looks(scene)[0] for scene in unseen} == HELD_OUT
    assert not {look for scene in unseen for look in looks(scene)[1:]} & HELD_OUT


def test_a_scene_fits_its_frame_and_its_caption_all_the_time() -> None:
    for scene in [*scenes(5, 400), *scenes(6, 100, held_out=True)]:
        places = [[centre(shape, time) for shape in scene.shapes] for time in np.linspace(0, 1, 13)]
        for shape in scene.shapes:
            for time in (0, 0.5, 1):
                covered = coverage(shape.kind, centre(shape, time), shape.radius, (64, 64))
                # A triangle's corner may leave the frame, with at most 3 % of it.
                assert covered.sum() > 0.965 * math.pi * (shape.radius * 64) ** 2
        if scene.relation is None:
            assert len(scene.shapes) == 1
            continue
        assert len({shape.colour for shape in scene.shapes}) == 2
        x, y = RELATIONS[scene.relation]
        assert min(x * (a[0] - b[0]) + y * (a[1] - b[1]) for a, b in places) > 0.45


def test_shapes_of_a_pair_never_touch() -> None:
    for scene in scenes(7, 200):
        for time in np.linspace(0, 1, 5):
            covered = [coverage(s.kind, centre(s, time), s.radius, (64, 64)) for s in scene.shapes]
            assert (np.sum(covered, axis=0) <= 1).all()
            assert len(covered) != 2 or not np.logical_and(*covered).any()


def test_captions_and_attributes_belong_one_to_one() -> None:
    said: dict[str, object] = {}
    for scene in scenes(8, 4000):
        shown = (
            *((s.colour, s.kind, s.motion) for s in scene.shapes),
            scene.relation,
            scene.background,
        )
        assert said.setdefault(caption(scene), shown) == shown
    assert len(set(said.values())) == len(said) > 2500


def test_captions_as_they_are_read() -> None:
    assert caption(one()) == "a red circle that moves right on a gray background"
    pair = "a red circle that moves up left of a blue cross that stays still on a gradient from white to black"
    assert caption(two()) == pair


def test_every_caption_is_read_back() -> None:
    for scene in [one(), two(), *scenes(5, 200)]:
        read = parse_caption(caption(scene))
        assert caption(read) == caption(scene)
        looks = [[(shape.colour, shape.kind, shape.motion) for shape in each.shapes] for each in (read, scene)]
        assert looks[0] == looks[1]
        assert (read.relation, read.background) == (scene.relation, scene.background)


@pytest.mark.parametrize(
    "text", ["", "a cat", "a red circle that moves right", "a red circle that flies on a gray background"]
)
def test_what_is_no_caption(text: str) -> None:
    with pytest.raises(ValueError, match="no caption of the shapes' grammar"):
        parse_caption(text)
