"""What holds for all runs of a report, as names and values for its head: what ran, from where, and how."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowblending import __version__
from flowblending.contracts.manifest import Geometry, Manifest
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.compare.existing import ExistingVideo
from flowblending.runtime.compare.figures import Figures
from flowblending.system.printable import printable

Facts = tuple[tuple[str, str], ...]


def facts_of_runs(
    bundle: Bundle, geometry: Geometry, figures: Sequence[Figures], *, prompts: int, machine: str
) -> Facts:
    """Of a bundle's runs.

    Args:
        figures: of all of them.
        machine: what the times were measured on.
    """
    manifest = bundle.manifest
    return (
        ("bundle", f"{manifest.id} ({manifest.pipeline.family})"),
        ("folder", folder_of(bundle.folder)),
        *_checkpoints(manifest),
        ("video", f"{geometry.width}×{geometry.height}, {geometry.frames} frames"),
        ("steps", common(str(len(each.computed)) for each in figures)),
        ("solver", common(each.solver for each in figures)),
        ("guidance", common(f"{each.guidance:g}" for each in figures)),
        ("prompts", str(prompts)),
        ("machine", machine),
        ("flowblending", __version__),
    )


def facts_of_videos(videos: Sequence[ExistingVideo]) -> Facts:
    """Of existing videos."""
    first = videos[0]
    rates = [f"{video.file.frame_rate:g}" if video.file.times.constant else "variable" for video in videos]
    folder = os.path.commonpath([video.file.path.absolute().parent for video in videos])
    return (
        ("folder", folder_of(Path(folder))),
        ("video", f"{first.file.width}×{first.file.height}, {len(first.frames)} frames"),
        ("frames per second", common(rates)),
        ("flowblending", __version__),
    )


def _checkpoints(manifest: Manifest) -> Facts:
    """The models' checkpoints, precisions and LoRA."""
    precisions = {
        model.name: common(manifest.components[engine].spec.precision.value for engine in model.components)
        for model in manifest.models
    }
    places = {name: (source, Path(source)) for name, source in manifest.checkpoints.items()}
    loras = {
        model.name: "".join(
            f", LoRA {each}" for engine in model.components for each in manifest.components[engine].loras
        )
        for model in manifest.models
    }
    return tuple(
        (name, f"{folder_of(path) if path.is_absolute() else source}, {precisions[name]}{printable(loras[name])}")
        for name, (source, path) in places.items()
    )


def folder_of(path: Path) -> str:
    """A folder's whole path, with ``~`` for the home folder, which readers of a page need not know."""
    home = Path.home()
    path = path.absolute()
    return printable(Path("~") / path.relative_to(home) if path.is_relative_to(home) else path)


def common(values: Iterable[str]) -> str:
    """The value that all share, or several, in one line."""
    found = list(dict.fromkeys(values))
    return ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
