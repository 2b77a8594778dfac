"""Every model family, and which of them covers a checkpoint. Loads neither torch nor diffusers before `family_of`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.ltx.row import LTX
from flowblending.export.families.model_family import ModelFamily
from flowblending.export.families.wan.row import WAN
from flowblending.system.registry import Registry

if TYPE_CHECKING:
    from flowblending.export.checkpoint.checkpoint import Checkpoint
    from flowblending.export.graph.exportable import Family

FAMILIES: Registry[ModelFamily] = Registry("model family", "flowblending.families", (WAN, LTX))


def pipeline_classes() -> tuple[str, ...]:
    """Every diffusers pipeline class that some family covers."""
    return tuple(name for row in FAMILIES.rows() for name in row.pipelines)


def row_of(checkpoint: Checkpoint) -> ModelFamily:
    """The row of the family that covers the checkpoint's pipeline class.

    Raises:
        FlowBlendingError: none does.
    """
    for row in FAMILIES.rows():
        if checkpoint.pipeline in row.pipelines:
            return row
    raise FlowBlendingError(
        f"{shown(checkpoint.folder)} is a checkpoint of {checkpoint.pipeline}, which is not supported; give one of "
        f"{', '.join(pipeline_classes())}."
    )


def check_experts(checkpoint: Checkpoint) -> None:
    """Refuse a second transformer that the checkpoint's pipeline does not run.

    Raises:
        FlowBlendingError: likewise.
    """
    if checkpoint.has_second and not row_of(checkpoint).experts:
        able = [name for row in FAMILIES.rows() if row.experts for name in row.pipelines]
        raise FlowBlendingError(
            f"{shown(checkpoint.folder)} has a second transformer (transformer_2), which {' and '.join(able)} may have "
            f"and {checkpoint.pipeline} does not run; correct its model_index.json."
        )


def vae_factors(checkpoint: Checkpoint) -> tuple[int, int]:
    """Video frames and pixels per latent frame and pixel, as the VAE classes derive them from their configuration."""
    return row_of(checkpoint).vae_factors(checkpoint.config("vae"))


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that covers the checkpoint's pipeline class.

    Raises:
        FlowBlendingError: none does.
    """
    return row_of(checkpoint).load()
