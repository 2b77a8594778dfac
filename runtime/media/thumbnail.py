"""The first frame of an image or a video as a small JPEG, to show what a prompt was given."""

from __future__ import annotations

import io
from pathlib import Path

from flowblending.runtime.media.frame_source import opened_frames


def thumbnail(path: Path, edge: int) -> bytes:
    """A JPEG of at most ``edge`` pixels either way.

    Args:
        path: of an image, a video, an animated image or a folder of images.

    Raises:
        FlowBlendingError: it is missing, or cannot be read.
    """
    from PIL import Image

    with opened_frames(path) as source:
        image = Image.fromarray(next(iter(source.frames())).picture)
    image.thumbnail((edge, edge), resample=Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    return content.getvalue()
