"""Frames of videos, animated images, folders of images and stills, one after the other as they are shown.

Nothing is decoded before it is asked for, and no more than is asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from flowblending import UsageError
from flowblending.runtime.media.display import Picture
from flowblending.runtime.media.file_checks import check_picture_size
from flowblending.runtime.media.image_file import count_frames, damaged, opened_image, upright, upright_size
from flowblending.runtime.media.open_video import decoded, opened
from flowblending.runtime.media.shown import is_high_range, shown_as
from flowblending.system.printable import printable

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
"""Of the files in a folder that are taken for its frames."""
_UNTIMED: Final = Fraction(1, 10)
"""Seconds that browsers show a frame of a GIF that does not say how long, or less than they can."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame.

    Attributes:
        picture: uint8 [H, W, 3], upright, on black.
        start: when it is shown, in seconds from the first one on; None where there are no times.
        length: for how long, as far as the file says; 0 if it does not.
        transparent: whether parts of it were.
    """

    picture: Picture
    start: Fraction | None = None
    length: Fraction = Fraction(0)
    transparent: bool = False


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """An open image, video or folder.

    Attributes:
        name: as messages tell it.
        width, height: as it is shown, in pixels.
        still: whether it is one picture.
        frame_rate: in frames per second; None for stills and folders.
        high_range: whether it is coded for more light than screens used to have.
        promised: how many frames it says it has; 0 if it does not.
        frames: all of them, in order; to be called once.
    """

    name: str
    width: int
    height: int
    frames: Callable[[], Iterator[Frame]]
    still: bool = False
    frame_rate: Fraction | None = None
    high_range: bool = False
    promised: int = 0


@contextlib.contextmanager
def opened_frames(path: Path) -> Iterator[FrameSource]:
    """Whatever has frames: told by its content.

    Raises:
        FlowBlendingError: there is none, it is of a size that is not taken, or a library for it is not installed;
            reading its frames raises it where the file is damaged.
    """
    with contextlib.ExitStack() as stack:
        if os.path.isdir(path):  # noqa: PTH112  a name that is too long is no error to this one
            yield _folder(path)
            return
        image = stack.enter_context(opened_image(path, "image or video"))
        yield _image(path, image) if image is not None else stack.enter_context(_video(path))


@contextlib.contextmanager
def opened_still(path: Path) -> Iterator[FrameSource]:
    """A file that is one picture.

    Raises:
        FlowBlendingError: it is a video or a folder, it has several frames, or as `opened_frames`.
    """
    name = printable(path)
    with opened_image(path) as image:
        if image is None:
            raise UsageError(
                f"{name} is no image that can be read, but one was expected; give a PNG, JPEG, WebP, HEIC, AVIF, TIFF, "
                "BMP or GIF file."
            )
        source = _image(path, image)
        if not source.still:
            raise UsageError(
                f"{name} holds {count_frames(name, image)} frames, but one image was expected; give one of them."
            )
        yield source


def _image(path: Path, image: Any) -> FrameSource:
    name, (width, height) = printable(path), upright_size(image)
    count = count_frames(name, image)
    if count == 1:

        def one() -> Iterator[Frame]:
            picture, transparent = upright(name, image)
            yield Frame(picture=picture, transparent=transparent)

        return FrameSource(name=name, width=width, height=height, frames=one, still=True)
    if image.format == "TIFF":
        raise UsageError(f"{name} holds {count} pages, but one picture was expected; give one of them.")
    # A WebP tells how long a frame is shown when it is decoded.
    upright(name, image)
    rate = 1 / _told_length(image)

    def several() -> Iterator[Frame]:
        start = Fraction(0)
        for index in range(count):
            try:
                image.seek(index)
            except (OSError, ValueError, EOFError, SyntaxError, IndexError) as error:
                raise damaged(name, error) from None
            picture, transparent = upright(name, image)
            length = _told_length(image)
            yield Frame(picture=picture, start=start, length=length, transparent=transparent)
            start += length

    return FrameSource(name=name, width=width, height=height, frames=several, frame_rate=rate)


def _told_length(image: Any) -> Fraction:
    """Seconds for which the frame at which an animated image stands is shown."""
    milliseconds = image.info.get("duration") or 0
    length = Fraction(milliseconds).limit_denominator(1000) / 1000
    return length if length > Fraction(1, 100) else _UNTIMED


@contextlib.contextmanager
def _video(path: Path) -> Iterator[FrameSource]:
    name = printable(path)
    with opened(path) as (container, stream):
        coded = stream.codec_context
        if coded.width and coded.height:
            check_picture_size(name, coded.width, coded.height)
        frames = decoded(path, container, stream)
        first = next(frames, None)
        if first is None:
            raise UsageError(f"{name} holds no frame that can be decoded; give another file.")
        shown = shown_as(path, first, stream)
        check_picture_size(name, shown.width, shown.height)
        rate = stream.average_rate or stream.guessed_rate

        def all_of_them() -> Iterator[Frame]:
            origin = first.pts
            for count, frame in enumerate(_first_again(first, frames)):
                if (frame.width, frame.height) != (first.width, first.height):
                    raise UsageError(
                        f"{name} changes its size at frame {count}, from {first.width}x{first.height} to "
                        f"{frame.width}x{frame.height}; give a video of one size."
                    )
                if frame.is_corrupt:
                    raise UsageError(f"{name} is damaged at frame {count}; give another file.")
                timed = origin is not None and frame.pts is not None
                start = (frame.pts - origin) * stream.time_base if timed else count / (rate or Fraction(25))
                length = (getattr(frame, "duration", 0) or 0) * stream.time_base
                picture, transparent = shown.seen(frame)
                yield Frame(picture=picture, start=start, length=length, transparent=transparent)

        yield FrameSource(
            name=name,
            width=shown.width,
            height=shown.height,
            frames=all_of_them,
            frame_rate=rate,
            high_range=is_high_range(stream),
            promised=stream.frames,
        )


def _first_again(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


def folder_images(path: Path) -> list[Path]:
    """The images of a folder in their order.

    Raises:
        UsageError: there are none, or the folder cannot be read.
    """
    name = printable(path)
    try:
        found = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"The folder {name} cannot be read ({error.strerror}); give another one.") from None
    if not found:
        raise UsageError(f"The folder {name} holds no images ({', '.join(SUFFIXES)}); give one with a video's frames.")
    return sorted(found, key=_in_order)


def _folder(path: Path) -> FrameSource:
    name, found = printable(path), folder_images(path)
    with opened_still(found[0]) as first:
        size = first.width, first.height

    def all_of_them() -> Iterator[Frame]:
        for each in found:
            with opened_still(each) as source:
                if (source.width, source.height) != size:
                    raise UsageError(
                        f"The images in {name} are of several sizes, {found[0].name} {size[0]}x{size[1]} and "
                        f"{printable(each.name)} {source.width}x{source.height}; give frames of one size."
                    )
                yield from source.frames()

    return FrameSource(name=name, width=size[0], height=size[1], frames=all_of_them)


def _in_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Names with numbers by the numbers: frame 2 before frame 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(each), "") if index % 2 else (-1, each) for index, each in enumerate(parts)], path.name
