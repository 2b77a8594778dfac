"""Reads a clip back from its pixels: the background, and every shape's colour, kind, motion and place; no weights.

Blobs of successive frames (`blobs.py`) that lie near one another are a shape. Its kind is that of the drawing of the
same centre and area (`render.coverage`) that overlaps it most, its motion the one nearest to the way of its centre.

Made for what `render.py` draws, and for what models make of it: soft edges, noise, tints, shapes that come and go.
What cannot be read is None, never an error. It does not know what the clip should show: see `adherence.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.blobs import Blob, Point, find_blobs, ground_ends
from benchmarks.shapes.render import coverage
from benchmarks.shapes.scene import BACKGROUNDS, KINDS, MOTIONS, RELATIONS

GROUND_TOLERANCE = 0.3
"""An end of the ground farther than this from all named backgrounds (Euclidean, sRGB of 0..1) is strange."""
SEEN = 0.15
"""A shape counts when it is there in this share of the frames: in two of thirteen, so that one flicker is forgiven."""
STEADY = 0.75
"""A colour or a motion is read when it holds in this share of the frames."""
TRAVEL = 0.41
"""How far a moving shape goes over a clip: the middle of what is drawn."""
JUMP = 0.5
"""A blob farther away than this from a shape's last place, in units of the frame, is another shape."""
OVERLAP = 0.75
"""Least intersection over union with the drawing of a kind; two kinds have at most 0.85 with one another."""
LOOKS = 5
"""In how many frames the kind is looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadShape:
    """One shape as seen; None where the pixels do not say.

    Args:
        colour: a key of `COLOURS`; None when strange or changing.
        kind: one of `KINDS`; None when like none of them.
        motion: a key of `MOTIONS`; None when none of them, or not seen often enough.
        radius: of the disk of its median area, in units of the frame's width.
        path: its centre in every frame, in units of the frame; None where it is not there.
    """

    colour: str | None
    kind: str | None
    motion: str | None
    radius: float
    path: tuple[Point | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """One clip as seen.

    Args:
        background: keys of `BACKGROUNDS` at the top and at the bottom; None where strange.
        shapes: all that are there often enough, the largest first; any number.
        relation: of the first to the second when there are two, a key of `RELATIONS`.
    """

    background: tuple[str | None, str | None]
    shapes: tuple[ReadShape, ...]
    relation: str | None


def read(clip: npt.NDArray[np.floating]) -> Reading:
    """What the clip shows.

    Args:
        clip: sRGB in 0..1, [frames, height, width, 3]; clipped to that, and what is not a number counts as black.

    Raises:
        ValueError: when the array is not a clip.
    """
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(f"expected a clip [frames, height, width, 3], got {list(clip.shape)}")
    pixels = np.clip(np.nan_to_num(clip.astype(np.float32), nan=0.0), 0, 1)
    top, bottom = ground_ends(pixels)
    labels, blobs = find_blobs(pixels)
    tracks = [track for track in link(blobs, len(pixels)) if len(track) >= SEEN * len(pixels)]
    tracks.sort(key=lambda track: -float(np.median([blob.area for blob in track])))
    shapes = tuple(_shape(track, labels) for track in tracks)
    return Reading(
        background=(_nearest_ground(top), _nearest_ground(bottom)),
        shapes=shapes,
        relation=relation_of(*shapes) if len(shapes) == 2 else None,
    )


def relation_of(first: ReadShape, second: ReadShape) -> str | None:
    """Where the first shape lies, seen from the second: the median over the frames that show both, its longer axis."""
    pairs = [(a, b) for a, b in zip(first.path, second.path, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    x, y = np.median([(a[0] - b[0], a[1] - b[1]) for a, b in pairs], axis=0)
    side = (int(np.sign(x)), 0) if abs(x) > abs(y) else (0, int(np.sign(y)))
    return next((name for name, way in RELATIONS.items() if way == side), None)


def link(blobs: Iterable[Blob], frames: int) -> list[list[Blob]]:
    """Blobs of successive frames as shapes: pairs of a shape and a blob are joined from the nearest on.

    Another colour counts as a way of a quarter of the frame: shapes that pass one another keep their colours, and
    one that changes its colour where it is stays one shape.
    """
    tracks: list[list[Blob]] = []
    per_frame: list[list[Blob]] = [[] for _ in range(frames)]
    for blob in blobs:
        per_frame[blob.frame].append(blob)
    for present in per_frame:
        costs = sorted(
            (math.dist(track[-1].centre, blob.centre) + 0.25 * (track[-1].colour != blob.colour), i, j)
            for i, track in enumerate(tracks)
            for j, blob in enumerate(present)
        )
        taken: dict[int, int] = {}
        for cost, i, j in costs:
            if cost < JUMP and i not in taken.values() and j not in taken:
                taken[j] = i
        for j, blob in enumerate(present):
            if j in taken:
                tracks[taken[j]].append(blob)
            else:
                tracks.append([blob])
    return tracks


def _shape(track: Sequence[Blob], labels: npt.NDArray[np.int32]) -> ReadShape:
    frames, _, width = labels.shape
    path: list[Point | None] = [None] * frames
    for blob in track:
        path[blob.frame] = blob.centre
    colour, count = Counter(blob.colour for blob in track).most_common(1)[0]
    return ReadShape(
        colour=colour if count >= STEADY * len(track) else None,
        kind=_kind(track, labels),
        motion=_motion(track, frames),
        radius=math.sqrt(float(np.median([blob.area for blob in track])) / math.pi) / width,
        path=tuple(path),
    )


def _kind(track: Sequence[Blob], labels: npt.NDArray[np.int32]) -> str | None:
    """The kind of the largest mean overlap, over a few frames in which the border cuts as little off as may be."""
    _, height, width = labels.shape
    whole = [blob for blob in track if not blob.cut] or sorted(track, key=lambda blob: -blob.area)[:LOOKS]
    looks = [whole[round(index)] for index in np.linspace(0, len(whole) - 1, min(LOOKS, len(whole)))]
    overlaps = dict.fromkeys(KINDS, 0.0)
    for blob in looks:
        seen = labels[blob.frame] == blob.label
        radius = math.sqrt(blob.area / math.pi) / width
        for kind in KINDS:
            drawn = coverage(kind, blob.centre, radius, (width, height)) > 0.5
            overlaps[kind] += float((seen & drawn).sum() / (seen | drawn).sum()) / len(looks)
    best = max(overlaps, key=lambda kind: overlaps[kind])
    return best if overlaps[best] >= OVERLAP else None


def _motion(track: Sequence[Blob], frames: int) -> str | None:
    """The motion nearest to the way along the straight line (least squares) through the centres."""
    if frames < 2 or len(track) < max(2, STEADY * frames):
        return None
    times = np.asarray([blob.frame for blob in track]) / (frames - 1)
    centres = np.asarray([blob.centre for blob in track])
    slope = (times - times.mean()) @ (centres - centres.mean(0)) / np.sum((times - times.mean()) ** 2)
    aside = centres - centres.mean(0) - np.outer(times - times.mean(), slope)
    ways = {name: math.dist(slope, (TRAVEL * x, TRAVEL * y)) for name, (x, y) in MOTIONS.items()}
    best = min(ways, key=lambda name: ways[name])
    # There and back is no motion that a caption names, nor is aslant, nor twice as fast.
    return best if ways[best] <= TRAVEL / 2 and np.abs(aside).max() < TRAVEL / 4 else None


def _nearest_ground(colour: npt.NDArray[np.float32]) -> str | None:
    ways = {name: math.dist(colour, [channel / 255 for channel in rgb]) for name, rgb in BACKGROUNDS.items()}
    best = min(ways, key=lambda name: ways[name])
    return best if ways[best] < GROUND_TOLERANCE else None
