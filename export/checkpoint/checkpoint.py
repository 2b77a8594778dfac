"""Reading diffusers checkpoints: folders or hub ids, which files make a component.

Loads neither torch nor diffusers, so that a wrong argument is answered at once and before any download.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.model_files import model_files, read_json, read_tensor, weights_sha256

__all__ = [
    "MODEL_INDEX",
    "TRANSFORMER",
    "Checkpoint",
    "component_files",
    "model_files",
    "open_checkpoint",
    "open_transformer",
    "read_json",
    "vae_statistics",
    "weights_sha256",
]

TRANSFORMER = "transformer"
MODEL_INDEX = "model_index.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXPECTED = "give a folder with model_index.json as diffusers' save_pretrained writes it, or a hub id"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A diffusers pipeline folder.

    Attributes:
        folder: holds ``model_index.json`` and one folder per component.
        pipeline: the class that it is run with; one that some family covers.
        published: the class that ``model_index.json`` names, where that is another one.
    """

    folder: Path
    pipeline: str
    published: str | None = None

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component (``transformer``, ``vae``, ``scheduler``, ...)."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.folder / component / name)


def open_checkpoint(source: str, classes: Collection[str] | None = None) -> Checkpoint:
    """A whole pipeline.

    Args:
        source: a folder with ``model_index.json``, or a hub id (``Org/Name``) where no such folder exists; what is
            needed of it is downloaded to the cache of huggingface_hub.
        classes: pipeline classes that are supported; None takes any.

    Raises:
        FlowBlendingError: it is not there, no diffusers pipeline, one of another class, or incomplete.
    """
    folder = _locate(source, (TRANSFORMER, "text_encoder", "vae"), classes)
    checkpoint = _read_index(folder, classes)
    for component in (TRANSFORMER, "text_encoder", "vae"):
        component_files(checkpoint, component)
    for component in ("scheduler", "tokenizer"):
        if not (folder / component).is_dir():
            raise FlowBlendingError(f"{folder} has no folder {component}; give a complete diffusers checkpoint.")
    return checkpoint


def open_transformer(
    source: str, of: Checkpoint, classes: Collection[str] | None = None
) -> tuple[Path, Checkpoint | None]:
    """A transformer to run in the pipeline ``of``: its folder, and the pipeline that it came from, if any.

    Args:
        source: a pipeline folder, a transformer folder (``config.json`` and weights), or a hub id of either.
        of: the pipeline that the transformer is to run in.
        classes: as for ``open_checkpoint``.

    Raises:
        FlowBlendingError: as for ``open_checkpoint``, or the folder holds another kind of model.
    """
    folder = _locate(source, (TRANSFORMER, "vae"), classes)
    checkpoint = _read_index(folder, classes) if (folder / MODEL_INDEX).is_file() else None
    if checkpoint is None and not (folder / "config.json").is_file():
        raise _foreign(folder, "neither model_index.json nor a transformer's config.json")
    found = folder if checkpoint is None else folder / TRANSFORMER
    expected = of.config(TRANSFORMER).get("_class_name")
    actual = read_json(found / "config.json").get("_class_name")
    if actual != expected:
        raise FlowBlendingError(
            f"{found} holds a {actual or 'model of no diffusers class'}, but {of.folder} needs a {expected}; "
            f"give a {of.pipeline} folder or the transformer folder of one."
        )
    model_files(found)
    return found, checkpoint


def component_files(checkpoint: Checkpoint, component: str) -> tuple[Path, ...]:
    """The files that determine a component that has weights: configuration, index, weights."""
    return model_files(checkpoint.folder / component)


def vae_statistics(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the VAE's latents, one per channel.

    Wan keeps them in the VAE's configuration, LTX-Video among its weights.

    Raises:
        FlowBlendingError: they are in neither place.
    """
    config = checkpoint.config("vae")
    folder = checkpoint.folder / "vae"
    found: list[tuple[float, ...]] = []
    for name in ("latents_mean", "latents_std"):
        values = config.get(name) or read_tensor(model_files(folder), name)
        if values is None:
            raise FlowBlendingError(f"{folder} holds no {name}; give a complete diffusers checkpoint.")
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]


def _locate(source: str, weights: Sequence[str], classes: Collection[str] | None) -> Path:
    """The folder ``source``, or where the hub's checkpoint of that name was downloaded to."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FlowBlendingError(f"{source} is a single file, but a diffusers folder was expected; {_EXPECTED}.")
    if not _HUB_ID.fullmatch(source):
        raise FlowBlendingError(f"There is no folder {source}; {_EXPECTED}.")
    folder = _download(source, [MODEL_INDEX, "config.json"])
    if not (folder / MODEL_INDEX).is_file():
        return _download(source, ["config.json", "diffusion_pytorch_model*"])
    # Before gigabytes are downloaded.
    _read_index(folder, classes)
    patterns = [f"{component}/*.safetensors" for component in weights]
    return _download(source, ["*.json", "tokenizer/*", *patterns])


def _download(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    variants = ["*.fp16*", "*.bf16*", "*.bin", "*.non_ema*"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=variants))
    except Exception as error:  # the errors of its HTTP library, which changes between versions, pass through it
        reason = str(error).strip().partition("\n")[0]
        raise FlowBlendingError(
            f"{source} is no folder here and could not be fetched from the hub ({reason}); {_EXPECTED}."
        ) from None


def _read_index(folder: Path, classes: Collection[str] | None) -> Checkpoint:
    if not (folder / MODEL_INDEX).is_file():
        raise _foreign(folder, "no model_index.json")
    pipeline = read_json(folder / MODEL_INDEX).get("_class_name")
    if not isinstance(pipeline, str):
        raise FlowBlendingError(f"{folder / MODEL_INDEX} names no pipeline class (_class_name); {_EXPECTED}.")
    if classes is not None and pipeline not in classes:
        raise FlowBlendingError(
            f"{folder} is a checkpoint of {pipeline}, which is not supported; give one of {', '.join(classes)}."
        )
    return Checkpoint(folder=folder, pipeline=pipeline)


def _foreign(folder: Path, lacks: str) -> FlowBlendingError:
    if (folder / "config.json").is_file():
        return FlowBlendingError(f"{folder} is one component of a checkpoint, not a whole pipeline; {_EXPECTED}.")
    loose = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt"))
    if loose:
        return FlowBlendingError(f"{folder} holds weights in their authors' format ({loose[0]}); {_EXPECTED}.")
    return FlowBlendingError(f"{folder} is no diffusers checkpoint, as it has {lacks}; {_EXPECTED}.")
