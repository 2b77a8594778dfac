"""What the nodes ask of ComfyUI: where bundles lie, the progress bar, and whether the user has pressed Cancel.

The one file that imports ComfyUI's modules (``folder_paths``, ``comfy.utils``, ``comfy.model_management``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowblending.contracts.manifest import MANIFEST

KIND: Final = "flowblending"
"""The kind of model: its folder in ``models``, and its name in extra_model_paths.yaml."""


def bundle_folders() -> list[Path]:
    """The folders that bundles are looked for in."""
    import folder_paths

    usual = str(Path(folder_paths.models_dir) / KIND)
    if KIND not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(KIND, usual)
    return [Path(each) for each in folder_paths.get_folder_paths(KIND)]


def bundle_names() -> list[str]:
    """The bundles in them, by their folders' names."""
    return sorted({path.parent.name for folder in bundle_folders() for path in folder.glob(f"*/{MANIFEST}")})


def bundle_path(name: str) -> Path:
    """The folder of a bundle by its name; where there are several, the first. One that is not there is named too."""
    folders = bundle_folders()
    found = (folder / name for folder in folders if (folder / name / MANIFEST).is_file())
    return next(found, folders[0] / name)


def progress_bar(total: int) -> Callable[[int], None]:
    """A bar in the browser; what is returned is told how much is done."""
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def show(done: int) -> None:
        bar.update_absolute(done)

    return show


def stop_if_cancelled() -> None:
    """Raise ComfyUI's own exception if the user has pressed Cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()
