"""The family's row in the table of families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowblending.contracts.conditions import Source
from flowblending.export.families.model_family import ModelFamily
from flowblending.export.families.original import Original, Shapes

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Family


def _vae_factors(config: Mapping[str, Any]) -> tuple[int, int]:
    halvings = sum(config.get("spatio_temporal_scaling", ()))
    return (
        int(config.get("temporal_compression_ratio") or config.get("patch_size_t", 1) * 2**halvings),
        int(config.get("spatial_compression_ratio") or config.get("patch_size", 1) * 2**halvings),
    )


def _load() -> Family:
    from flowblending.export.families.ltx.family import Ltx

    return Ltx()


def _original(shapes: Shapes, base: Mapping[str, Any]) -> Original:
    from flowblending.export.families.ltx.original import read_original

    return read_original(shapes, base)


LTX = ModelFamily(
    name="ltx",
    pipelines=("LTXPipeline", "LTXConditionPipeline", "LTXImageToVideoPipeline"),
    takes={
        "LTXImageToVideoPipeline": (Source.IMAGE, Source.VIDEO),
        "LTXConditionPipeline": (Source.IMAGE, Source.VIDEO),
    },
    images={"LTXPipeline": "LTXImageToVideoPipeline"},
    always=frozenset({"LTXImageToVideoPipeline"}),
    vae_factors=_vae_factors,
    load=_load,
    original=_original,
)
