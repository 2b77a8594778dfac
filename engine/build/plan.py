"""What a build makes of two checkpoints, and what can be told of them before any weight is fetched or read.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import LARGE, SMALL, PipelineSpec
from flowblending.contracts.manifest import VideoProfile
from flowblending.engine.build.disk import check_download
from flowblending.engine.build.request import BuildRequest
from flowblending.engine.bundle.geometry import plan_profiles

if TYPE_CHECKING:
    from flowblending.export.checkpoint.source import Source
    from flowblending.export.graph.exportable import Part


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to build: the pipeline's constants, sizes, every component, TeaCache's signals by model, the tokenizer."""

    pipeline: PipelineSpec
    profiles: tuple[VideoProfile, ...]
    parts: tuple[Part, ...]
    signals: Mapping[str, Part]
    tokenizer: bytes


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

    sources = Sources(
        large=locate(request.large, LARGE_WEIGHTS, scratch / LARGE),
        small=locate(request.small, SMALL_HEADERS, scratch / SMALL),
    )
    open_transformer(sources.small.folder, open_checkpoint(sources.large.folder, whole=False), whole=False)
    sources.large.read_headers()
    sources.small.read_headers()
    return sources


def make_plan(request: BuildRequest, large_folder: Path, small_folder: Path) -> Plan:
    """What to build of the checkpoints in two folders.

    Raises:
        FlowBlendingError: one cannot be built, or not at the sizes that were asked for.
    """
    from flowblending.export.checkpoint.checkpoint import TRANSFORMER, open_checkpoint, open_transformer
    from flowblending.export.families.registry import family_of
    from flowblending.export.families.t5 import tokenizer_file

    large = open_checkpoint(large_folder)
    large_transformer = large.folder / TRANSFORMER
    small_transformer, _ = open_transformer(small_folder, large)
    family = family_of(large)
    pipeline = family.describe(large)
    profiles = plan_profiles(pipeline, request.size, request.frames)
    parts = (
        family.transformer(large, large_transformer, LARGE),
        family.transformer(large, small_transformer, SMALL),
        *family.parts(large),
    )
    folders = {LARGE: large_transformer, SMALL: small_transformer} if request.teacache else {}
    return Plan(
        pipeline=pipeline,
        profiles=profiles,
        parts=parts,
        signals={model: family.signal(folder, f"{model}_signal") for model, folder in folders.items()},
        tokenizer=tokenizer_file(large),
    )


def check_plan(plan: Plan, sources: Sources) -> tuple[str, ...]:
    """Compare the checkpoints with one another and their headers with their classes.

    Returns:
        Lines about tensors that are left out.

    Raises:
        FlowBlendingError: they cannot be a pair, or the parts of one do not fit together, or its weights not its class.
    """
    from flowblending.export.checkpoint.checkpoint import TRANSFORMER, check_pair, open_checkpoint, open_transformer
    from flowblending.export.checkpoint.together import check_together

    large = open_checkpoint(sources.large.folder)
    folder, small = open_transformer(sources.small.folder, large)
    check_pair(large, large.folder / TRANSFORMER, folder, small)
    check_together(large, plan.tokenizer)
    return tuple(line for part in plan.parts for line in part.check())
