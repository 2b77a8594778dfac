"""The family's row in the table of families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowblending.contracts.conditions import Source
from flowblending.export.families.model_family import ModelFamily
from flowblending.export.families.original import Original, Shapes

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Family


SKYREELS = "SkyReelsV2ImageToVideoPipeline"
IMAGE_TO_VIDEO = ("WanImageToVideoPipeline", SKYREELS)
"""The classes that make videos of their first frame."""


def _vae_factors(config: Mapping[str, Any]) -> tuple[int, int]:
    # The published configurations predate these two settings.
    return int(config.get("scale_factor_temporal", 4)), int(config.get("scale_factor_spatial", 8))


def _load() -> Family:
    from flowblending.export.families.wan.family import Wan

    return Wan()


def _original(shapes: Shapes, base: Mapping[str, Any]) -> Original:
    from flowblending.export.families.wan.original import read_original

    return read_original(shapes, base)


WAN = ModelFamily(
    name="wan",
    pipelines=("WanPipeline", "WanVACEPipeline", *IMAGE_TO_VIDEO),
    takes={
        "WanPipeline": (Source.VIDEO,),
        "WanVACEPipeline": (Source.IMAGE, Source.VIDEO, Source.MASK),
        **dict.fromkeys(IMAGE_TO_VIDEO, (Source.IMAGE,)),
    },
    always=frozenset({"WanVACEPipeline", *IMAGE_TO_VIDEO}),
    vae_factors=_vae_factors,
    load=_load,
    original=_original,
    experts=True,
)
