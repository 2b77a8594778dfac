"""Frames of several videos in one picture: a row per video, the same moments in each.

python -m benchmarks.contact_sheet demo/LLL.mp4 demo/video.mp4 demo/SSS.mp4 --out docs/demo.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image


def contact_sheet(videos: Sequence[Path], columns: int = 4) -> Image.Image:
    """A grid with ``columns`` evenly spaced frames per video, first and last among them."""
    rows = []
    for path in videos:
        with av.open(str(path)) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        rows.append(np.concatenate([frames[index] for index in chosen], axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Lay out frames of videos of one size in one picture.")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, metavar="PICTURE")
    arguments = parser.parse_args()
    contact_sheet(arguments.videos, arguments.columns).save(arguments.out)


if __name__ == "__main__":
    main()
