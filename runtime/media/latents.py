"""Latents in files: fp32 [B, C, F, H, W] in a ``.npy``, normalised as the transformer sees them."""

from __future__ import annotations

import io
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.system.whole_file import write_whole


def read_latents(path: Path) -> npt.NDArray[np.generic]:
    """The array in a ``.npy`` file, of whatever shape and type it has.

    Raises:
        FlowBlendingError: the file cannot be read, or is no ``.npy`` file.
    """
    try:
        content = np.load(path, allow_pickle=False)
    except OSError as error:
        raise FlowBlendingError(
            f"Cannot read latents from {path} ({error.strerror or error}); give a .npy file."
        ) from None
    except (ValueError, EOFError, MemoryError, BadZipFile, TokenError):
        # What numpy says of a file of another kind is about pickles, and how to open them all the same.
        raise FlowBlendingError(
            f"Cannot read latents from {path} (it holds no whole array of numbers); give a .npy file."
        ) from None
    if not isinstance(content, np.ndarray):
        raise FlowBlendingError(f"{path} holds several arrays, but one was expected; give a .npy file.")
    return content


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """The content of a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def save_latents(path: Path, latents: npt.NDArray[np.float32]) -> None:
    """Write a ``.npy`` file, which appears under its name only when it is whole.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    write_whole(path, npy_bytes(latents))
