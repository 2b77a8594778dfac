"""Compares what a clip shows (`judge.read`) with what its caption says: which of the caption's attributes are right."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.judge import Reading, ReadShape, read, relation_of
from benchmarks.shapes.scene import Scene, Shape, parse_caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeAdherence:
    """Which attributes of one named shape are right; none of a shape that is missing."""

    colour: bool
    kind: bool
    motion: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adherence:
    """Which of a caption's attributes a clip shows.

    Args:
        number: whether there are as many shapes as named, neither fewer nor more.
        background: whether top and bottom are right.
        relation: whether the named order holds; None when a single shape is named.
        shapes: one for each named shape, in the caption's order.
    """

    number: bool
    background: bool
    relation: bool | None
    shapes: tuple[ShapeAdherence, ...]

    @property
    def attributes(self) -> tuple[bool, ...]:
        """All of them: five for one named shape, nine for two."""
        single = [self.number, self.background, *([] if self.relation is None else [self.relation])]
        return (*single, *(right for shape in self.shapes for right in (shape.colour, shape.kind, shape.motion)))

    @property
    def share(self) -> float:
        """The share of the attributes that are right, 0..1."""
        return sum(self.attributes) / len(self.attributes)

    @property
    def all_right(self) -> bool:
        """Whether the clip shows all that its caption says, and no further shape."""
        return all(self.attributes)


def judge_clip(frames: npt.NDArray[np.uint8], prompt: str) -> dict[str, float]:
    """``fb-compare --judge benchmarks.shapes.adherence:judge_clip``: what a video shows of its caption.

    Args:
        frames: uint8 [F, H, W, 3].
        prompt: the caption.

    Raises:
        ValueError: the prompt is none of the shapes' captions.
    """
    verdict = adherence(read(frames / np.float32(255)), parse_caption(prompt))
    return {"attributes right": verdict.share, "all right": float(verdict.all_right)}


def adherence(reading: Reading, scene: Scene) -> Adherence:
    """Compare a reading with the scene that was asked for.

    Named and read shapes are paired so that most attributes are right; a colour outweighs kind and motion together,
    since it is by colours that two shapes of one caption always differ. The relation is then that of the named order.
    """
    # Padded so that a named shape may also be paired with nothing.
    candidates = [*reading.shapes, *[None] * len(scene.shapes)]
    pairing = max(
        itertools.permutations(candidates, len(scene.shapes)),
        key=lambda chosen: sum(_weight(seen, named) for seen, named in zip(chosen, scene.shapes, strict=True)),
    )
    relation = None
    if scene.relation is not None:
        first, second = pairing
        relation = first is not None and second is not None and relation_of(first, second) == scene.relation
    return Adherence(
        number=len(reading.shapes) == len(scene.shapes),
        background=reading.background == scene.background,
        relation=relation,
        shapes=tuple(_compare(seen, named) for seen, named in zip(pairing, scene.shapes, strict=True)),
    )


def _compare(seen: ReadShape | None, named: Shape) -> ShapeAdherence:
    if seen is None:
        return ShapeAdherence(colour=False, kind=False, motion=False)
    return ShapeAdherence(
        colour=seen.colour == named.colour, kind=seen.kind == named.kind, motion=seen.motion == named.motion
    )


def _weight(seen: ReadShape | None, named: Shape) -> float:
    if seen is None:
        return 0
    right = _compare(seen, named)
    # A shape that fits in nothing is still nearer than none: the relation can hold.
    return 0.5 + 3 * right.colour + right.kind + right.motion
