"""What reading a checkpoint asks of its model family: which pipelines it covers, and how its VAE compresses.

The table is filled by `flowblending.export.families.registry`, which knows the families; checkpoints know none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.system.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A row of the table of families; needs no torch.

    Attributes:
        name: in manifests and messages.
        pipelines: the diffusers pipeline classes that it covers, as ``model_index.json`` names them.
        vae_factors: from the VAE's configuration to the video frames and pixels per latent frame and pixel, as the VAE
            class derives them.
        load: imports torch and diffusers, and makes what answers all further questions: a ``Family`` of the exporter.
    """

    name: str
    pipelines: tuple[str, ...]
    vae_factors: Callable[[Mapping[str, Any]], tuple[int, int]]
    load: Callable[[], Any]


FAMILIES: Registry[ModelFamily] = Registry("model family", "flowblending.families", ())


def pipeline_classes() -> tuple[str, ...]:
    """Every diffusers pipeline class that some family covers."""
    return tuple(name for row in FAMILIES.rows() for name in row.pipelines)


def family_row(folder: Path, pipeline: str) -> ModelFamily:
    """The row of the family that covers a pipeline class.

    Args:
        folder: of the checkpoint, for the message.
        pipeline: the class.

    Raises:
        FlowBlendingError: none does.
    """
    for row in FAMILIES.rows():
        if pipeline in row.pipelines:
            return row
    raise FlowBlendingError(
        f"{folder} is a checkpoint of {pipeline}, which is not supported; give one of {', '.join(pipeline_classes())}."
    )
