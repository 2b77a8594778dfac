"""Pictures brought to a video's size: cropped, letterboxed, or stretched as diffusers does, with Pillow's Lanczos.

What the pipelines of diffusers do: all of Wan's, SkyReels-V2's and LTX's stretch (``resize_mode="default"`` of
``VaeImageProcessor``), without a word; WanVACEPipeline makes the video smaller in its own shape, and letterboxes
reference images on white. Here a picture keeps its shape unless stretching is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.conditions import CROP, LETTERBOX, STRETCH
from flowblending.runtime.media.file_checks import MOST_PIXELS

_NOTED: Final = 0.01
"""Share of a picture, or of its shape, below which nothing is said of it: the rounding of sizes to whole cells."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How pictures of one size come to another.

    Attributes:
        name: of the file, for messages.
        source: width and height, in pixels.
        target: likewise.
        how: of `flowblending.contracts.conditions.FITS`.
    """

    name: str
    source: tuple[int, int]
    target: tuple[int, int]
    how: str

    def check(self) -> None:
        """Refuse what would take more memory than a picture may.

        Raises:
            UsageError: cropping would enlarge the picture beyond all measure first, since its shape is another one.
        """
        width, height = self._inner
        if width * height > MOST_PIXELS:
            raise UsageError(
                f"{self.name} is {self.source[0]}x{self.source[1]} pixels, of which cropping to "
                f"{self.target[0]}x{self.target[1]} would leave {self._kept:.2%}; give --fit letterbox, or a picture "
                "that is nearer to this shape."
            )

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A picture at the target's size.

        ``crop`` and ``stretch`` equal, bit for bit, ``VaeImageProcessor.resize`` of diffusers with ``resize_mode``
        "crop" and "default".

        Args:
            picture: uint8 [H, W, 3] or [H, W] of the source's size.

        Returns:
            The same with the target's height and width; letterboxed on black.
        """
        from PIL import Image

        image = Image.fromarray(picture)
        inner = _at(image, self._inner)
        if self._inner == self.target:
            return np.asarray(inner)
        whole = Image.new(image.mode, self.target)
        whole.paste(inner, self._corner)
        return np.asarray(whole)

    def notes(self) -> list[str]:
        """What a user should know of it, in a sentence; nothing if the shapes are alike."""
        width, height = self.source
        before = f"{self.name} is {width}x{height}, and the video {self.target[0]}x{self.target[1]}:"
        if self.how == CROP and 1 - self._kept > _NOTED:
            return [f"{before} {1 - self._kept:.0%} of it is cut off; --fit letterbox would keep all of it."]
        if self.how == LETTERBOX:
            inside = self._inner[0] * self._inner[1] / (self.target[0] * self.target[1])
            return [f"{before} {1 - inside:.0%} of every frame is black bars."] if 1 - inside > _NOTED else []
        if self.how == STRETCH and abs(self._wider - 1) > _NOTED:
            return [f"{before} it is stretched to {self._wider:.2f} times its width for its height."]
        return []

    @property
    def _wider(self) -> float:
        """The target's aspect over the source's."""
        return self.target[0] * self.source[1] / (self.target[1] * self.source[0])

    @property
    def _kept(self) -> float:
        """The share of a picture that cropping leaves."""
        return min(self._wider, 1 / self._wider)

    @property
    def _inner(self) -> tuple[int, int]:
        """Width and height of the whole picture, before it is cropped or after it has been put between bars.

        Rounded as ``_resize_and_crop`` and ``_resize_and_fill`` of diffusers' image_processor.py do.
        """
        (width, height), (wide, high) = self.source, self.target
        if self.how == STRETCH:
            return self.target
        ratio, own = wide / high, width / height
        by_width = ratio > own if self.how == CROP else ratio < own
        by_height = ratio <= own if self.how == CROP else ratio >= own
        return (
            wide if by_width else max(1, width * high // height),
            high if by_height else max(1, height * wide // width),
        )

    @property
    def _corner(self) -> tuple[int, int]:
        (width, height), (wide, high) = self._inner, self.target
        return wide // 2 - width // 2, high // 2 - height // 2


def _at(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    return image.resize(size, resample=Image.Resampling.LANCZOS)
