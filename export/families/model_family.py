"""What is known of a model family before torch is loaded: its name, its pipelines, and where the rest is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowblending.contracts.conditions import Source
from flowblending.export.families.original import Original, Shapes

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Family


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A row of the table of families.

    Attributes:
        name: in manifests and messages.
        pipelines: the diffusers pipeline classes that it covers, as ``model_index.json`` names them.
        vae_factors: from the VAE's configuration to the video frames and pixels per latent frame and pixel, as the VAE
            class derives them.
        takes: by pipeline class, the images and videos that can be built in, and
        images: the class that takes them, where the checkpoints' own does not;
        always: the classes that run no video without, whose bundles take them without being asked.
        experts: whether its pipelines run a second transformer for low noise, if a checkpoint has one.
        load: imports torch and diffusers, and makes what answers all further questions.
        original: from the names and shapes of a transformer in a file of weights, and the configuration of the
            transformer of the pipeline that it is to run in, to diffusers' names and configuration. None where files
            of weights are not supported.
    """

    name: str
    pipelines: tuple[str, ...]
    vae_factors: Callable[[Mapping[str, Any]], tuple[int, int]]
    load: Callable[[], Family]
    original: Callable[[Shapes, Mapping[str, Any]], Original] | None = None
    takes: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    always: frozenset[str] = frozenset()
    experts: bool = False
