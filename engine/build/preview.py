"""The map from latents to small pictures that a bundle keeps: of the cache, or fitted on the checkpoint's VAE.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowblending import FlowBlendingError
from flowblending.contracts.graph import DECODERS
from flowblending.contracts.manifest import PREVIEW, BundleFile, PreviewFile
from flowblending.engine.bundle.bundle import Bundle, describe_file
from flowblending.engine.store.entry import damaged_file
from flowblending.engine.store.store import Order, take_over
from flowblending.system.checksum import ChecksumCache

if TYPE_CHECKING:
    from flowblending.engine.build.components import ComponentBuilder
    from flowblending.engine.build.plan import Plan


def obtain_preview(builder: ComponentBuilder, plan: Plan, old: Bundle | None) -> PreviewFile | None:
    """Put the map into the bundle; None, and a warning, where the VAE gives nothing that a map could be fitted on.

    It is that of the bundle that was there, of the cache, or a new one.

    It hangs on the VAE alone, whatever the decoder is compiled to, so that all bundles of a VAE share one entry of the
    cache and components keep their keys.
    """
    from flowblending.export.graph.trace import exporter_versions
    from flowblending.export.preview.fit import REVISION, fit_preview

    decoder = tuple(part for part in plan.parts if part.name in DECODERS)
    console, pipeline = builder.console, plan.pipeline

    key = {
        "weights": builder.weights(decoder[0]),
        "graph": ", ".join([f"preview {REVISION}", *(part.revision for part in (*plan.vae_encoder, *decoder))]),
        "pipeline": f"{pipeline.pipeline}, decode_timestep {pipeline.decode_timestep}",
        "versions": exporter_versions(),
    }

    def make(work: Path) -> BundleFile:
        same = None if old is None else _same(old, key)
        if old is not None and same is not None:
            take_over([same], old.folder, work)
            console.log("preview: reused, nothing changed")
            return same
        with console.phase("preview: fitting") as report:
            fit = fit_preview(pipeline, plan.vae_encoder, decoder, report)
        console.log(f"preview: explains {fit.explained:.0%} of the variance of small decoded pictures")
        np.save(work / PREVIEW, fit.matrix)
        return describe_file(work, work / PREVIEW)

    order = Order(
        kind=BundleFile,
        name="preview",
        key=key,
        family=pipeline.family,
        source=builder.request.first.source,
        into=builder.folder,
        make=make,
    )
    try:
        made, found = builder.store.obtain(order)
    except FlowBlendingError as error:
        console.warn(f"No previews of videos in the making: {error}")
        return None
    if found:
        console.log("preview: taken from the cache")
    return PreviewFile(file=made, key=key)


def _same(old: Bundle, key: Mapping[str, str]) -> BundleFile | None:
    """The map of an old bundle, if it was made of the same and is whole."""
    found = old.manifest.preview
    if found is None or found.key != key:
        return None
    return found.file if damaged_file(old.folder, [found.file], ChecksumCache()) is None else None
