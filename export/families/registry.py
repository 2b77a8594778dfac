"""Every model family, and which of them covers a checkpoint. Loads neither torch nor diffusers before `family_of`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.checkpoint.model_family import FAMILIES, ModelFamily, family_row
from flowblending.export.families.ltx.row import LTX
from flowblending.export.families.wan.row import WAN

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Family

__all__ = ["FAMILIES", "family_of", "row_of"]

for row in (WAN, LTX):
    FAMILIES.register(row)


def row_of(checkpoint: Checkpoint) -> ModelFamily:
    """The row of the family that covers the checkpoint's pipeline class.

    Raises:
        FlowBlendingError: none does.
    """
    return family_row(checkpoint.folder, checkpoint.pipeline)


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that covers the checkpoint's pipeline class.

    Raises:
        FlowBlendingError: none does.
    """
    family: Family = row_of(checkpoint).load()
    return family
