"""Files of images, opened with Pillow; every way in which that may fail becomes a sentence.

A picture is told by its content, never by its name. Its size is checked by its header, before anything is decoded.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.media.display import UPRIGHT, Orientation, Picture, on_black
from flowblending.runtime.media.file_checks import check_is_file, check_picture_size
from flowblending.system.extras import install
from flowblending.system.printable import printable

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""Those of Pillow's that are opened: others run programs (EPS), or are no pictures that people have."""
_ONE_PICTURE: Final = ("JPEG", "MPO", "HEIF")
"""Formats in which further frames are previews and depth maps, and the first is the picture."""
_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION: Final = 0x0112
"""EXIF's tag."""
_HIGH_BITS: Final = ("I;16", "I;16L", "I;16B", "I;16N")


@contextlib.contextmanager
def opened_image(path: Path, noun: str = "image") -> Iterator[Any | None]:
    """Pillow's image of a file whose size is one that is taken, or None if its content is no image.

    Args:
        noun: what was expected, for the message that there is no such file.

    Raises:
        UsageError: there is no file, it is too large or too small, or it needs a plug-in that is not installed.
    """
    image_library = _pillow()
    name = printable(path)
    check_is_file(path, noun)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about sizes, which are checked here, and about metadata
        try:
            file = stack.enter_context(path.open("rb"))
            start = file.read(16)
            image_library.init()
            formats = [each for each in FORMATS if each in image_library.OPEN]
            image = stack.enter_context(image_library.open(file, formats=formats))
        except image_library.DecompressionBombError:
            raise UsageError(f"{name} holds more pixels than can be decoded; give it smaller.") from None
        except image_library.UnidentifiedImageError:
            _check_heic(name, start, formats)
            yield None
            return
        except (OSError, ValueError, EOFError) as error:
            raise damaged(name, error) from None
        check_picture_size(name, *image.size)
        yield image


def count_frames(name: str, image: Any) -> int:
    """How many pictures an open image shows one after the other.

    Raises:
        UsageError: the file is damaged.
    """
    if image.format in _ONE_PICTURE:
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, EOFError, SyntaxError, IndexError) as error:
        raise damaged(name, error) from None


def upright_size(image: Any) -> tuple[int, int]:
    """Width and height of an open image as it is shown; nothing is decoded."""
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image).transposed  # Pillow itself turns what TIFF files hold
    return (height, width) if turned else (width, height)


def upright(name: str, image: Any) -> tuple[Picture, bool]:
    """What the frame at which an open image stands shows.

    It is turned as EXIF says. 16 bits are shown by their upper 8, transparent parts on black; colour profiles are not
    applied, which is what `diffusers.utils.load_image` does too.

    Returns:
        uint8 [H, W, 3], and whether parts of it are transparent.

    Raises:
        UsageError: it is damaged, or holds numbers that are no colours.
    """
    try:
        image.load()
        pixels = _colours(name, image)
    except (OSError, ValueError, EOFError, SyntaxError, IndexError) as error:
        raise damaged(name, error) from None
    turned = _orientation(image).turn(pixels)
    transparent = turned.shape[2] == 4 and bool(turned[..., 3].min() < 255)
    return np.ascontiguousarray(on_black(turned) if turned.shape[2] == 4 else turned), transparent


def damaged(name: str, error: Exception) -> UsageError:
    """The sentence about a file that begins as an image and does not go on as one, or cannot be read at all."""
    if isinstance(error, OSError) and error.strerror is not None:
        return UsageError(f"Cannot read {name} ({error.strerror}); check its permissions, or give another file.")
    return UsageError(f"{name} is a damaged or truncated image ({printable(str(error))}); give another file.")


def _pillow() -> Any:
    """Pillow's module of images, which knows HEIC where pillow-heif is installed."""
    try:
        from PIL import Image
    except ImportError:
        raise FlowBlendingError(f"Reading images needs Pillow, which is not installed; {install('video')}.") from None
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return Image


def _check_heic(name: str, start: bytes, formats: list[str]) -> None:
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and "HEIF" not in formats:
        raise UsageError(f"{name} is a HEIC image, which needs pillow-heif; {install('heic')}, or give it as JPEG.")


def _orientation(image: Any) -> Orientation:
    """As EXIF has it (JEITA CP-3451, table 6); what cannot be read is upright, as viewers show it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return UPRIGHT
    if not isinstance(value, int) or not 1 <= value <= 8:
        return UPRIGHT
    return Orientation(
        transposed=value >= 5, rows_reversed=value in (3, 4, 7, 8), columns_reversed=value in (2, 3, 6, 7)
    )


def _colours(name: str, image: Any) -> Picture:
    """uint8 [H, W, 3], or [H, W, 4] with opacity."""
    if image.mode in _HIGH_BITS:
        # Pillow's own conversion clips: nearly all of such a picture would be white.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UsageError(
            f"{name} holds numbers of 32 bits, of which nobody says which one is white; give it with 8 or 16 bits."
        )
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
