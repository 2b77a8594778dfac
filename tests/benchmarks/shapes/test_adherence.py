"""Adherence: a clip against captions of which one, some or all attributes are wrong."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from benchmarks.shapes.adherence import adherence, judge_clip
from benchmarks.shapes.judge import Reading, ReadShape, read
from benchmarks.shapes.scene import COLOURS, KINDS, MOTIONS, RELATIONS, Scene, Shape, caption
from tests.support.scenes import film, judge, one, scenes, two


def test_no_two_captions_fit_one_clip() -> None:
    drawn = scenes(20, 60)
    readings = [read(film(scene)) for scene in drawn]
    for (i, reading), (j, scene) in itertools.product(enumerate(readings), enumerate(drawn)):
        if caption(drawn[i]) != caption(scene):
            assert not adherence(reading, scene).all_right, (i, j)


def test_one_wrong_attribute_of_one_shape() -> None:
    reading, shape = read(film(one())), one().shapes[0]
    wrong = [
        *(("colour", dataclasses.replace(shape, colour=name)) for name in COLOURS if name != shape.colour),
        *(("kind", dataclasses.replace(shape, kind=name)) for name in KINDS if name != shape.kind),
        *(("motion", dataclasses.replace(shape, motion=name)) for name in MOTIONS if name != shape.motion),
    ]
    for attribute, other in wrong:
        result = adherence(reading, dataclasses.replace(one(), shapes=(other,)))
        assert not getattr(result.shapes[0], attribute)
        assert result.share == pytest.approx(4 / 5)


def test_order_and_relation() -> None:
    scene, reading = two(), read(film(two()))
    first, second = scene.shapes
    turned = Scene(shapes=(second, first), relation="right of", background=scene.background)
    assert adherence(reading, turned).all_right
    for relation in RELATIONS:
        result = adherence(reading, dataclasses.replace(scene, relation=relation))
        assert result.relation == (relation == "left of")
    result = adherence(reading, dataclasses.replace(turned, relation="left of"))
    assert result.attributes.count(False) == 1
    assert result.relation is False
    # Colours exchanged: the pairing follows them, and kinds, motions and relation are wrong.
    swapped = dataclasses.replace(
        scene, shapes=(dataclasses.replace(first, colour="blue"), dataclasses.replace(second, colour="red"))
    )
    result = adherence(reading, swapped)
    assert [shape.colour for shape in result.shapes] == [True, True]
    assert result.attributes.count(False) == 5


def test_no_shape_at_all() -> None:
    for scene, share in ((one(), 1 / 5), (two(), 1 / 9)):
        empty = film(dataclasses.replace(scene, shapes=(), relation=None))
        assert read(empty).shapes == ()
        result = judge(empty, scene)
        assert result.share == pytest.approx(share)
        assert result.background


def test_a_missing_shape() -> None:
    scene = two()
    result = judge(film(dataclasses.replace(scene, shapes=scene.shapes[1:])), scene)
    assert not result.number
    assert result.relation is False
    assert result.attributes.count(False) == 5
    assert [shape.colour for shape in result.shapes] == [False, True]


def with_extra(scene: Scene, colour: str) -> Scene:
    """The scene and another shape in its upper left corner."""
    extra = Shape(colour=colour, kind="square", motion="stays still", radius=0.09, start=(0.13, 0.13), travel=0)
    return dataclasses.replace(scene, shapes=(*scene.shapes, extra))


@pytest.mark.parametrize("scene", [one(), one(motion="moves down"), two()])
def test_a_further_shape(scene: Scene) -> None:
    for colour in ("green", scene.shapes[0].colour):
        result = judge(film(with_extra(scene, colour)), scene)
        assert result.attributes.count(False) == 1
        assert not result.number


def test_a_named_shape_is_paired_with_the_best_of_many() -> None:
    def seen(colour: str | None, x: float) -> ReadShape:
        return ReadShape(colour=colour, kind="circle", motion="stays still", radius=0.1, path=((x, 0.5),))

    shapes = (seen("green", 0.9), seen("blue", 0.8), seen(None, 0.5), seen("red", 0.2))
    result = adherence(Reading(background=("white", "black"), shapes=shapes, relation=None), two())
    assert not result.number
    assert result.relation
    assert [shape.colour for shape in result.shapes] == [True, True]


def test_the_judge_for_a_comparison_reads_bytes_and_a_caption() -> None:
    scene = two()
    film_of = np.rint(255 * film(scene)).astype(np.uint8)
    assert judge_clip(film_of, caption(scene)) == {"attributes right": 1, "all right": 1}
    other = dataclasses.replace(scene, background=("black", "black"))
    assert judge_clip(film_of, caption(other)) == {"attributes right": pytest.approx(8 / 9), "all right": 0}
