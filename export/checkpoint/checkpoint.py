"""Reading diffusers checkpoints: which files make a component.

Loads neither torch nor diffusers, so that a wrong argument is answered at once and before any download.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import Source
from flowblending.export.checkpoint.fit import quantised
from flowblending.export.checkpoint.hub import EXPECTED
from flowblending.export.checkpoint.model_files import (
    DEVIATION,
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
from flowblending.export.checkpoint.weights_file import AUTHORS_CLASSES

__all__ = [
    "MODEL_INDEX",
    "TRANSFORMER",
    "TRANSFORMER_2",
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
TRANSFORMER_2 = "transformer_2"
MODEL_INDEX = "model_index.json"

COMPONENTS = (TRANSFORMER, "text_encoder", "vae")
"""Those with weights."""

_ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
"""The class of a text encoder by the ``model_type`` in its configuration."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A diffusers pipeline folder.

    Attributes:
        folder: holds ``model_index.json`` and one folder per component.
        pipeline: the class that it is run with; one that some family covers.
        published: the class that ``model_index.json`` names, where that is another one.
        transformer: folder of one that stands in the place of the pipeline's own; None for its own.
        takes: the images and videos that what is built of it is to take beside text.
    """

    folder: Path
    pipeline: str
    published: str | None = None
    transformer: Path | None = None
    takes: tuple[Source, ...] = ()

    def place(self, component: str) -> Path:
        """The folder of a component."""
        if component == TRANSFORMER and self.transformer is not None:
            return self.transformer
        return self.folder / component

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component (``transformer``, ``vae``, ``scheduler``, ...)."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.place(component) / name)

    def has(self, component: str) -> bool:
        """Whether the folder holds a component; of a pipeline that only gives a transformer, some may be left out."""
        return (self.place(component) / "config.json").is_file()

    @property
    def has_second(self) -> bool:
        """Whether there is a second transformer; one that is absent stands in the index as [null, null]."""
        return read_json(self.folder / MODEL_INDEX).get(TRANSFORMER_2) not in (None, [None, None])

    @property
    def timestep_per_token(self) -> bool:
        """Whether the transformer is told a timestep for every token, as that of Wan 2.2 TI2V-5B is."""
        return bool(read_json(self.folder / MODEL_INDEX).get("expand_timesteps"))

    def has_weights(self, component: str) -> bool:
        """Whether a component that is there has weights."""
        return weights_listing({path.name for path in self.place(component).iterdir()}) is not None


def open_checkpoint(
    folder: str | Path,
    classes: Collection[str] | None = None,
    *,
    whole: bool = True,
    transformer: Path | None = None,
) -> Checkpoint:
    """A whole pipeline.

    Args:
        folder: with ``model_index.json``; see `flowblending.export.checkpoint.source` for those of the hub.
        classes: pipeline classes that are supported; None takes any.
        whole: look at the files of weights, too, and not only at configurations.
        transformer: folder of one in the place of the pipeline's own, of which the configuration alone is needed then.

    Raises:
        FlowBlendingError: it is no diffusers pipeline, one of another class, quantised, or incomplete.
    """
    checkpoint = replace(_read_index(Path(folder), classes), transformer=transformer)
    folder = checkpoint.folder
    for component in COMPONENTS:
        check_there(checkpoint.place(component) / "config.json")
    for component in ("scheduler", "tokenizer"):
        if not (folder / component).is_dir():
            raise FlowBlendingError(f"{shown(folder)} has no folder {component}; give a complete diffusers checkpoint.")
    transformers = (TRANSFORMER_2,) if checkpoint.has_second else ()
    _check_configurations(checkpoint, (*COMPONENTS, *transformers, "scheduler"))
    for component in COMPONENTS if whole else ():
        component_files(checkpoint, component)
    return checkpoint


def open_transformer(
    source: str | Path, of: Checkpoint, classes: Collection[str] | None = None, *, whole: bool = True
) -> tuple[Path, Checkpoint | None]:
    """A transformer to run in the pipeline ``of``: its folder, and the pipeline that it came from, if any.

    Args:
        source: a pipeline folder, which may lack what a transformer alone does not need, a transformer folder
            (``config.json`` and weights), or a folder with one of the name ``transformer``.
        of: the pipeline that the transformer is to run in.
        classes: as for ``open_checkpoint``.
        whole: look at the file of weights, too.

    Raises:
        FlowBlendingError: as for ``open_checkpoint``, or the folder holds another kind of model.
    """
    folder = Path(source)
    checkpoint = _read_index(folder, classes) if (folder / MODEL_INDEX).is_file() else None
    found = folder / TRANSFORMER if checkpoint is not None else check_transformer(folder)
    check_there(found / "config.json")
    config = read_json(found / "config.json")
    expected, actual = of.config(TRANSFORMER).get("_class_name"), config.get("_class_name")
    if not isinstance(expected, str):
        raise FlowBlendingError(
            f"{shown(of.place(TRANSFORMER))}/config.json names no class (_class_name); give a complete diffusers "
            "checkpoint."
        )
    if actual in AUTHORS_CLASSES:
        raise _foreign(found, "")
    if actual != expected:
        raise FlowBlendingError(
            f"{shown(found)} holds a {actual or 'model of no diffusers class'}, but {shown(of.folder)} needs a "
            f"{expected}; give a {of.pipeline} folder or the transformer folder of one."
        )
    if checkpoint is not None:
        there = [*COMPONENTS, *([TRANSFORMER_2] if checkpoint.has_second else [])]
        _check_configurations(checkpoint, [name for name in there if checkpoint.has(name)])
    _refuse_quantised(found, config)
    if whole:
        model_files(found)
    return found, checkpoint


def check_transformer(folder: Path) -> Path:
    """The folder of a transformer that was given without its pipeline: this one, or ``transformer`` in it.

    Raises:
        FlowBlendingError: it is neither.
    """
    inner = folder / TRANSFORMER
    found = inner if (inner / "config.json").is_file() else folder
    if not (found / "config.json").is_file():
        raise _foreign(folder, "neither model_index.json nor a transformer's config.json")
    return found


def component_files(checkpoint: Checkpoint, component: str) -> tuple[Path, ...]:
    """The files that determine a component that has weights: configuration, index, weights."""
    return model_files(checkpoint.place(component))


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
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if not numbers or not all(math.isfinite(each) for each in numbers) or (name == DEVIATION and min(numbers) <= 0):
            raise FlowBlendingError(
                f"The {name} of {shown(folder)} is {str(values)[:60]}, but a finite number for each channel was "
                f"expected{', above 0' if name == DEVIATION else ''}; give a complete diffusers checkpoint."
            )
        found.append(numbers)
    return found[0], found[1]


def positive(config: Mapping[str, Any], field: str, default: float, where: Path) -> float:
    """A number above 0 of a component's configuration.

    Args:
        config: what it says.
        field: of it.
        default: where it says nothing.
        where: the component's folder, for the error.

    Raises:
        FlowBlendingError: it is something else.
    """
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise FlowBlendingError(
            f"The configuration of {shown(where)} has {field} = {value!r}, but a number above 0 was expected; give a "
            "complete diffusers checkpoint."
        )
    return value


def _read_index(folder: Path, classes: Collection[str] | None) -> Checkpoint:
    if not (folder / MODEL_INDEX).is_file():
        raise _foreign(folder, "no model_index.json")
    index = read_json(folder / MODEL_INDEX)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise FlowBlendingError(f"{shown(folder / MODEL_INDEX)} names no pipeline class (_class_name); {EXPECTED}.")
    if classes is not None and pipeline not in classes:
        raise FlowBlendingError(
            f"{shown(folder)} is a checkpoint of {pipeline}, which is not supported; give one of {', '.join(classes)}."
        )
    return Checkpoint(folder=folder, pipeline=pipeline)


def _check_configurations(checkpoint: Checkpoint, components: Sequence[str]) -> None:
    """Refuse components that are quantised, or of another class than the index says."""
    index = read_json(checkpoint.folder / MODEL_INDEX)
    for component in components:
        config = checkpoint.config(component)
        _refuse_quantised(checkpoint.place(component), config)
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
    if kind in AUTHORS_CLASSES or (loose and not config.is_file()):
        return FlowBlendingError(
            f"{name} holds weights in their authors' format ({listed(loose) or kind}); {EXPECTED} of the same model "
            f"in diffusers' format, which often has a name like {folder.name if name == str(folder) else name}"
            "-Diffusers, or the file of the transformer and --base PIPELINE."
        )
    if config.is_file():
        return FlowBlendingError(f"{name} is one component of a checkpoint, not a whole pipeline; {EXPECTED}.")
    return FlowBlendingError(f"{name} is no diffusers checkpoint, as it has {lacks}; {EXPECTED}.")
