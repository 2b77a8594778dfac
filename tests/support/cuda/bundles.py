"""Bundles of TensorRT plans for the stand-in, made of bundles that ONNX Runtime runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from flowblending.contracts.graph import streams_weights
from flowblending.contracts.manifest import MANIFEST, Component
from flowblending.engine.backends.backend import PlanInfo
from flowblending.engine.bundle.bundle import Bundle, describe_file, open_bundle
from flowblending.engine.bundle.geometry import shape_profiles
from flowblending.engine.bundle.plan_profiles import compiled_profiles
from tests.support.cuda import tensorrt_stand_in

SCRATCH = 1 << 20
"""Bytes that every context takes."""


def plans_of(
    bundle: Bundle, folder: Path, *, targets: tuple[str, ...] = ("sm89",), weight_streaming: bool = False
) -> Bundle:
    """A bundle whose plans run the engines of another, which has to stay where it is.

    Args:
        weight_streaming: whether those of transformers and text encoder are as with the option of that name.
    """
    folder.mkdir(parents=True)
    manifest = bundle.manifest
    for file in (*manifest.tokenizer, *([] if manifest.preview is None else [manifest.preview.file])):
        shutil.copyfile(bundle.folder / file.path, folder / file.path)
    components = {
        name: _plan(bundle, name, folder, targets, streams=weight_streaming and streams_weights(name))
        for name in manifest.components
    }
    changed = manifest.model_copy(update={"components": components, "signals": {}, "calibration": None})
    (folder / MANIFEST).write_text(changed.model_dump_json())
    return open_bundle(folder)


def _plan(bundle: Bundle, name: str, folder: Path, targets: tuple[str, ...], *, streams: bool) -> Component:
    manifest, path = bundle.manifest, folder / f"{name}.plan"
    component = manifest.components[name]
    pipeline = replace(manifest.pipeline, batched_guidance=True)  # both guidance branches, in one call or in two
    shapes = shape_profiles(name, pipeline, manifest.profiles, tiling=manifest.vae_tiling)
    profiles = []
    for each in shapes:
        profiles.append({spec.name: [list(shape) for shape in each.shapes(spec)] for spec in component.spec.inputs})
    tensorrt_stand_in.write_plan(
        path,
        onnx=bundle.path(name),
        spec=component.spec,
        profiles=profiles,
        scratch=SCRATCH,
        weights=component.engine_bytes,
        weight_streaming=streams,
    )
    info = PlanInfo(
        bytes=path.stat().st_size,
        weights_bytes=component.engine_bytes,
        scratch_bytes=SCRATCH,
        layers=1,
        seconds=0.0,
        version="11.4.0",
        profile_scratch=(SCRATCH,) * len(shapes),
    )
    return component.model_copy(
        update={
            "backend": "tensorrt",
            "backend_version": info.version,
            "targets": targets,
            "files": (describe_file(folder, path),),
            "profiles": compiled_profiles(shapes, info),
            "weights_bytes": info.weights_bytes,
            "weight_streaming": streams,
        }
    )
