"""From pixels to blobs: the ground of a clip, and what touches in one colour in front of it.

1. The ground is a vertical gradient through the medians of the rows' unsaturated pixels.
2. A pixel far from it belongs to the palette's colour on whose line from the ground to that colour it lies, when it
   has come more than half way, so that soft edges keep their place; a pixel on no such line is of a strange colour.
3. Pixels of one colour that touch are a blob.

Distances between colours are Euclidean, in sRGB of 0..1. In the palette, shapes are at least 0.40 from every ground
and 0.47 from one another, and grounds 0.71: tints of a few hundredths and the noise of a decoder change nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from benchmarks.shapes.scene import COLOURS

Clip = npt.NDArray[np.float32]
Point = tuple[float, float]

FAR = 0.2
"""A pixel nearer than this to the ground belongs to it."""
COLOUR_TOLERANCE = 0.27
"""A colour farther than this from the palette's is strange."""
LINE_TOLERANCE = 0.2
"""A pixel farther than this from all lines between the ground and the clip's colours is of a strange colour."""
UNSATURATED = 0.25
"""Largest difference of two channels in the ground; 0.05 in the palette, while shapes have 0.53 and more."""
FILLED = 0.05
"""Least share of a row's pixels that must be unsaturated for its median to count."""
SPECK = 0.012
"""A blob of less area, in squares of the frame's width, is ignored; drawn shapes have 0.045 and more."""

_PALETTE = np.asarray(list(COLOURS.values()), np.float32) / 255
_NAMES = (*COLOURS, None)
_STRANGE = len(COLOURS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blob:
    """Touching pixels of one colour in one frame.

    Args:
        colour: a key of `COLOURS`, or None for a strange one.
        frame: index of the frame.
        label: what marks its pixels in the frame's plane of labels.
        area: in pixels.
        centre: (x, y) in units of the frame.
        cut: whether it touches the frame's border.
    """

    colour: str | None
    frame: int
    label: int
    area: int
    centre: Point
    cut: bool


def ground_ends(clip: Clip) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colours of the ground at the upper and the lower edge of the frame, [3] each.

    Every row's median over all frames, and through these the line whose slope is the median of the slopes between
    rows half a frame apart: up to a quarter of the rows may be wrong.
    """
    height = clip.shape[1]
    rows = clip.transpose(1, 3, 0, 2).reshape(height, 3, -1)
    gray = rows.max(1) - rows.min(1) < UNSATURATED
    if np.mean(gray.mean(1) >= FILLED) < 0.5:
        gray = np.ones_like(gray)
    kept = gray.mean(1) >= FILLED
    # The saturated ones are sorted to the end, so that the median is in the middle of the others.
    ordered = np.sort(np.where(gray[:, None], rows, np.inf)[kept], axis=-1)
    values = ordered[np.arange(len(ordered)), :, gray.sum(1)[kept] // 2]
    down = ((np.arange(height) + 0.5) / height)[kept, None]
    half = len(down) // 2
    slope = np.median((values[half:] - values[:-half]) / (down[half:] - down[:-half]), axis=0) if half else np.zeros(3)
    start = np.median(values - slope * down, axis=0)
    return start.astype(np.float32), (start + slope).astype(np.float32)


def find_blobs(clip: Clip) -> tuple[npt.NDArray[np.int32], list[Blob]]:
    """All blobs that are no specks, in the order of the frames.

    Args:
        clip: sRGB in 0..1, [F, H, W, 3].

    Returns:
        Every pixel's label, [F, H, W], -1 for the ground; and the blobs.
    """
    top, bottom = ground_ends(clip)
    down = ((np.arange(clip.shape[1], dtype=np.float32) + 0.5) / clip.shape[1])[:, None]
    planes = colour_planes(clip, top + (bottom - top) * down)
    frames, height, width = planes.shape
    # A column of ground after every row ends its last run.
    flat = np.pad(planes, ((0, 0), (0, 0), (0, 1)), constant_values=-1).ravel()
    pitch = width + 1
    starts, ends = _runs(flat)
    rows, columns, lengths = starts // pitch, starts % pitch, ends - starts
    roots = _join(flat[starts], starts, ends, pitch=pitch, height=height)
    labels = np.full(flat.shape, -1, np.int32)
    labels[flat >= 0] = np.repeat(roots, lengths)
    areas = np.bincount(roots, lengths)
    across = np.bincount(roots, lengths * (columns + lengths / 2))
    along = np.bincount(roots, lengths * (rows % height + 0.5))
    border = (columns == 0) | (columns + lengths == width) | (rows % height == 0) | ((rows + 1) % height == 0)
    cut = np.bincount(roots, border) > 0
    blobs = [
        Blob(
            colour=_NAMES[flat[starts[label]]],
            frame=int(rows[label] // height),
            label=label,
            area=int(areas[label]),
            centre=(float(across[label] / areas[label] / width), float(along[label] / areas[label] / height)),
            cut=bool(cut[label]),
        )
        for label in np.flatnonzero(areas >= SPECK * width * width).tolist()
        if areas[label]
    ]
    return labels.reshape(frames, height, pitch)[..., :width], blobs


def colour_planes(clip: Clip, ground: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Each pixel's index into the palette, its length for a strange colour, -1 for the ground; [F, H, W].

    Args:
        clip: [F, H, W, 3].
        ground: every row's colour, [H, 3].
    """
    frames, _, width, _ = clip.shape
    offset = clip - ground[:, None]
    far = np.einsum("fhwc,fhwc->fhw", offset, offset) > FAR**2
    colours, offsets = clip[far], offset[far]
    distances = np.linalg.norm(colours[:, None] - _PALETTE, axis=-1)
    nearest = np.where(distances.min(-1) < COLOUR_TOLERANCE, distances.argmin(-1), _STRANGE)
    error = np.full(len(colours), LINE_TOLERANCE, np.float32)
    names = np.full(len(colours), _STRANGE, np.int8)
    for index in range(_STRANGE):
        members = nearest == index
        # Less than a speck in every tenth frame is no colour of this clip, but a mixture at an edge.
        if members.sum() < max(1, 0.1 * frames * SPECK * width * width):
            continue
        # The colour as it is in this clip: a tint would otherwise move the point half way to it.
        line = np.median(colours[members], axis=0) - (colours - offsets)
        way = np.clip(np.sum(offsets * line, -1) / np.maximum(np.sum(line * line, -1), 1e-6), 0, 1)
        aside = np.linalg.norm(offsets - way[:, None] * line, axis=-1)
        names = np.where(aside < error, np.where(way > 0.5, index, -1), names).astype(np.int8)
        error = np.minimum(aside, error)
    planes = np.full(clip.shape[:3], -1, np.int8)
    planes[far] = names
    return planes


def _runs(flat: npt.NDArray[np.int8]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where runs of one colour start, and where they have ended; both ascend."""
    edges = np.flatnonzero(np.diff(flat, prepend=-1))
    return edges[flat[edges] >= 0], np.append(edges, len(flat))[1:][flat[edges] >= 0]


def _join(
    colours: npt.NDArray[np.int8],
    starts: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    *,
    pitch: int,
    height: int,
) -> npt.NDArray[np.int32]:
    """For every run the index of one that stands for its blob (union-find), [runs].

    Args:
        colours: of the runs, [runs].
        starts: in the flattened planes, [runs].
        ends: likewise.
        pitch: how many pixels a row of the flattened planes has.
        height: how many rows a plane has.
    """
    parents = list(range(len(starts)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    # Runs of the next row that share a column: they end after this one starts, and start before it ends.
    lows = np.searchsorted(ends, starts + pitch, side="right")
    highs = np.searchsorted(starts, ends + pitch, side="left")
    inside = (starts // pitch + 1) % height > 0
    for run in np.flatnonzero((lows < highs) & inside).tolist():
        for below in range(lows[run], highs[run]):
            if colours[run] == colours[below]:
                parents[root(below)] = root(run)
    return np.asarray([root(run) for run in range(len(starts))], np.int32)
