"""The models of a build: their checkpoints opened and compared, and the names and letters that they get.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.models import EXPERTS, Model
from flowblending.engine.build.request import BuildRequest, ModelRequest
from flowblending.engine.build.sources import Folders

if TYPE_CHECKING:
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.graph.exportable import Family, Part
    from flowblending.export.lora.fit import Lora

_PREFERRED = ("H", "W")
"""Letters of experts where they are free: high noise, and loW, because L is the large model."""


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model's checkpoint, to be run with the pipeline class that was asked for.

    Attributes:
        request: what was asked for.
        transformers: one folder, or two experts'.
        boundary: of experts; see `flowblending.contracts.models.Model`.
        checkpoint: the pipeline that the transformer came from; None where it was given alone.
    """

    request: ModelRequest
    transformers: tuple[Path, ...]
    boundary: float | None
    checkpoint: Checkpoint | None

    @property
    def components(self) -> tuple[str, ...]:
        """Names of its engines."""
        name = self.request.name
        return (name,) if self.boundary is None else tuple(f"{name}{end}" for end in EXPERTS)


@dataclass(frozen=True, kw_only=True)
class OpenModels:
    """Every model of a build. ``first`` is the pipeline whose text encoder, VAE and scheduler all are run with."""

    first: Checkpoint
    models: tuple[OpenModel, ...]

    @property
    def transformers(self) -> dict[str, Path]:
        """The folder of every engine's transformer, in their order."""
        return {
            name: folder
            for model in self.models
            for name, folder in zip(model.components, model.transformers, strict=True)
        }

    def part(self, family: Family, folder: Path, name: str, loras: tuple[Lora, ...]) -> Part:
        """A transformer as a component.

        What is published of an architecture was measured on one model for all noise, and is not true of its experts.
        """
        part = family.transformer(self.first, folder, name, loras)
        return replace(part, architecture=None) if name.endswith(EXPERTS) else part


def open_models(request: BuildRequest, found: Folders) -> OpenModels:
    """Open the models' checkpoints, and compare each with the first, and that with the pipeline that it is run in.

    Raises:
        FlowBlendingError: one cannot be built, or they share no latents or no text.
    """
    from flowblending.export.checkpoint.checkpoint import TRANSFORMER, open_checkpoint, open_transformer
    from flowblending.export.families.pair import check_pair
    from flowblending.export.families.pipeline_class import run_with, with_conditions
    from flowblending.export.families.registry import pipeline_classes, row_of

    classes = pipeline_classes()
    published = open_checkpoint(found.base, classes, whole=False)
    able = row_of(published).pipelines
    base = with_conditions(run_with(published, request.pipeline, able), request.conditions)

    def opened(model: ModelRequest, of: Checkpoint) -> OpenModel:
        transformer, pipeline = open_transformer(found.models[model.name], of, classes)
        # A transformer is run as the first model's is, whatever class its own index names: LTX-Video 0.9.5, published
        # as LTXPipeline, stands beside 0.9.7, published as LTXConditionPipeline.
        asked = base.pipeline if pipeline is not None and pipeline.pipeline in able else request.pipeline
        checkpoint = None if pipeline is None else run_with(pipeline, asked, able)
        return _opened(model, transformer, checkpoint)

    name = request.first.name
    model = opened(request.first, base)
    if found.models[name] != found.base:
        names = ("the pipeline", f"the {name} model")
        check_pair(base, base.folder / TRANSFORMER, model.transformers[0], model.checkpoint, names)
    open_checkpoint(found.base, classes, transformer=model.transformers[0])
    first, models = replace(base, transformer=model.transformers[0]), [model]
    for each in request.models[1:]:
        model, names = opened(each, first), (f"the {name} one", f"the {each.name} one")
        check_pair(first, models[0].transformers[0], model.transformers[0], model.checkpoint, names)
        models.append(model)
    return OpenModels(first=first, models=tuple(models))


def _opened(request: ModelRequest, transformer: Path, checkpoint: Checkpoint | None) -> OpenModel:
    from flowblending.export.checkpoint.experts import expert_boundary, expert_folders
    from flowblending.export.families.registry import check_experts

    if checkpoint is not None:
        check_experts(checkpoint)
    boundary = expert_boundary(checkpoint)
    transformers: tuple[Path, ...] = (transformer,)
    if checkpoint is not None and boundary is not None:
        transformers = expert_folders(transformer, checkpoint)
    return OpenModel(request=request, transformers=transformers, boundary=boundary, checkpoint=checkpoint)


def named(models: Sequence[OpenModel]) -> tuple[Model, ...]:
    """The models as schedules know them. Experts that were given no letters get free ones."""
    taken = {letter for model in models for letter in (model.request.letter, *model.request.expert_letters)}
    found = []
    for model in models:
        letters = "" if model.boundary is None else model.request.expert_letters or _free(taken)
        taken |= set(letters)
        found.append(
            Model(
                name=model.request.name,
                letter=model.request.letter,
                components=model.components,
                boundary=model.boundary,
                letters=tuple(letters),
                sampling=model.request.sampling,
            )
        )
    return tuple(found)


def _free(taken: set[str]) -> str:
    free = [letter for letter in string.ascii_uppercase if letter not in {*taken, *_PREFERRED}]
    return "".join(letter if letter not in taken else free.pop(0) for letter in _PREFERRED)
