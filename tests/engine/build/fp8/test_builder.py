"""fp8 from the checkpoint on: bundles that run on ONNX Runtime, and real plans for GPUs that are not here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer, wan_vace_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL, ExportedGraph, Precision
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import fused_attention, kernel_count, product_types, products
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.request import named_models
from flowblending.engine.bundle.bundle import Bundle
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.graph.audit import audit
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from tests.conftest import Build
from tests.support.diffusers_reference import Floats, relative_error
from tests.support.plans import RTX, ignore, needs_rtx
from tests.support.store_process import Recorder

pytestmark = pytest.mark.slow

STEPS = 4


def final_latents(bundle: Bundle) -> Floats:
    pipeline = Pipeline(bundle=bundle, device=HostDevice())
    job = Job(prompt="a red ball", steps=STEPS, seed=11)
    program = compile_job(job, bundle.manifest)
    sample = pipeline.sample(
        program, TorchNormal(11).normal((1, *program.latent_shape)), pipeline.encode(job, program, ignore)
    )
    return sample.latents.numpy().copy()


@pytest.mark.long
def test_a_bundle_is_calibrated_runs_and_is_used_again(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, pair, out = build("wan"), checkpoints("wan"), tmp_path / "bundle"
    shutil.copytree(plain.folder, out)
    request = BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")),
        out=out,
        size="32x48",
        frames=9,
        precision="small=fp8",
        backend="onnxruntime",
        targets=(),
        fp8=Fp8Options(steps=STEPS, size="32x32", frames=5),
        cache=tmp_path / "cache",
    )
    console = Recorder()
    bundle = build_bundle(request, console)
    bundle.verify(recompute=True)
    # Two blocks of ten layers, of which none can be kept; the seven others are outside.
    assert any(line.startswith("small: 20 of 27 layers in fp8") and "else fp32" in line for line in console.lines)
    assert (
        "calibration: 4 prompts, L2 S1 L1, large x 24, small x 8, 32x32, 5 frames, prompts the built-in ones"
        in console.lines
    )
    assert bundle.manifest.components[SMALL].spec.precision is Precision.FP8
    assert bundle.manifest.components[LARGE].spec.precision is Precision.FP32
    # A quarter of the fp32 bytes for most of the weights.
    assert bundle.path(SMALL).with_suffix(".onnx.data").stat().st_size < 0.6 * (
        plain.path(SMALL).with_suffix(".onnx.data").stat().st_size
    )
    error = relative_error(final_latents(bundle), final_latents(plain))
    assert 1e-5 < error < 0.05
    bundle_graph = bundle.path(SMALL).read_bytes()
    content = json.loads((out / "fp8_calibration.json").read_text())
    small = content["models"]["small"]
    assert (content["schedule"], content["steps"], len(content["prompts"])) == ("L2 S1 L1", STEPS, 4)
    assert (content["size"], content["frames"]) == ("32x32", 5)
    assert small["weights"] == bundle.manifest.components[SMALL].key["weights"]
    steps = compile_job(Job(prompt="", steps=STEPS), bundle.manifest).steps
    assert small["timesteps"] == [step.timestep for step in steps if step.model == SMALL]
    # Ten layers a block, and what enters its two attentions.
    assert len(small["layers"]) == 2 * (10 + 2 * 3)
    # The key covers the table itself, of the models in fp8; every part of it makes another entry of the cache.
    keys = {name: bundle.manifest.components[name].key for name in (LARGE, SMALL)}
    assert keys[SMALL]["ranges"] == hashlib.sha256((out / "fp8_calibration.json").read_bytes()).hexdigest()
    assert keys[LARGE]["calibration"] == "none" != keys[SMALL]["calibration"]
    # Another bundle: nothing is calibrated or built.
    console = Recorder()
    second = build_bundle(dataclasses.replace(request, out=tmp_path / "second"), console)
    # What is always told: the class, the tokenizer, and the disk that weights of the bundle's own take.
    told = ("pipeline: ", "tokenizer: ", "disk: ")
    assert [
        line for line in console.lines if not line.startswith(told) and not line.endswith("taken from the cache")
    ] == []
    assert sum(line.startswith("calibration: 4 prompts, L2 S1 L1") for line in console.lines) == 1
    assert second.manifest.components == bundle.manifest.components
    assert (second.folder / "fp8_calibration.json").read_bytes() == (out / "fp8_calibration.json").read_bytes()
    second.verify(recompute=True)
    # Again, without the cache.
    request = dataclasses.replace(request, cache=None)
    console = Recorder()
    again = build_bundle(request, console)
    assert [line for line in console.lines if not line.startswith(told) and "reused" not in line] == []
    assert again.manifest == bundle.manifest
    # What is refused before anything is exported, and leaves the bundle as it was.
    given = tmp_path / "given.json"
    right, small["weights"] = small["weights"], "0" * 64
    given.write_text(json.dumps(content))
    refused: list[tuple[Fp8Options, str]] = [
        (Fp8Options(calibration=given), r"given\.json was made with other weights of small"),
        (Fp8Options(keep="small=1"), "small has 2 blocks, and keeping 1 at either end leaves none to quantise"),
        (Fp8Options(steps=3, schedule="LLL"), "The schedule L3 never runs small, so it cannot be calibrated on it"),
    ]
    for options, message in refused:
        console = Recorder()
        with pytest.raises(FlowBlendingError, match=message):
            build_bundle(dataclasses.replace(request, fp8=options), console)
        assert [line for line in console.lines if not line.startswith(told)] == []
    again.verify(recompute=True)
    # A file of these weights: the prompts are encoded, and nothing is sampled.
    small["weights"] = right
    given.write_text(json.dumps(content))
    console = Recorder()
    other = build_bundle(dataclasses.replace(request, fp8=Fp8Options(calibration=given)), console)
    assert "small: rebuilt, calibration changed" in console.lines
    assert any(line.endswith(f"from {given}") for line in console.lines)
    assert other.path(SMALL).read_bytes() == bundle_graph


PROFILE = ShapeProfile(
    {"batch": Range.fixed(1), "frames": Range.fixed(2), "height": Range.fixed(4), "width": Range.fixed(6)}
)


def bf16_graph(kind: str, checkpoint: Path, out: Path, head_dim: int = 64) -> ExportedGraph:
    """Three blocks of heads as wide as those of real models, exported in bf16."""
    from flowblending.export.families.ltx.family import Ltx
    from flowblending.export.families.wan.family import Wan
    from flowblending.export.graph.trace import export_graph

    folder = out / "model"
    if kind == "wan":
        wan_transformer(7, layers=3, head_dim=head_dim, ffn=256).save_pretrained(folder)
    elif kind == "wan-vace":
        wan_vace_transformer(7, layers=3, control=(0, 1), head_dim=head_dim, ffn=256).save_pretrained(folder)
    else:
        ltx_transformer(7, layers=3, head_dim=head_dim, caption_channels=TEXT_DIM).save_pretrained(folder)
    part = (Ltx() if kind == "ltx" else Wan()).transformer(open_checkpoint(str(checkpoint)), folder, LARGE)
    return export_graph(part.load(Precision.BF16), out / "bf16", "")


@needs_rtx
@pytest.mark.parametrize(
    ("kind", "layers", "in_fp8", "attention"),
    [
        ("wan", 30, 10, 6),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("ltx", 30, 10, 6), ("wan-vace", 53, 21, 10))),
    ],
)
def test_real_plans_compute_in_fp8(
    kind: str, layers: int, in_fp8: int, attention: int, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Blocks of a control are as deep as the video's blocks before them, and have two projections more."""
    from flowblending.export.fp8.layers import block_layers, quantise
    from flowblending.export.graph.trace import read_graph, write_graph

    plain = bf16_graph(kind, checkpoints(kind) / "large", tmp_path)
    traced = read_graph(plain)
    names = [layer.name for layer in block_layers(traced.model.graph)]
    assert len(names) == layers
    graph = write_graph(quantise(traced, dict.fromkeys(names, 5.0), 1), tmp_path / "fp8", "")
    sizes = {"batch": 1, "frames": 2, "height": 4, "width": 6}
    found = audit(graph.onnx, sizes)
    assert (found.layers["fp8"], found.attention, found.scatters) == (in_fp8, {"bf16": attention}, 0)
    request = PlanRequest(
        library=RTX,
        onnx=graph.onnx,
        spec=graph.spec,
        profiles=(PROFILE,),
        targets=("sm89", "sm120"),
        out=tmp_path / "large.plan",
    )
    info = compile_plan(request, ignore)
    # As the plan's own listing says: the middle block, and nothing else.
    inner = {name for name in names if "blocks.1." in name}
    fp8 = {name for name, types in product_types(request.out).items() if types == {"fp8"}}
    assert {name.partition(".")[2] for name in fp8} == inner
    # Layers of one input are one product: docs/architecture.md builds on it. In fp8 they are at full width.
    merged = [{name.partition(".")[2] for name in product} for product in products(request.out)]
    for name in names:
        module, _, projection = name.rpartition(".")
        if projection == "to_v" and name not in inner:
            together = {f"{module}.{each}" for each in ("to_q", "to_k", "to_v")[module.endswith("attn2") :]}
            assert any(together <= product for product in merged), module
    # As the builder says: the bytes of these weights are not doubled again.
    assert info.weights_bytes is not None
    assert info.weights_bytes < 1.05 * graph.data.stat().st_size < plain.data.stat().st_size
    # The two attentions of each block, each one kernel.
    assert fused_attention(request.out) == found.attention_types.keys()
    assert len(found.attention_types) == attention
    # The compiler itself finds fp8 in it.
    with pytest.raises(FlowBlendingError, match="fp8_e4m3"):
        compile_plan(dataclasses.replace(request, targets=("sm80",)), ignore)


def test_a_plan_that_does_not_tell_is_no_proof(tmp_path: Path) -> None:
    path = tmp_path / "large.plan"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    assert product_types(path) == {}
    assert fused_attention(path) == frozenset()
    assert products(path) == frozenset()
    assert kernel_count(path) == 0
