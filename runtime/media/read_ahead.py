"""Pictures leave the device while it makes the next ones: two places on the host are read into in turns.

The device is given the work of a part before the host waits for the part before it, so that it never waits for the
host, whatever the host does with what it has got.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.pictures import HEADER
from flowblending.runtime.devices.protocol import Device, Readback
from flowblending.runtime.refusals import non_finite_pixel

Frames = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some frames of a video, all of them finite.

    Attributes:
        images: uint8 [f, H, W, 3].
        floats: float32 [3, f, H, W] in about [-1, 1], if they were asked for.
    """

    images: Images
    floats: Frames | None = None

    @property
    def frames(self) -> Frames:
        """The float32 frames, which have to have been asked for."""
        assert self.floats is not None, "float32 frames were not asked for"
        return self.floats


@dataclass(frozen=True, kw_only=True)
class Part:
    """A chunk that the device has been told to make.

    Attributes:
        pictures: uint8 of one dimension, see `Device.pictures`.
        header: whether the word that tells of values that are not finite comes before them.
        size: height and width.
        first: number of the first frame in the video, from 0 on.
        precision: of the decoder.
        frames: float32 [1, 3, f, H, W], if they are asked for.
    """

    pictures: Tensor
    header: bool
    size: tuple[int, int]
    first: int
    precision: Precision
    frames: Tensor | None = None

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What is read of it."""
        return [self.pictures] if self.frames is None else [self.pictures, self.frames]


def read_ahead(device: Device, parts: Iterable[Part], size: int) -> Generator[Chunk, None, None]:
    """The chunks that parts become, in order. On a GPU one more part is under way than has been told of.

    Args:
        parts: each has been enqueued when it comes.
        size: bytes of the largest part's tensors.

    Raises:
        FlowBlendingError: a value is not finite.
    """
    places = (device.readback(size), device.readback(size))
    waiting: deque[tuple[Part, Readback]] = deque()
    try:
        for number, part in enumerate(parts):
            place = places[number % 2]
            place.begin(part.tensors)
            waiting.append((part, place))
            while waiting and (len(waiting) == len(places) or waiting[0][1].reached()):
                yield _taken(*waiting.popleft())
        while waiting:
            yield _taken(*waiting.popleft())
    finally:
        for _, place in waiting:  # pinned memory may not go before the copies into it
            place.take()


def _taken(part: Part, place: Readback) -> Chunk:
    pictures, *rest = place.take()
    if part.header:
        if pictures[:HEADER].any():
            raise FlowBlendingError(non_finite_pixel(part.precision, frame=part.first + 1))
        pictures = pictures[HEADER:]
    images = pictures.reshape(-1, *part.size, 3)
    if part.frames is None:
        return Chunk(images=images)
    return Chunk(images=images, floats=rest[0].view(np.float32).reshape(part.frames.shape[1:]))
