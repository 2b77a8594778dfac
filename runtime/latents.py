"""Latents in files: fp32 [B, C, F, H, W] in a ``.npy``, normalised as the transformer sees them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError


def read_latents(path: Path) -> npt.NDArray[np.generic]:
    """The array in a ``.npy`` file, of whatever shape and type it has.

    Raises:
        FlowBlendingError: the file cannot be read, or is no ``.npy`` file.
    """
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, TokenError) as error:
        raise FlowBlendingError(f"Cannot read latents from {path} ({error}); give a .npy file.") from None
    if not isinstance(content, np.ndarray):
        raise FlowBlendingError(f"{path} holds several arrays, but one was expected; give a .npy file.")
    return content


def save_latents(path: Path, latents: npt.NDArray[np.float32]) -> None:
    """Write a ``.npy`` file, which appears under its name only when it is whole.

    Raises:
        FlowBlendingError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, latents)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_target(path: Path) -> None:
    """Find out before a long run whether its latents can be written afterwards.

    Raises:
        FlowBlendingError: the folder does not exist or is not writable, or ``path`` is a folder.
    """
    if path.is_dir():
        raise _cannot_write(path, "it is a folder")
    if not path.parent.is_dir():
        raise _cannot_write(path, f"{path.parent} is no folder")
    if not os.access(path.parent, os.W_OK):
        raise _cannot_write(path, f"{path.parent} is not writable")


def _cannot_write(path: Path, why: str) -> FlowBlendingError:
    return FlowBlendingError(
        f"Cannot write {path} ({why}); give --save-latents a file in a folder that you can write to."
    )
