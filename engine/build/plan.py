"""What a build makes of two checkpoints, and what can be told of them before any weight is fetched or read.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import LARGE, SMALL, PipelineSpec
from flowblending.contracts.manifest import VideoProfile
from flowblending.engine.build.lora import drift, fit_loras
from flowblending.engine.build.request import BuildRequest
from flowblending.engine.build.sources import Folders, Sources
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.runtime.authors import authors_line
from flowblending.runtime.options import Job
from flowblending.runtime.program.shifts import with_shift
from flowblending.runtime.program.sigmas import sigma_grid

if TYPE_CHECKING:
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.families.tokenizer import TokenizerFile
    from flowblending.export.graph.exportable import Part
    from flowblending.export.lora.fit import Lora


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to build.

    Attributes:
        pipeline: the pipeline's constants.
        pipeline_class: which class that is, and who says so.
        profiles: the sizes.
        parts: every component.
        signals: TeaCache's, by model.
        loras: that are fused, by model.
        advice: what to tell the user.
    """

    pipeline: PipelineSpec
    pipeline_class: str
    profiles: tuple[VideoProfile, ...]
    parts: tuple[Part, ...]
    signals: Mapping[str, Part]
    loras: Mapping[str, Sequence[Lora]]
    tokenizer: TokenizerFile
    advice: tuple[str, ...]


def make_plan(request: BuildRequest, found: Folders) -> Plan:
    """What to build of the checkpoints in these folders.

    Raises:
        FlowBlendingError: one cannot be built, or not at the sizes that were asked for, or they cannot be a pair.
    """
    from flowblending.export.families.pipeline_class import describe_class
    from flowblending.export.families.registry import family_of
    from flowblending.export.families.tokenizer import read_tokenizer

    pair = _open_pair(request, found)
    family = family_of(pair.large)
    pipeline = family.describe(pair.large)
    pipeline = replace(pipeline, grid=with_shift(pipeline.grid, request.shift))
    profiles = plan_profiles(pipeline, request.size, request.frames)
    folders = {LARGE: pair.large_transformer, SMALL: pair.small_transformer}
    loras = fit_loras(request.loras, {model: partial(family.fit_lora, folder) for model, folder in folders.items()})
    parts = (
        *(family.transformer(pair.large, folder, model, loras[model]) for model, folder in folders.items()),
        *family.parts(pair.large),
    )
    signals = folders if request.teacache else {}
    advice = [family.advise(each) for each in (pair.large, pair.small) if each is not None]
    advice += found.left_out
    advice += [authors_line(pipeline, Job(prompt="", shift=request.shift)), drift(loras)]
    return Plan(
        pipeline=pipeline,
        pipeline_class=describe_class(pair.large),
        profiles=profiles,
        parts=parts,
        signals={model: family.signal(folder, f"{model}_signal", loras[model]) for model, folder in signals.items()},
        loras=loras,
        tokenizer=read_tokenizer(pair.large),
        advice=tuple(dict.fromkeys(each for each in advice if each is not None)),
    )


def check_plan(request: BuildRequest, plan: Plan, sources: Sources) -> tuple[str, ...]:
    """Compare the components of the large checkpoint with one another, and the headers of all with their classes.

    Returns:
        Lines about tensors that are left out.

    Raises:
        FlowBlendingError: components do not fit together, or weights not their class, or the scheduler makes no
            noise levels.
    """
    from flowblending.export.checkpoint.together import check_together
    from flowblending.export.families.tokenizer import token_ids

    pair = _open_pair(request, sources.folders)
    check_together(pair.large, token_ids(plan.tokenizer.content))
    _check_scheduler(pair.large, plan.pipeline)
    return tuple(line for part in plan.parts for line in part.check())


def _check_scheduler(checkpoint: Checkpoint, pipeline: PipelineSpec) -> None:
    """Refuse a scheduler whose noise levels are no numbers, or do not fall even in a run of two steps of one token."""
    from flowblending.export.checkpoint.naming import shown

    try:
        with np.errstate(all="ignore"):
            sigma_grid(pipeline.grid, pipeline.solver, 2, 1)
    except UsageError:
        settings = ", ".join(f"{name} {value}" for name, value in asdict(pipeline.grid).items())
        raise FlowBlendingError(
            f"The scheduler of {shown(checkpoint.folder)} gives no noise levels that fall to 0 ({settings}); give a "
            "checkpoint with its family's scheduler."
        ) from None


@dataclass(frozen=True, kw_only=True)
class _OpenPair:
    """Two checkpoints, to be run with the pipeline class that was asked for.

    Attributes:
        small: the pipeline that the small transformer came from; None where it was given alone.
    """

    large: Checkpoint
    large_transformer: Path
    small_transformer: Path
    small: Checkpoint | None


def _open_pair(request: BuildRequest, found: Folders) -> _OpenPair:
    from flowblending.export.checkpoint.checkpoint import TRANSFORMER, open_checkpoint, open_transformer
    from flowblending.export.families.pair import check_pair
    from flowblending.export.families.pipeline_class import run_with
    from flowblending.export.families.registry import pipeline_classes, row_of

    classes = pipeline_classes()
    published = open_checkpoint(found.base, classes, whole=False)
    able = row_of(published).pipelines
    base = run_with(published, request.pipeline, able)

    def transformer(name: str, of: Checkpoint) -> tuple[Path, Checkpoint | None]:
        folder, pipeline = open_transformer(found.models[name], of, classes)
        return folder, None if pipeline is None else run_with(pipeline, request.pipeline, able)

    large_transformer, own = transformer(LARGE, base)
    if found.models[LARGE] != found.base:
        names = ("the pipeline", "the large model")
        check_pair(base, base.folder / TRANSFORMER, large_transformer, own, names)
    open_checkpoint(found.base, classes, transformer=large_transformer)
    large = replace(base, transformer=large_transformer)
    small_transformer, small = transformer(SMALL, large)
    pair = _OpenPair(
        large=large,
        large_transformer=large_transformer,
        small_transformer=small_transformer,
        small=small,
    )
    check_pair(pair.large, pair.large_transformer, pair.small_transformer, pair.small)
    return pair
