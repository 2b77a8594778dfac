"""Frames side by side in one picture, with text above the columns and left of the rows; for pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]

GAP = 6
"""Pixels between two cells, and around text."""
TEXT_SIZE = 13
LINE = 17
"""Heights of a letter and of a line of text, in pixels."""
WIDEST = 170
"""Pixels after which the text left of a row goes on in the next line."""


def strip(clip: Pixels, columns: int) -> Pixels:
    """``columns`` evenly spaced frames [H, W, 3] side by side, first and last among them, a white line between two."""
    chosen = clip[np.linspace(0, len(clip) - 1, columns).round().astype(int)]
    parted = np.pad(chosen, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(parted), axis=1)[:, :-1]


def layout(cells: Sequence[Sequence[Pixels]], *, above: Sequence[str], left: Sequence[str], scale: int = 1) -> Pixels:
    """A grid with text above its columns and left of its rows, black on white; [H, W, 3], both even (as H.264 asks).

    Args:
        cells: rows of pictures [h, w, 3], all of one size.
        above: a text for each column, wrapped to its width; all empty for none.
        left: a text for each row; all empty for none.
        scale: every pixel of a cell becomes a square of this many.
    """
    high, wide = (scale * size for size in cells[0][0].shape[:2])
    font = ImageFont.load_default(TEXT_SIZE)
    tops, sides = [_wrap(text, font, wide) for text in above], [_wrap(text, font, WIDEST) for text in left]
    header = LINE * max(len(lines) for lines in tops) + GAP
    margin = GAP + max((round(font.getlength(line)) + GAP for lines in sides for line in lines), default=0)
    # Text taller than its row moves the next one down.
    pitch = max(high, *(LINE * len(lines) for lines in sides)) + GAP
    width, height = margin + len(above) * (wide + GAP), header + len(left) * pitch
    picture = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    pen = ImageDraw.Draw(picture)
    for column, lines in enumerate(tops):
        _write(pen, font, lines, (margin + column * (wide + GAP), GAP // 2))
    for index, (row, lines) in enumerate(zip(cells, sides, strict=True)):
        top = header + index * pitch
        _write(pen, font, lines, (GAP, top))
        for column, cell in enumerate(row):
            large = Image.fromarray(cell).resize((wide, high), Image.Resampling.NEAREST)
            picture.paste(large, (margin + column * (wide + GAP), top))
    return np.asarray(picture)


def save_picture(path: Path, picture: Pixels) -> None:
    """Write a picture [H, W, 3]; as JPEG its colours keep their full resolution, which flat shapes need."""
    Image.fromarray(picture).save(path, quality=90, subsampling=0)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text's lines, none wider than ``width`` pixels if its words are not."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    lines: Sequence[str],
    at: tuple[int, int],
) -> None:
    for index, line in enumerate(lines):
        pen.text((at[0], at[1] + index * LINE), line, fill="black", font=font)
