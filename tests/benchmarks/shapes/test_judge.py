"""The judge of the shapes: it reads drawn clips right, rough ones too, and catches wrong ones."""

from __future__ import annotations

import dataclasses
import math
from collections import deque

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.shapes.adherence import adherence
from benchmarks.shapes.blobs import find_blobs
from benchmarks.shapes.judge import ReadShape, read, relation_of
from benchmarks.shapes.render import centre
from benchmarks.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, caption
from flowblending.runtime.measures.similarity import psnr
from tests.support.scenes import degrade, film, judge, one, scenes, two

SIZES = [(13, 64, 64), (9, 48, 48)]
"""(frames, height, width) of the clips that models are trained on."""


@pytest.mark.parametrize("size", SIZES)
def test_every_drawn_clip_is_read_right(size: tuple[int, int, int]) -> None:
    """Of 5000 clips of each size all were read right; here are 250."""
    drawn = [*scenes(10, 170), *scenes(11, 80, held_out=True)]
    wrong = [caption(scene) for scene in drawn if not judge(film(scene, size), scene).all_right]
    assert not wrong


@pytest.mark.parametrize("size", SIZES)
def test_blur_and_noise_change_nothing(size: tuple[int, int, int]) -> None:
    drawn = [*scenes(12, 80), *scenes(13, 40, held_out=True)]
    wrong, ratios = [], []
    for seed, scene in enumerate(drawn):
        clip = film(scene, size)
        rough = degrade(clip, seed)
        ratios.append(psnr(clip, rough))
        if not judge(rough, scene).all_right:
            wrong.append(caption(scene))
    assert 29 < np.mean(ratios) < 31
    assert len(wrong) <= 0.01 * len(drawn), wrong


@pytest.mark.parametrize("size", [(5, 64, 96), (9, 96, 64), (2, 48, 48), (3, 128, 128)])
def test_other_sizes(size: tuple[int, int, int]) -> None:
    assert all(judge(film(scene, size), scene).all_right for scene in scenes(14, 20))


def test_places_and_radii() -> None:
    scene = two()
    seen = read(film(scene))
    assert seen.relation in ("left of", "right of")
    for shape in seen.shapes:
        named = next(named for named in scene.shapes if named.colour == shape.colour)
        assert shape.radius == pytest.approx(named.radius, rel=0.02)
        for index, place in enumerate(shape.path):
            assert place is not None
            assert math.dist(place, centre(named, index / 12)) < 0.25 / 64


def test_a_tint_and_a_slower_shape_are_forgiven() -> None:
    for scene in scenes(15, 20):
        assert judge(np.clip(0.93 * film(scene) + [0.05, 0.0, 0.02], 0, 1), scene).all_right
        slow = [dataclasses.replace(s, travel=0.27) for s in scene.shapes]
        assert judge(film(dataclasses.replace(scene, shapes=tuple(slow))), scene).all_right


@pytest.mark.parametrize("top", BACKGROUNDS)
@pytest.mark.parametrize("bottom", BACKGROUNDS)
def test_the_background(top: str, bottom: str) -> None:
    clip = film(dataclasses.replace(one(), background=(top, bottom)))
    assert read(clip).background == (top, bottom)
    assert judge(clip, one()).background == ((top, bottom) == ("gray", "gray"))


def test_a_background_of_another_colour() -> None:
    clip = film(one(background="white"))
    clip[..., 2] *= 0.3
    assert read(clip).background == (None, None)


@pytest.mark.parametrize("motion", [name for name in MOTIONS if name != "stays still"])
def test_a_still_clip_and_one_that_runs_backwards(motion: str) -> None:
    scene = one(motion=motion)
    clip = film(scene)
    for wrong, seen in ((clip[:1].repeat(13, axis=0), "stays still"), (clip[::-1], None)):
        result = judge(wrong, scene)
        assert result.attributes.count(False) == 1
        assert not result.shapes[0].motion
        assert seen in (None, read(wrong).shapes[0].motion)
    there_and_back = np.concatenate([clip[::2], clip[-3::-2]])
    assert read(there_and_back).shapes[0].motion is None


def test_a_further_shape_of_a_strange_colour() -> None:
    clip = film(one(background="white"))
    clip[:, 4:12, 4:12] = 0.5
    reading = read(clip)
    assert [shape.colour for shape in reading.shapes] == ["red", None]
    assert not adherence(reading, one(background="white")).number


def test_specks_are_ignored() -> None:
    clip = film(one())
    clip[:, 3:8, 3:8] = np.asarray(COLOURS["blue"]) / 255
    assert judge(clip, one()).all_right


@pytest.mark.parametrize("colour", COLOURS)
def test_a_turned_hue(colour: str) -> None:
    scene = one(colour)
    for channels in ([1, 2, 0], [2, 0, 1]):
        result = judge(film(scene)[..., channels], scene)
        assert not result.shapes[0].colour
        assert result.attributes.count(False) == 1


def test_a_mixed_colour_is_none() -> None:
    scene = one("red")
    yellow = film(one("yellow"))
    assert read((film(scene) + yellow) / 2).shapes[0].colour is None


def test_two_colours_in_one_shape() -> None:
    clip = film(one("red", "square", "stays still"))
    clip[:, :32] = film(one("blue", "square", "stays still"))[:, :32]
    assert [shape.colour for shape in read(clip).shapes] in (["red", "blue"], ["blue", "red"])


def test_a_triangle_upside_down() -> None:
    scene = one("blue", "triangle", "stays still")
    assert read(film(scene)[:, ::-1]).shapes[0].kind is None


def test_a_shape_that_changes_its_colour() -> None:
    clip = film(one("red"))
    clip[7:] = film(one("blue"))[7:]
    result = judge(clip, one("red"))
    assert not result.shapes[0].colour
    assert result.attributes.count(False) == 1


def test_a_shape_that_is_away() -> None:
    scene = one("cyan", "square", "moves left")
    ground = film(dataclasses.replace(scene, shapes=()))
    clip = film(scene)
    clip[5] = ground[5]
    reading = read(clip)
    assert adherence(reading, scene).all_right
    assert reading.shapes[0].path[5] is None
    clip[4:9] = ground[4:9]
    assert not judge(clip, scene).shapes[0].motion
    clip[1:] = ground[1:]
    assert read(clip).shapes == ()


def test_aslant_is_no_motion() -> None:
    scene = one()
    clip = film(scene)
    for index in range(13):
        clip[index] = np.roll(clip[index], round(0.4 * 64 * (index / 12 - 0.5)), axis=0)
    assert read(clip).shapes[0].motion is None


@pytest.mark.parametrize(
    "clip",
    [
        np.random.default_rng(0).random((5, 32, 32, 3)),
        np.random.default_rng(1).random((1, 1, 1, 3)),
        np.random.default_rng(2).random((3, 7, 1, 3)),
        np.random.default_rng(3).random((3, 1, 7, 3)),
        np.random.default_rng(4).random((2, 2, 2, 3)),
        np.full((3, 16, 16, 3), np.nan),
        np.full((3, 16, 16, 3), np.inf, np.float32),
        np.zeros((1, 64, 64, 3), np.float16),
        np.broadcast_to(np.asarray(COLOURS["red"]) / 255, (3, 32, 32, 3)),
    ],
    ids=["noise", "pixel", "column", "row", "tiny", "nan", "inf", "black", "red"],
)
def test_every_array_is_read(clip: npt.NDArray[np.floating]) -> None:
    reading = read(clip)
    assert reading.background == ("black", "black") or not np.isnan(clip).any()
    assert not any(adherence(reading, scene).all_right for scene in scenes(30, 20))


def test_one_frame_has_no_motion() -> None:
    reading = read(film(one())[:1])
    assert [(shape.colour, shape.kind, shape.motion) for shape in reading.shapes] == [("red", "circle", None)]


@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 4, 4, 4), (0, 4, 4, 3)])
def test_what_is_no_clip(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a clip"):
        read(np.zeros(shape))


def test_shapes_never_seen_together_have_no_relation() -> None:
    def seen(*path: tuple[float, float] | None) -> ReadShape:
        return ReadShape(colour="red", kind="circle", motion=None, radius=0.1, path=path)

    assert relation_of(seen((0.2, 0.5), None), seen(None, (0.8, 0.5))) is None
    assert relation_of(seen((0.2, 0.5)), seen((0.2, 0.5))) is None
    assert relation_of(seen((0.2, 0.5), None), seen((0.8, 0.5), None)) == "left of"


def test_blobs_are_the_components_that_a_flood_finds() -> None:
    generator = np.random.default_rng(31)
    # Smoothed noise, cut at a level: blobs with holes, arms and steps.
    field = generator.random((4, 40, 56))
    for axis in (1, 2):
        for _ in range(3):
            field = (np.roll(field, 1, axis) + field + np.roll(field, -1, axis)) / 3
    inside = field > np.quantile(field, 0.6)
    clip = np.where(inside[..., None], np.asarray(COLOURS["red"]) / 255, 0.05).astype(np.float32)
    _, blobs = find_blobs(clip)
    expected = sorted(area for area in _flood(inside) if area >= 0.012 * 56 * 56)
    assert len(expected) > 4
    assert sorted(blob.area for blob in blobs) == expected


def _flood(inside: npt.NDArray[np.bool_]) -> list[int]:
    """Areas of the components, four neighbours, frame by frame."""
    left = {tuple(place) for place in np.argwhere(inside).tolist()}
    areas = []
    while left:
        queue, area = deque([left.pop()]), 0
        while queue:
            frame, y, x = queue.popleft()
            area += 1
            for place in ((frame, y + 1, x), (frame, y - 1, x), (frame, y, x + 1), (frame, y, x - 1)):
                if place in left:
                    left.remove(place)
                    queue.append(place)
        areas.append(area)
    return areas
