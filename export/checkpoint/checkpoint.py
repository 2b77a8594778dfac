"""Reading diffusers checkpoints: folders or hub ids, which files make a component, whether two can be a pair.

Loads neither torch nor diffusers, so that a wrong argument is answered at once and before any download.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.model_files import model_files, read_json, read_tensor, weights_sha256
from flowblending.export.families.registry import pipeline_classes, row_of

__all__ = [
    "MODEL_INDEX",
    "TRANSFORMER",
    "Checkpoint",
    "check_pair",
    "component_files",
    "model_files",
    "open_checkpoint",
    "open_transformer",
    "read_json",
    "vae_factors",
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


def open_checkpoint(source: str) -> Checkpoint:
    """A whole pipeline.

    Args:
        source: a folder with ``model_index.json``, or a hub id (``Org/Name``) where no such folder exists; what is
            needed of it is downloaded to the cache of huggingface_hub.

    Raises:
        FlowBlendingError: it is not there, no diffusers pipeline, one of another class, or incomplete.
    """
    folder = _locate(source, (TRANSFORMER, "text_encoder", "vae"))
    checkpoint = _read_index(folder)
    for component in (TRANSFORMER, "text_encoder", "vae"):
        component_files(checkpoint, component)
    for component in ("scheduler", "tokenizer"):
        if not (folder / component).is_dir():
            raise FlowBlendingError(f"{folder} has no folder {component}; give a complete diffusers checkpoint.")
    return checkpoint


def open_transformer(source: str, of: Checkpoint) -> tuple[Path, Checkpoint | None]:
    """A transformer to run in the pipeline ``of``: its folder, and the pipeline that it came from, if any.

    Args:
        source: a pipeline folder, a transformer folder (``config.json`` and weights), or a hub id of either.
        of: the pipeline that the transformer is to run in.

    Raises:
        FlowBlendingError: as for ``open_checkpoint``, or the folder holds another kind of model.
    """
    folder = _locate(source, (TRANSFORMER, "vae"))
    checkpoint = _read_index(folder) if (folder / MODEL_INDEX).is_file() else None
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


def check_pair(large: Checkpoint, large_transformer: Path, small_transformer: Path, small: Checkpoint | None) -> None:
    """Refuse a pair that cannot share latents or text.

    What can be seen from the configurations: two VAEs of one architecture and equal statistics count as the same.

    Args:
        large: the pipeline that text encoder, VAE and scheduler are taken from.
        large_transformer: folder of the large transformer.
        small_transformer: folder of the small transformer.
        small: the pipeline that the small transformer came from; None where it was given alone.

    Raises:
        FlowBlendingError: names the first field that differs, and both values.
    """
    if small is not None and small.pipeline != large.pipeline:
        # LTXPipeline and LTXConditionPipeline place frames at different times (rotary coordinates) and draw other
        # noise levels: the transformer of one runs under the other, but on inputs that it was not trained on.
        raise FlowBlendingError(
            f"The large checkpoint is a {large.pipeline} but the small one is a {small.pipeline}, and each gives its "
            f"transformer different inputs; choose two checkpoints of one pipeline class, or name the class that runs "
            f"both: --pipeline {large.pipeline}."
        )
    for field, ours, theirs in _compared(large, large_transformer, small_transformer, small):
        if not _same(ours, theirs):
            raise FlowBlendingError(
                f"The two checkpoints cannot be a pair: {field} is {_show(ours)} in the large one ({large.folder}) "
                f"but {_show(theirs)} in the small one ({small_transformer}); choose two that share latents and text."
            )


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


def vae_factors(checkpoint: Checkpoint) -> tuple[int, int]:
    """Video frames and pixels per latent frame and pixel, as the VAE classes derive them from their configuration."""
    return row_of(checkpoint).vae_factors(checkpoint.config("vae"))


def _locate(source: str, weights: Sequence[str]) -> Path:
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
    _read_index(folder)
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


def _read_index(folder: Path) -> Checkpoint:
    if not (folder / MODEL_INDEX).is_file():
        raise _foreign(folder, "no model_index.json")
    pipeline = read_json(folder / MODEL_INDEX).get("_class_name")
    if pipeline not in pipeline_classes():
        raise FlowBlendingError(
            f"{folder} is a checkpoint of {pipeline}, which is not supported; give one of "
            f"{', '.join(pipeline_classes())}."
        )
    return Checkpoint(folder=folder, pipeline=pipeline)


def _foreign(folder: Path, lacks: str) -> FlowBlendingError:
    if (folder / "config.json").is_file():
        return FlowBlendingError(f"{folder} is one component of a checkpoint, not a whole pipeline; {_EXPECTED}.")
    loose = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt"))
    if loose:
        return FlowBlendingError(f"{folder} holds weights in their authors' format ({loose[0]}); {_EXPECTED}.")
    return FlowBlendingError(f"{folder} is no diffusers checkpoint, as it has {lacks}; {_EXPECTED}.")


def _compared(
    large: Checkpoint, large_transformer: Path, small_transformer: Path, small: Checkpoint | None
) -> Iterator[tuple[str, object, object]]:
    """Fields that must agree, with the value of each side."""
    ours, theirs = (read_json(folder / "config.json") for folder in (large_transformer, small_transformer))
    for field in ("_class_name", "in_channels", "patch_size", "patch_size_t", "text_dim", "caption_channels"):
        yield f"the transformer's {field.strip('_')}", ours.get(field), theirs.get(field)
    # The classes take no out_channels for as many as in_channels.
    of_ours, of_theirs = (config.get("out_channels") or config.get("in_channels") for config in (ours, theirs))
    yield "the transformer's out_channels", of_ours, of_theirs
    if small is None:
        return
    yield from _fields("vae", ("_class_name", "z_dim", "latent_channels", "scaling_factor"), large, small)
    yield "the VAE's compression (frames, pixels)", vae_factors(large), vae_factors(small)
    statistics = zip(vae_statistics(large), vae_statistics(small), strict=True)
    for name, both in zip(("latents_mean", "latents_std"), statistics, strict=True):
        yield f"the number of the VAE's {name}", len(both[0]), len(both[1])
        for channel, (mean, other) in enumerate(zip(*both, strict=True)):
            yield f"the VAE's {name}[{channel}]", mean, other
    yield from _fields("text_encoder", ("model_type", "d_model", "vocab_size"), large, small)


def _fields(
    component: str, names: Sequence[str], large: Checkpoint, small: Checkpoint
) -> Iterator[tuple[str, object, object]]:
    ours, theirs = large.config(component), small.config(component)
    for name in names:
        yield f"the {component}'s {name.strip('_')}", ours.get(name), theirs.get(name)


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        # The same statistics may have been stored in fp32 once and in bf16 (8 bits) once.
        return math.isclose(ours, theirs, rel_tol=2**-8, abs_tol=1e-6)
    return ours == theirs


def _show(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
