"""Where the component cache is, and whether it can be used."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.system.checksum import cache_folder
from flowblending.system.console import Console

# https://bford.info/cachedir: backup programs leave folders with this file out.
_TAG = "CACHEDIR.TAG"
_TAG_CONTENT = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by fb-build-engines: see its --list-cache.\n"


def chosen_folder(given: Path | None) -> Path:
    """The cache folder: ``given``, else one in the user's cache.

    Raises:
        FlowBlendingError: the user has no home.
    """
    if given is not None:
        return given
    folder = cache_folder()
    if folder is None:
        raise FlowBlendingError("This user has no home for a cache folder; give one with --cache-dir, or --no-cache.")
    return folder / "components"


def usable_folder(given: Path | None, console: Console) -> Path | None:
    """The cache folder of a build. The default one is done without where it cannot be used, with a warning.

    Raises:
        FlowBlendingError: ``given`` cannot be used.
    """
    try:
        folder = chosen_folder(given).absolute()
        _check_folder(folder)
    except FlowBlendingError as error:
        if given is not None:
            raise
        console.warn(f"{error} This build goes on without a cache.")
        return None
    return folder


def _check_folder(folder: Path) -> None:
    """Make a cache folder if need be, and find out whether it can be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (folder / _TAG).exists():
            _write_tag(folder / _TAG)
    except OSError as error:
        raise FlowBlendingError(
            f"The cache folder {folder} cannot be used ({error.strerror or error}); "
            "give --cache-dir a folder that you can write to, or --no-cache."
        ) from None


def _write_tag(path: Path) -> None:
    try:
        path.write_text(_TAG_CONTENT)
    except OSError:
        path.unlink(missing_ok=True)
        raise
