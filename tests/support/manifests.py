"""A small hand-made bundle: real files and a real manifest, without engines that run."""

from __future__ import annotations

from pathlib import Path

from flowblending.contracts.graph import GraphSpec, PipelineSpec, Precision, SigmaGrid, TensorSpec
from flowblending.contracts.manifest import MANIFEST, Component, Flops, Geometry, Manifest, VideoProfile
from flowblending.contracts.models import Model, by_letter
from flowblending.engine.bundle.bundle import bundle_id, describe_file

PIPELINE = PipelineSpec(
    family="wan",
    pipeline="WanPipeline",
    latent_channels=16,
    temporal_factor=4,
    spatial_factor=8,
    patch=(1, 2, 2),
    latents_mean=(0.0,) * 16,
    latents_std=(1.0,) * 16,
    text_length=512,
    clean_prompt=True,
    grid=SigmaGrid(kind="shifted", shift=3.0),
    solver="unipc",
    steps=50,
    guidance=5.0,
    batched_guidance=False,
    negative_prompt="",
    frame_rate=16.0,
    width=832,
    height=480,
    frames=81,
    early=0.4,
    late=0.2,
)
MODELS = (
    Model(name="large", letter="L", components=("large",)),
    Model(name="small", letter="S", components=("small",)),
)
"""Of most bundles."""
PAIR = by_letter(MODELS)
LATENT = ("batch", 16, "frames", "height", "width")


def spec(name: str) -> GraphSpec:
    """A transformer's inputs and outputs, shortened."""
    return GraphSpec(
        name=name,
        precision=Precision.FP32,
        inputs=(TensorSpec(name="latents", dtype="float32", shape=LATENT),),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=LATENT),),
    )


def write(folder: Path, *, backend: str = "onnxruntime", targets: tuple[str, ...] = ()) -> Manifest:
    """Write a bundle of toy engines and a tokenizer."""
    folder.mkdir(parents=True)
    components = {}
    for name, flops in (("large", 1000), ("small", 100), ("text_encoder", 10), ("vae", 10)):
        path = folder / f"{name}.onnx"
        path.write_bytes(name.encode() * 100)
        components[name] = Component(
            spec=spec(name),
            backend=backend,
            backend_version="1.0",
            targets=targets,
            files=(describe_file(folder, path),),
            key={"weights": name},
            flops=Flops(linear=(flops, 0), attention=(flops // 10, 0, 0)),
        )
    (folder / "tokenizer.json").write_text("{}")
    profiles = (VideoProfile.fixed(Geometry(width=64, height=32, frames=9, latent_shape=(16, 3, 4, 8))),)
    manifest = Manifest(
        id=bundle_id(PIPELINE, profiles, components, b"{}", MODELS),
        pipeline=PIPELINE,
        models=MODELS,
        profiles=profiles,
        components=components,
        tokenizer=(describe_file(folder, folder / "tokenizer.json"),),
        rebuild=("fb-build-engines", "--large", "a b", "--small", "c", "--out", str(folder)),
        created_by="flowblending 0.1.0",
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest
