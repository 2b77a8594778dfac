"""A stand-in for ComfyUI, which is on no index: the documented interface that the nodes use, and its loader's steps.

``folder_paths``, ``comfy.cli_args``, ``comfy.utils.ProgressBar`` and ``comfy.model_management`` behave as ComfyUI's do
(folder_paths.py, comfy/cli_args.py, comfy/utils.py, comfy/model_management.py). Custom nodes are loaded as its
``nodes.load_custom_node`` does: the folder's ``__init__.py`` is run as a module whose name is the folder's path.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


class InterruptProcessingException(Exception):
    """What Cancel raises."""


class LatentPreviewMethod(enum.Enum):
    """comfy.cli_args.LatentPreviewMethod."""

    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"


class Host:
    """ComfyUI, as far as nodes see it.

    Attributes:
        progress: what the bars were told: how much is done, of how much.
        previews: what they were shown: how much is done, the format, Pillow's image, and the size that it gets.
        args: of the command line; the user chooses ``preview_method``.
        cancel_at: Cancel is pressed when a bar shows so much.
    """

    def __init__(self, models: Path, patch: pytest.MonkeyPatch) -> None:
        self.progress: list[tuple[int, int]] = []
        self.previews: list[tuple[int, str, Image.Image, int]] = []
        self.cancel_at: int | None = None
        host = self

        class ProgressBar:
            """comfy.utils.ProgressBar."""

            def __init__(self, total: int, node_id: str | None = None) -> None:  # noqa: ARG002 - ComfyUI's
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.total = self.total if total is None else total
                if preview is None:
                    host.progress.append((value, self.total))
                else:
                    host.previews.append((value, *preview))

        paths: Any = types.ModuleType("folder_paths")
        paths.models_dir = str(models)
        paths.folder_names_and_paths = {}

        def add_model_folder_path(name: str, path: str, is_default: bool = False) -> None:  # noqa: ARG001 - ComfyUI's
            paths.folder_names_and_paths.setdefault(name, ([], set()))[0].append(path)

        paths.add_model_folder_path = add_model_folder_path
        paths.get_folder_paths = lambda name: paths.folder_names_and_paths[name][0][:]
        self.paths = paths
        utils: Any = types.ModuleType("comfy.utils")
        utils.ProgressBar = ProgressBar
        management: Any = types.ModuleType("comfy.model_management")
        management.throw_exception_if_processing_interrupted = self._stop
        cli_args: Any = types.ModuleType("comfy.cli_args")
        cli_args.LatentPreviewMethod = LatentPreviewMethod
        cli_args.args = types.SimpleNamespace(preview_method=LatentPreviewMethod.NoPreviews, preview_size=512)
        self.args = cli_args.args
        comfy = types.ModuleType("comfy")
        for name, module in (
            ("folder_paths", paths),
            ("comfy", comfy),
            ("comfy.cli_args", cli_args),
            ("comfy.utils", utils),
            ("comfy.model_management", management),
        ):
            patch.setitem(sys.modules, name, module)

    def _stop(self) -> None:
        if self.cancel_at is not None and self.progress and self.progress[-1][0] >= self.cancel_at:
            raise InterruptProcessingException


def load_custom_node(folder: Path, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, str]]:
    """The tables of a folder in ``custom_nodes``."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS, module.NODE_DISPLAY_NAME_MAPPINGS
