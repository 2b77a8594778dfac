"""What a clip shows, and how a caption says it: one or two coloured shapes that move over a background.

A scene is plain data; `render.py` draws it, `judge.py` reads it back from pixels. The grammar is small enough
that a tiny text encoder can learn it, and large enough (about 110 thousand captions) that it cannot be learned
by heart. A few (colour, kind) combinations never occur in training, so that generalisation can be measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

Colour = tuple[int, int, int]

COLOURS: Mapping[str, Colour] = {
    "red": (222, 44, 48),
    "green": (40, 176, 70),
    "blue": (44, 86, 232),
    "yellow": (248, 214, 40),
    "purple": (168, 60, 204),
    "cyan": (50, 206, 222),
}
"""sRGB of the shapes: saturated, and far from one another."""

BACKGROUNDS: Mapping[str, Colour] = {"black": (16, 18, 28), "gray": (124, 124, 130), "white": (236, 232, 224)}
"""sRGB of the backgrounds: hardly saturated, so that no shape drowns in one."""

KINDS = ("circle", "square", "triangle", "cross")
MOTIONS: Mapping[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "stays still": (0, 0),
}
"""Caption -> direction (x to the right, y down)."""

RELATIONS: Mapping[str, tuple[int, int]] = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
"""Caption -> where the first shape lies, seen from the second."""

HELD_OUT = frozenset({("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square")})
"""(colour, kind) combinations that training never shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape, in units of the frame's width and height.

    Args:
        colour: a key of `COLOURS`.
        kind: one of `KINDS`.
        motion: a key of `MOTIONS`.
        radius: of the disk whose area the shape has.
        start: centre (x, y) in the first frame.
        travel: how far the centre moves over the whole clip.
    """

    colour: str
    kind: str
    motion: str
    radius: float
    start: tuple[float, float]
    travel: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip.

    Args:
        shapes: one, or two of which the first is named first.
        relation: a key of `RELATIONS` when there are two shapes, else None.
        background: colours (keys of `BACKGROUNDS`) at the top and at the bottom; equal for a plain one.
    """

    shapes: tuple[Shape, ...]
    relation: str | None
    background: tuple[str, str]


def caption(scene: Scene) -> str:
    """The scene in words; everything that `judge.py` reads is said, sizes and places are not."""
    top, bottom = scene.background
    ground = f"a {top} background" if top == bottom else f"a gradient from {top} to {bottom}"
    first, *others = (f"a {shape.colour} {shape.kind} that {shape.motion}" for shape in scene.shapes)
    return f"{first} {scene.relation} {others[0]} on {ground}" if others else f"{first} on {ground}"


def motion_caption(scene: Scene) -> str:
    """What moves where, and nothing of how anything looks: for videos that begin with an image, which shows it."""
    first, *others = (f"a shape that {shape.motion}" for shape in scene.shapes)
    return f"{first} {scene.relation} {others[0]}" if others else first


def parse_caption(text: str) -> Scene:
    """The scene that a caption asks for; what no caption says (sizes and places) is the middle of what is drawn.

    Raises:
        ValueError: the text is none of this grammar's captions.
    """

    def one_of(names: Mapping[str, object] | tuple[str, ...]) -> str:
        return f"({'|'.join(names)})"

    shape = f"a {one_of(COLOURS)} {one_of(KINDS)} that {one_of(MOTIONS)}"
    ground = f"a (?:{one_of(BACKGROUNDS)} background|gradient from {one_of(BACKGROUNDS)} to {one_of(BACKGROUNDS)})"
    match = re.fullmatch(f"{shape}(?: {one_of(RELATIONS)} {shape})? on {ground}", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no caption of the shapes' grammar")
    looks, relation, plain = (match.group(1, 2, 3), match.group(5, 6, 7)), match[4], match[8]
    return Scene(
        shapes=tuple(
            Shape(colour=colour, kind=kind, motion=motion, radius=0.15, start=(0.5, 0.5), travel=0.41)
            for colour, kind, motion in looks[: 1 if relation is None else 2]
        ),
        relation=relation,
        background=(plain, plain) if plain else (match[9], match[10]),
    )


def draw(generator: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A random scene: one or two shapes with equal chance.

    Args:
        generator: all randomness comes from here.
        held_out: True for scenes whose first shape is a held-out combination, False for scenes without any.
    """
    two = generator.random() < 0.5
    looks = [_look(generator, held_out=held_out)]
    while len(looks) < 1 + two:
        look = _look(generator, held_out=False)
        # Two shapes of one colour would make captions of which several are true.
        if look[0] != looks[0][0]:
            looks.append(look)
    relation = str(generator.choice(list(RELATIONS))) if two else None
    names = list(BACKGROUNDS)
    top = str(generator.choice(names))
    plain = generator.random() < 0.5
    bottom = top if plain else str(generator.choice([name for name in names if name != top]))
    shapes = tuple(_place(generator, look, relation, second=index == 1) for index, look in enumerate(looks))
    return Scene(shapes=shapes, relation=relation, background=(top, bottom))


def _look(generator: np.random.Generator, *, held_out: bool) -> tuple[str, str]:
    looks = [(colour, kind) for colour in COLOURS for kind in KINDS]
    allowed = [look for look in looks if (look in HELD_OUT) == held_out]
    return allowed[int(generator.integers(len(allowed)))]


def _place(generator: np.random.Generator, look: tuple[str, str], relation: str | None, *, second: bool) -> Shape:
    """A radius, a motion and a path inside the frame; a pair moves across its relation, which so holds all the time."""
    side = RELATIONS[relation] if relation else (0, 0)
    motion = str(generator.choice([name for name, way in MOTIONS.items() if not _along(way, side)]))
    radius = generator.uniform(0.15, 0.19) if relation is None else generator.uniform(0.12, 0.145)
    travel = generator.uniform(0.36, 0.46)
    start = []
    for way, lies in zip(MOTIONS[motion], side, strict=True):
        if lies:
            near = generator.uniform(0.21, 0.27)
            start.append(near if (lies < 0) != second else 1 - near)
        elif way:
            start.append(0.5 - way * travel / 2 + generator.uniform(-0.06, 0.06))
        else:
            start.append(generator.uniform(0.3, 0.7))
    return Shape(colour=look[0], kind=look[1], motion=motion, radius=radius, start=(start[0], start[1]), travel=travel)


def _along(way: tuple[int, int], side: tuple[int, int]) -> bool:
    return any(a and b for a, b in zip(way, side, strict=True))
