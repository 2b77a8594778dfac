"""Packages that the process with the stand-in finds before all others: a ``tensorrt`` of stand-ins."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path) -> Path:
    """Write them; the folder goes on Python's path, of worker processes too.

    Returns:
        The folder.
    """
    package = folder / "tensorrt"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        '"""Stands for TensorRT where the GPU is a stand-in."""\n\n'
        "from tests.support.cuda.builder_stand_in import *  # noqa: F403\n"
        "from tests.support.cuda.tensorrt_stand_in import *  # noqa: F403\n"
        "from tests.support.cuda.tensorrt_stand_in import __version__ as __version__\n"
    )
    return folder
