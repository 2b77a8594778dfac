"""What the nodes ask of ComfyUI: where bundles lie, the progress bar with its previews, and whether Cancel was pressed.

The one file that imports ComfyUI's modules (``folder_paths``, ``comfy.cli_args``, ``comfy.utils``,
``comfy.model_management``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending.contracts.manifest import MANIFEST

KIND: Final = "flowblending"
"""The kind of model: its folder in ``models``, and its name in extra_model_paths.yaml."""


Picture = npt.NDArray[np.uint8]
"""[h, w, 3]."""


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


def progress_bar(total: int) -> Callable[[int, Picture | None], None]:
    """A bar in the browser; what is returned is told how much is done, and what it looks like where that is known."""
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def show(done: int, picture: Picture | None = None) -> None:
        bar.update_absolute(done, total, None if picture is None else _preview(picture))

    return show


def wants_previews() -> bool:
    """Whether the user has ComfyUI show previews (``--preview-method``, or the setting of its menu)."""
    from comfy.cli_args import LatentPreviewMethod, args

    return bool(args.preview_method != LatentPreviewMethod.NoPreviews)


def _preview(picture: Picture) -> tuple[str, Any, int]:
    """A picture as ComfyUI's bars take it: format, Pillow's image, and what it is made larger or smaller to."""
    from comfy.cli_args import args
    from PIL import Image

    return "JPEG", Image.fromarray(picture), args.preview_size


def stop_if_cancelled() -> None:
    """Raise ComfyUI's own exception if the user has pressed Cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()
