"""Reading diffusers checkpoints: which files make a component, whether two can be a pair.

Loads neither torch nor diffusers, so that a wrong argument is answered at once and before any download.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.fit import quantised
from flowblending.export.checkpoint.hub import EXPECTED
from flowblending.export.checkpoint.model_files import (
    STATISTICS,
    WEIGHT_SUFFIXES,
    check_there,
    model_files,
    read_json,
    read_tensor,
    weights_listing,
    weights_sha256,
)
from flowblending.export.checkpoint.naming import listed, shown
from flowblending.export.checkpoint.quantised import quantised_by_config
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

COMPONENTS = (TRANSFORMER, "text_encoder", "vae")
"""Those with weights."""

_AUTHORS_CLASSES = ("WanModel", "VaceWanModel")
"""What the authors of a model call its transformer in a config.json of their own."""

_ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
"""The class of a text encoder by the ``model_type`` in its configuration."""


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

    def has(self, component: str) -> bool:
        """Whether the folder holds a component; of a pipeline that only gives a transformer, some may be left out."""
        return (self.folder / component / "config.json").is_file()

    def has_weights(self, component: str) -> bool:
        """Whether a component that is there has weights."""
        return weights_listing({path.name for path in (self.folder / component).iterdir()}) is not None


def open_checkpoint(folder: str | Path, *, whole: bool = True) -> Checkpoint:
    """A whole pipeline.

    Args:
        folder: with ``model_index.json``; see `flowblending.export.checkpoint.source` for those of the hub.
        whole: look at the files of weights, too, and not only at configurations.

    Raises:
        FlowBlendingError: it is no diffusers pipeline, one of another class, quantised, or incomplete.
    """
    checkpoint = _read_index(Path(folder))
    folder = checkpoint.folder
    for component in COMPONENTS:
        check_there(folder / component / "config.json")
    for component in ("scheduler", "tokenizer"):
        if not (folder / component).is_dir():
            raise FlowBlendingError(f"{shown(folder)} has no folder {component}; give a complete diffusers checkpoint.")
    _check_configurations(checkpoint, (*COMPONENTS, "scheduler"))
    for component in COMPONENTS if whole else ():
        component_files(checkpoint, component)
    return checkpoint


def open_transformer(source: str | Path, of: Checkpoint, *, whole: bool = True) -> tuple[Path, Checkpoint | None]:
    """A transformer to run in the pipeline ``of``: its folder, and the pipeline that it came from, if any.

    Args:
        source: a pipeline folder, which may lack what a transformer alone does not need, a transformer folder
            (``config.json`` and weights), or a folder with one of the name ``transformer``.
        of: the pipeline that the transformer is to run in.
        whole: look at the file of weights, too.

    Raises:
        FlowBlendingError: as for ``open_checkpoint``, or the folder holds another kind of model.
    """
    folder = Path(source)
    checkpoint = _read_index(folder) if (folder / MODEL_INDEX).is_file() else None
    inner = folder / TRANSFORMER
    found = inner if checkpoint is not None or (inner / "config.json").is_file() else folder
    if checkpoint is None and not (found / "config.json").is_file():
        raise _foreign(folder, "neither model_index.json nor a transformer's config.json")
    check_there(found / "config.json")
    config = read_json(found / "config.json")
    expected, actual = of.config(TRANSFORMER).get("_class_name"), config.get("_class_name")
    if actual in _AUTHORS_CLASSES:
        raise _foreign(found, "")
    if actual != expected:
        raise FlowBlendingError(
            f"{shown(found)} holds a {actual or 'model of no diffusers class'}, but {shown(of.folder)} needs a "
            f"{expected}; give a {of.pipeline} folder or the transformer folder of one."
        )
    if checkpoint is not None:
        _check_configurations(checkpoint, [name for name in COMPONENTS if checkpoint.has(name)])
    _refuse_quantised(found, config)
    if whole:
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
                f"The two checkpoints cannot be a pair: {field} is {_show(ours)} in the large one "
                f"({shown(large.folder)}) but {_show(theirs)} in the small one ({shown(small_transformer)}); "
                "choose two that share latents and text."
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
    for name in STATISTICS:
        values = config.get(name) or read_tensor(model_files(folder), name)
        if values is None:
            raise FlowBlendingError(f"{shown(folder)} holds no {name}; give a complete diffusers checkpoint.")
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]


def vae_factors(checkpoint: Checkpoint) -> tuple[int, int]:
    """Video frames and pixels per latent frame and pixel, as the VAE classes derive them from their configuration."""
    return row_of(checkpoint).vae_factors(checkpoint.config("vae"))


def _read_index(folder: Path) -> Checkpoint:
    if not (folder / MODEL_INDEX).is_file():
        raise _foreign(folder, "no model_index.json")
    index = read_json(folder / MODEL_INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in pipeline_classes():
        raise FlowBlendingError(
            f"{shown(folder)} is a checkpoint of {pipeline}, which is not supported; give one of "
            f"{', '.join(pipeline_classes())}."
        )
    # A component that is absent stands in the index as [null, null]. Without a second transformer, a boundary between
    # the two means nothing: the script that converts Wan writes one for every version.
    for field in ("transformer_2", "expand_timesteps"):
        if index.get(field) not in (None, [None, None], False):
            raise FlowBlendingError(
                f"{shown(folder)} is a Wan 2.2 pipeline (it sets {field}), but only Wan 2.1 is supported; "
                "give a Wan 2.1 T2V checkpoint."
            )
    return Checkpoint(folder=folder, pipeline=pipeline)


def _check_configurations(checkpoint: Checkpoint, components: Sequence[str]) -> None:
    """Refuse components that are quantised, or of another class than the index says."""
    index = read_json(checkpoint.folder / MODEL_INDEX)
    for component in components:
        config = checkpoint.config(component)
        _refuse_quantised(checkpoint.folder / component, config)
        entry = index.get(component)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        own = config.get("_class_name") or _ENCODERS.get(str(config.get("model_type")))
        if named is not None and own is not None and named != own:
            raise FlowBlendingError(
                f"{MODEL_INDEX} of {shown(checkpoint.folder)} says that the {component} is a {named}, but the "
                f"component's own configuration is that of a {own}; correct the one that is wrong."
            )


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    method = quantised_by_config(config)
    if method is not None:
        raise quantised(shown(folder), method, "as its config.json says")


def _foreign(folder: Path, lacks: str) -> FlowBlendingError:
    name, config = shown(folder), folder / "config.json"
    kind = read_json(config).get("_class_name") if config.is_file() else None
    loose = sorted(path.name for path in folder.iterdir() if path.name.endswith(WEIGHT_SUFFIXES))
    if kind in _AUTHORS_CLASSES or (loose and not config.is_file()):
        return FlowBlendingError(
            f"{name} holds weights in their authors' format ({listed(loose) or kind}); {EXPECTED} of the same model "
            f"in diffusers' format, which often has a name like {folder.name if name == str(folder) else name}"
            "-Diffusers."
        )
    if config.is_file():
        return FlowBlendingError(f"{name} is one component of a checkpoint, not a whole pipeline; {EXPECTED}.")
    return FlowBlendingError(f"{name} is no diffusers checkpoint, as it has {lacks}; {EXPECTED}.")


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
    if small.has("vae"):
        yield from _compared_vaes(large, small)
    if small.has("text_encoder"):
        yield from _fields("text_encoder", ("model_type", "d_model", "vocab_size"), large, small)


def _compared_vaes(large: Checkpoint, small: Checkpoint) -> Iterator[tuple[str, object, object]]:
    yield from _fields("vae", ("_class_name", "z_dim", "latent_channels", "scaling_factor"), large, small)
    yield "the VAE's compression (frames, pixels)", vae_factors(large), vae_factors(small)
    if not all(small.config("vae").get(name) for name in STATISTICS) and not small.has_weights("vae"):
        return
    statistics = zip(vae_statistics(large), vae_statistics(small), strict=True)
    for name, both in zip(STATISTICS, statistics, strict=True):
        yield f"the number of the VAE's {name}", len(both[0]), len(both[1])
        for channel, (mean, other) in enumerate(zip(*both, strict=True)):
            yield f"the VAE's {name}[{channel}]", mean, other


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
