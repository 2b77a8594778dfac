"""Every model family, and which of them covers a checkpoint."""

from __future__ import annotations

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.ltx.family import Ltx
from flowblending.export.families.wan.family import Wan
from flowblending.export.graph.exportable import Family

FAMILIES: tuple[Family, ...] = (Wan(), Ltx())


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that covers the checkpoint's pipeline class.

    Raises:
        FlowBlendingError: none does.
    """
    for family in FAMILIES:
        if checkpoint.pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise FlowBlendingError(
        f"{shown(checkpoint.folder)} is a checkpoint of {checkpoint.pipeline}, which is not supported; "
        f"give one of {known}."
    )
