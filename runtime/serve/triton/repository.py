"""A Triton model repository on disk: one folder per model, each there as a whole or not at all.

A model's folder holds its bundle, as hard links where the file system has them and as copies elsewhere. So the
repository can be moved, mounted into a container or uploaded as it is; it takes little space beside the bundle; and a
bundle that is built again, which replaces files and never writes into them, leaves the models that are being served
as they were. Weights beside an ONNX file are clones or copies instead where the disk has room (see `share`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import EXTERNAL_DATA
from flowblending.contracts.manifest import MANIFEST
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.bundle.bundle import Bundle, check_outside
from flowblending.engine.bundle.plan_profiles import component_profiles
from flowblending.runtime.serve.triton.config import MARK, Placement, QueuePolicy, plan_config, video_config
from flowblending.runtime.serve.triton.signature import BUNDLE_FOLDER, MODEL_VERSION
from flowblending.system.output import check_folder
from flowblending.system.share import clone_or_copy, link_or_copy
from flowblending.system.whole_file import whole_folder

CONFIG = "config.pbtxt"

_MODEL = '''\
"""Written by fb-export-triton. The model is in the package flowblending, which this Python must have."""

from flowblending.runtime.serve.triton.model import VideoModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the repository.

    Attributes:
        name: of its folder, and by which clients ask for it.
        config: the text of its config.pbtxt.
        texts: files to write, by their path in the model's folder.
        links: files to link or copy, by their path in the model's folder.
    """

    name: str
    config: str
    texts: dict[str, str]
    links: dict[str, Path]


def video_model(name: str, bundle: Bundle, queue: QueuePolicy, place: Placement) -> Model:
    """A model that makes the videos of a bundle."""
    names = [MANIFEST, *(file.path for file in bundle.files())]
    return Model(
        name=name,
        config=video_config(name, bundle.manifest, queue, place),
        texts={f"{MODEL_VERSION}/model.py": _MODEL},
        links={f"{MODEL_VERSION}/{BUNDLE_FOLDER}/{each}": bundle.folder / each for each in names},
    )


def plan_models(name: str, bundle: Bundle, place: Placement) -> list[Model]:
    """The transformers of a bundle as models of Triton's TensorRT backend.

    Raises:
        UsageError: they are no TensorRT plans.
    """
    models = []
    for part in bundle.manifest.transformers:
        component = bundle.manifest.components[part]
        profiles = len(component_profiles(bundle.manifest, part))
        backend = BACKENDS.get(component.backend).triton
        if backend is None:
            raise UsageError(
                f"--plans was given, but {part} in {bundle.folder} is an engine of {component.backend}, which Triton "
                "has no backend for; build the bundle with --backend tensorrt, or leave --plans out."
            )
        models.append(
            Model(
                name=f"{name}_{part}",
                config=plan_config(f"{name}_{part}", backend, component, place, profiles),
                texts={},
                links={f"{MODEL_VERSION}/{target}.plan": bundle.path(part) for target in component.targets},
            )
        )
    return models


def write_repository(models: Sequence[Model], out: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write models into a repository, which is made if there is none.

    A model that was exported before is replaced when the new one is whole; all other models stay as they are.

    Args:
        progress: told the bytes of every file that was linked or copied.

    Raises:
        FlowBlendingError: ``out`` or a model in it is something else, or cannot be written.
    """
    check_repository(models, out)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            # Beside the repository, not in it: a server that watches it would take what is there for a model.
            if out.exists():
                folders = [
                    stack.enter_context(whole_folder(out / each.name, replace=True, beside=out)) for each in models
                ]
            else:
                new = stack.enter_context(whole_folder(out))
                folders = [new / each.name for each in models]
            for model, folder in zip(models, folders, strict=True):
                _write_model(model, folder, progress)
    except OSError as error:
        raise FlowBlendingError(
            f"Cannot write the repository {out} ({error.strerror or error}); choose a folder that you can write to."
        ) from None


def check_repository(models: Sequence[Model], out: Path) -> None:
    """Find out before anything is read whether models can be written into a repository.

    Raises:
        FlowBlendingError: ``out`` or a model in it is something else, or cannot be written.
    """
    check_outside(out, itself=False)
    check_folder(out, beside=True)
    if (out / MANIFEST).is_file():
        raise FlowBlendingError(f"{out} is a bundle, which no model can be put into; choose another --out.")
    for model in models:
        target, config = out / model.name, out / model.name / CONFIG
        ours = config.is_file() and config.read_text(errors="replace").startswith(MARK)
        if target.exists() and not ours:
            raise FlowBlendingError(
                f"{target} exists and was not written by fb-export-triton; choose another --name, or remove it."
            )


def _write_model(model: Model, folder: Path, progress: Callable[[int], None] | None) -> None:
    for name, text in {CONFIG: model.config, **model.texts}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, source in model.links.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A copy may take half of what is free, so that other programs find some too.
        room = source.stat().st_size <= shutil.disk_usage(path.parent).free // 2
        share = clone_or_copy if name.endswith(EXTERNAL_DATA) and room else link_or_copy
        share(source.resolve(), path)
        if progress is not None:
            progress(path.stat().st_size)
