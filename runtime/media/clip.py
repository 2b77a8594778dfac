"""Frames of an image or a video at a video's size, and the numbers that encoders take of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import CROP
from flowblending.runtime.media.file_checks import check_picture_size
from flowblending.runtime.media.fit import Fit


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Frames that have been read.

    Attributes:
        name: of the file or the folder, as messages tell it.
        frames: uint8 [F, H, W, 3], or [F, H, W] of a grey one, at the size that was asked for.
        width, height: of the source, in pixels, upright.
        frame_rate: frames per second at which they follow one another; None for stills and folders.
        still: whether the source is one picture, and no video that has a single frame.
        more: whether the source goes on after these frames.
        notes: what a user should know of how it was read, each a sentence.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    width: int
    height: int
    frame_rate: float | None = None
    still: bool = False
    more: bool = False
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.frames)


def pixels(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What VAE encoders take: bit for bit that of ``VideoProcessor.preprocess_video`` of diffusers.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        float32 [1, 3, F, H, W] from -1 to 1.
    """
    scaled = np.float32(2) * (frames.astype(np.float32) / np.float32(255)) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(3, 0, 1, 2)[None])


def mask_values(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What a mask says of every pixel, from 0 (black) to 1 (white).

    Args:
        frames: uint8 [F, H, W], of a grey clip.

    Returns:
        float32 [1, 1, F, H, W]. As WanVACEPipeline has it: to -1..1 and back.
    """
    scaled = np.float32(2) * (frames.astype(np.float32) / np.float32(255)) - np.float32(1)
    values: npt.NDArray[np.float32] = np.clip((scaled + np.float32(1)) / np.float32(2), 0, 1)
    return values[None, None]


def clip_of_arrays(
    frames: npt.NDArray[np.generic], size: tuple[int, int], fit: str = CROP, *, name: str = "image"
) -> Clip:
    """A clip of frames that a program has in memory.

    Args:
        frames: uint8 [H, W, 3] of an image, or [F, H, W, 3].
        size: width and height that are wanted.
        fit: of `flowblending.contracts.conditions.FITS`.
        name: of the argument, for messages.

    Raises:
        UsageError: an array of another kind, without frames, or of a size that is not taken.
    """
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise UsageError(
            f"{name} is {array.dtype} {list(array.shape)}, but uint8 [height, width, 3] or "
            "[frames, height, width, 3] was expected; give such an array, or a path."
        )
    still = array.ndim == 3
    whole = array[None] if still else array
    if not len(whole):
        raise UsageError(f"{name} has no frames, but at least one was expected; give a video that has some.")
    height, width = whole.shape[1:3]
    check_picture_size(name, width, height)
    how = Fit(name=name, source=(width, height), target=size, how=fit)
    how.check()
    return Clip(
        name=name,
        frames=np.stack([how.apply(each) for each in whole]),
        width=width,
        height=height,
        still=still,
        notes=tuple(how.notes()),
    )


def check_mask(mask: Clip, of: Clip) -> Clip:
    """A mask for every frame of what it belongs to; one picture is taken for all of them.

    Raises:
        UsageError: it has another size, or another number of frames.
    """
    if (mask.width, mask.height) != (of.width, of.height):
        raise UsageError(
            f"The mask {mask.name} is {mask.width}x{mask.height}, but {of.name}, which it belongs to, is "
            f"{of.width}x{of.height}; give a mask of the same size."
        )
    if mask.still and mask.count == 1:
        return Clip(
            name=mask.name,
            frames=np.repeat(mask.frames, of.count, axis=0),
            width=mask.width,
            height=mask.height,
            notes=mask.notes,
        )
    if (mask.count, mask.more) != (of.count, of.more):
        raise UsageError(
            f"The mask {mask.name} has {_frames(mask)}, but {of.name}, which it belongs to, has {_frames(of)}; give a "
            "mask with as many, or one image for all of them."
        )
    return mask


def _frames(clip: Clip) -> str:
    return f"{'more than ' if clip.more else ''}{clip.count} {'frame' if clip.count == 1 else 'frames'}"
