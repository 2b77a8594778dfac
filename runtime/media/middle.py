"""Pictures as CLIP's image processor of transformers crops them, with Pillow's bicubic interpolation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def middle(picture: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The middle of a picture whose shorter edge has been resized to a size, by Pillow's bicubic interpolation.

    Equals, bit for bit, what a CLIPImageProcessor on Pillow crops; one on torchvision rounds a few colours to the next.

    Args:
        picture: uint8 [H, W, 3].
        size: in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    from PIL import Image

    height, width, _ = picture.shape
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    wide, high = (size, longer) if width <= height else (longer, size)
    resized = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - size) // 2, (wide - size) // 2
    return resized[top : top + size, left : left + size]
