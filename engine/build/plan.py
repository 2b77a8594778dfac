"""What a build makes of its checkpoints, and what can be told of them before any weight is fetched or read.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import channels_beside
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.manifest import VideoProfile
from flowblending.contracts.models import Model
from flowblending.contracts.tiling import Tiling
from flowblending.engine.build.lora import drift, fit_loras
from flowblending.engine.build.models import named, open_models
from flowblending.engine.build.request import BuildRequest
from flowblending.engine.build.sources import Folders, Sources
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.engine.bundle.vae_tiling import OFF, read_tiling
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
        models: what schedules choose between.
        profiles: the sizes.
        vae_tiling: the tiles that the VAE decoder is compiled for, if it is for some.
        parts: every component.
        signals: TeaCache's, by engine.
        vae_encoder: what previews are fitted with, beside the decoder.
        loras: that are fused, by engine.
        advice: what to tell the user.
    """

    pipeline: PipelineSpec
    pipeline_class: str
    models: tuple[Model, ...]
    profiles: tuple[VideoProfile, ...]
    vae_tiling: Tiling | None
    parts: tuple[Part, ...]
    signals: Mapping[str, Part]
    vae_encoder: tuple[Part, ...]
    loras: Mapping[str, Sequence[Lora]]
    tokenizer: TokenizerFile
    advice: tuple[str, ...]


def make_plan(request: BuildRequest, found: Folders) -> Plan:
    """What to build of the checkpoints in these folders.

    Raises:
        FlowBlendingError: one cannot be built, or not at the sizes that were asked for, or they cannot be one bundle.
    """
    from flowblending.export.families.pipeline_class import describe_class, run_as_the_first
    from flowblending.export.families.registry import family_of
    from flowblending.export.families.tokenizer import read_tokenizer

    opened = open_models(request, found)
    first = opened.first
    family = family_of(first)
    pipeline = family.describe(first)
    batched = pipeline.batched_guidance if request.batched_guidance is None else request.batched_guidance
    pipeline = replace(pipeline, grid=with_shift(pipeline.grid, request.shift), batched_guidance=batched)
    profiles, asked = plan_profiles(pipeline, request.size, request.frames), request.vae_tiling
    transformers = opened.transformers
    fits = {name: partial(family.fit_lora, folder) for name, folder in transformers.items()}
    loras = fit_loras(request.loras, fits, {each.request.name: each.components for each in opened.models})
    parts = (
        *(opened.part(family, folder, name, loras[name]) for name, folder in transformers.items()),
        *family.parts(first),
    )
    signals = transformers if request.teacache else {}
    advice = [family.advise(each.checkpoint) for each in opened.models if each.checkpoint is not None]
    advice += [
        run_as_the_first(each.checkpoint, first, each.request.name)
        for each in opened.models[1:]
        if each.checkpoint is not None and request.pipeline is None
    ]
    advice += found.left_out
    advice += [authors_line(pipeline, Job(prompt="", shift=request.shift)), drift(loras)]
    return Plan(
        pipeline=pipeline,
        pipeline_class=describe_class(first),
        models=named(opened.models),
        profiles=profiles,
        vae_tiling=None if asked in (None, OFF) else read_tiling(asked, pipeline),
        parts=parts,
        signals={name: family.signal(folder, f"{name}_signal", loras[name]) for name, folder in signals.items()},
        vae_encoder=family.vae_encoder(first),
        loras=loras,
        tokenizer=read_tokenizer(first),
        advice=tuple(dict.fromkeys(each for each in advice if each is not None)),
    )


def check_plan(request: BuildRequest, plan: Plan, sources: Sources) -> tuple[str, ...]:
    """Compare the components of the first checkpoint with one another, and the headers of all with their classes.

    Returns:
        Lines about tensors that are left out.

    Raises:
        FlowBlendingError: components do not fit together, or weights not their class, or the scheduler makes no
            noise levels.
    """
    from flowblending.export.checkpoint.together import check_together
    from flowblending.export.families.tokenizer import token_ids

    first = open_models(request, sources.folders).first
    check_together(first, token_ids(plan.tokenizer.content), beside=channels_beside(plan.pipeline.conditions))
    _check_scheduler(first, plan.pipeline)
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
