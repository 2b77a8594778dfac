"""What a build makes of two checkpoints, and what can be told of them before any weight is fetched or read.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import LARGE, SMALL, PipelineSpec
from flowblending.contracts.manifest import VideoProfile
from flowblending.engine.build.disk import check_download
from flowblending.engine.build.request import BuildRequest
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.runtime.authors import authors_line
from flowblending.runtime.options import Job
from flowblending.runtime.program.shifts import with_shift
from flowblending.runtime.program.sigmas import sigma_grid

if TYPE_CHECKING:
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.checkpoint.source import Source
    from flowblending.export.families.tokenizer import TokenizerFile
    from flowblending.export.graph.exportable import Part


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to build.

    Attributes:
        pipeline: the pipeline's constants.
        pipeline_class: which class that is, and who says so.
        profiles: the sizes.
        parts: every component.
        signals: TeaCache's, by model.
        advice: what to tell the user.
    """

    pipeline: PipelineSpec
    pipeline_class: str
    profiles: tuple[VideoProfile, ...]
    parts: tuple[Part, ...]
    signals: Mapping[str, Part]
    tokenizer: TokenizerFile
    advice: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The two checkpoints of a build, of which only JSON files and headers may be here."""

    large: Source
    small: Source

    @property
    def remote(self) -> bool:
        """Whether weights are still to be fetched."""
        return self.large.remote is not None or self.small.remote is not None

    @property
    def checksums(self) -> Mapping[Path, str]:
        """Of files that are still to be fetched."""
        return {**self.large.checksums, **self.small.checksums}

    def check_download(self, request: BuildRequest) -> None:
        """Refuse weights that there is no room for in the cache of huggingface_hub.

        Raises:
            FlowBlendingError: likewise.
        """
        from flowblending.export.checkpoint.hub import cache_folder
        from flowblending.export.checkpoint.source import LARGE_WEIGHTS, TRANSFORMER_WEIGHTS

        left = {
            request.large: self.large.left(LARGE_WEIGHTS),
            request.small: self.small.left(TRANSFORMER_WEIGHTS),
        }
        names = " and ".join(name for name, count in left.items() if count)
        check_download(sum(left.values()), cache_folder(), names)

    def fetch(self) -> tuple[Path, Path]:
        """The folders of both, with every weight that a build needs."""
        from flowblending.export.checkpoint.source import LARGE_WEIGHTS, TRANSFORMER_WEIGHTS

        return self.large.fetch(LARGE_WEIGHTS), self.small.fetch(TRANSFORMER_WEIGHTS)


def find_sources(request: BuildRequest, scratch: Path) -> Sources:
    """Find both checkpoints: first the configurations of both, then the headers of their weights.

    Args:
        scratch: an empty folder, for as long as the sources are looked at.

    Raises:
        FlowBlendingError: one is not there, or its configurations are not those of a checkpoint that can be built.
    """
    from flowblending.export.checkpoint.checkpoint import open_checkpoint, open_transformer
    from flowblending.export.checkpoint.source import LARGE_WEIGHTS, SMALL_HEADERS, locate
    from flowblending.export.families.pipeline_class import check_class
    from flowblending.export.families.registry import pipeline_classes

    check_class(request.pipeline)
    sources = Sources(
        large=locate(request.large, LARGE_WEIGHTS, scratch / LARGE),
        small=locate(request.small, SMALL_HEADERS, scratch / SMALL),
    )
    classes = pipeline_classes()
    large = open_checkpoint(sources.large.folder, classes, whole=False)
    open_transformer(sources.small.folder, large, classes, whole=False)
    sources.large.read_headers()
    sources.small.read_headers()
    return sources


def make_plan(request: BuildRequest, large_folder: Path, small_folder: Path) -> Plan:
    """What to build of the checkpoints in two folders.

    Raises:
        FlowBlendingError: one cannot be built, or not at the sizes that were asked for, or they cannot be a pair.
    """
    from flowblending.export.families.pipeline_class import describe_class
    from flowblending.export.families.registry import family_of
    from flowblending.export.families.tokenizer import read_tokenizer

    pair = _open_pair(request, large_folder, small_folder)
    family = family_of(pair.large)
    pipeline = family.describe(pair.large)
    pipeline = replace(pipeline, grid=with_shift(pipeline.grid, request.shift))
    profiles = plan_profiles(pipeline, request.size, request.frames)
    folders = {LARGE: pair.large_transformer, SMALL: pair.small_transformer}
    parts = (
        *(family.transformer(pair.large, folder, model) for model, folder in folders.items()),
        *family.parts(pair.large),
    )
    signals = folders if request.teacache else {}
    advice = [family.advise(each) for each in (pair.large, pair.small) if each is not None]
    advice.append(authors_line(pipeline, Job(prompt="", shift=request.shift)))
    return Plan(
        pipeline=pipeline,
        pipeline_class=describe_class(pair.large),
        profiles=profiles,
        parts=parts,
        signals={model: family.signal(folder, f"{model}_signal") for model, folder in signals.items()},
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

    pair = _open_pair(request, sources.large.folder, sources.small.folder)
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


def _open_pair(request: BuildRequest, large_folder: Path, small_folder: Path) -> _OpenPair:
    from flowblending.export.checkpoint.checkpoint import TRANSFORMER, open_checkpoint, open_transformer
    from flowblending.export.families.pair import check_pair
    from flowblending.export.families.pipeline_class import run_with
    from flowblending.export.families.registry import pipeline_classes, row_of

    published = open_checkpoint(large_folder, pipeline_classes())
    able = row_of(published).pipelines
    large = run_with(published, request.pipeline, able)
    small_transformer, small = open_transformer(small_folder, large, pipeline_classes())
    pair = _OpenPair(
        large=large,
        large_transformer=large.folder / TRANSFORMER,
        small_transformer=small_transformer,
        small=None if small is None else run_with(small, request.pipeline, able),
    )
    check_pair(pair.large, pair.large_transformer, pair.small_transformer, pair.small)
    return pair
