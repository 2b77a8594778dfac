"""Wan 2.1: what is read from a checkpoint, what is refused, and the transformer's graph against the stock class."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from benchmarks.checkpoints import TEXT_DIM, wan_transformer
from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import Source, channels_beside
from flowblending.contracts.graph import LARGE, SMALL, Precision, SigmaGrid
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.families.wan.family import Wan
from flowblending.export.families.wan.transformer import load_transformer
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE, export_and_verify, verify

Checkpoints = Callable[[str], Path]
WAN = Wan()


@pytest.fixture
def altered(checkpoints: Checkpoints, tmp_path: Path) -> Callable[..., Checkpoint]:
    """A copy of the large checkpoint with some settings of one of its files changed."""

    def alter(file: str, **settings: object) -> Checkpoint:
        folder = tmp_path / "altered"
        shutil.copytree(checkpoints("wan") / "large", folder)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return open_checkpoint(str(folder))

    return alter


def test_the_pipeline_is_described_as_diffusers_has_it(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(str(checkpoints("wan") / "large"))
    spec = WAN.describe(checkpoint)
    stock = WanPipeline.from_pretrained(checkpoint.folder)
    assert spec.temporal_factor == stock.vae_scale_factor_temporal
    assert spec.spatial_factor == stock.vae_scale_factor_spatial
    assert list(spec.patch) == list(stock.transformer.config.patch_size)
    assert spec.latent_channels == stock.transformer.config.in_channels
    assert list(spec.latents_mean) == stock.vae.config.latents_mean
    assert list(spec.latents_std) == stock.vae.config.latents_std
    assert (spec.solver, spec.grid) == ("unipc", SigmaGrid(kind="shifted", shift=stock.scheduler.config.flow_shift))
    values = {name: each.default for name, each in inspect.signature(WanPipeline.__call__).parameters.items()}
    assert (spec.height, spec.width, spec.frames) == (values["height"], values["width"], values["num_frames"])
    assert (spec.steps, spec.guidance) == (values["num_inference_steps"], values["guidance_scale"])
    assert spec.text_length == values["max_sequence_length"]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (
            DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
            ("dpm++", SigmaGrid(kind="shifted", shift=5.0)),
        ),
        (FlowMatchEulerDiscreteScheduler(shift=8.0), ("euler", SigmaGrid(kind="shifted", shift=8.0))),
    ],
    ids=["dpm++", "euler"],
)
def test_other_schedulers(
    scheduler: Any, expected: tuple[str, SigmaGrid], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints("wan") / "large", tmp_path / "large")
    scheduler.save_pretrained(tmp_path / "large" / "scheduler")
    index = tmp_path / "large" / "model_index.json"
    entry = {"scheduler": ["diffusers", type(scheduler).__name__]}
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))
    spec = WAN.describe(open_checkpoint(str(tmp_path / "large")))
    assert (spec.solver, spec.grid) == expected


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        (SCHEDULER, {"_class_name": "DDIMScheduler"}, "says that the scheduler is a UniPC.* that of a DDIMScheduler"),
        (SCHEDULER, {"prediction_type": "epsilon"}, "has prediction_type = epsilon, but flow_prediction was expected"),
        (SCHEDULER, {"solver_order": 3}, "has solver_order = 3, but 2 was expected"),
        (SCHEDULER, {"use_dynamic_shifting": True}, "has use_dynamic_shifting = True"),
        ("model_index.json", {"expand_timesteps": True}, "it sets expand_timesteps. and has 16 latent channels"),
        (
            "model_index.json",
            {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
            "Cannot read .*transformer_2/config.json",
        ),
        ("vae/config.json", {"is_residual": True}, "VAE of .* is not that of Wan 2.1"),
    ],
)
def test_what_the_runtime_would_get_wrong_is_refused(
    file: str, settings: dict[str, object], words: str, altered: Callable[..., Checkpoint]
) -> None:
    with pytest.raises(FlowBlendingError, match=words) as caught:
        WAN.describe(altered(file, **settings))
    assert "\n" not in str(caught.value)


def test_a_scheduler_of_another_kind_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints("wan") / "large", tmp_path / "large")
    for file, settings in ((SCHEDULER, {"_class_name": "X"}), ("model_index.json", {"scheduler": ["diffusers", "X"]})):
        path = tmp_path / "large" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(FlowBlendingError, match=r"large samples with X, but UniPC"):
        WAN.describe(open_checkpoint(tmp_path / "large"))


def test_a_boundary_without_a_second_transformer_means_nothing(
    altered: Callable[..., Checkpoint], checkpoints: Checkpoints
) -> None:
    """The newer script that converts Wan writes one for every version."""
    assert WAN.describe(altered("model_index.json", boundary_ratio=0.9)) == WAN.describe(
        open_checkpoint(checkpoints("wan") / "large")
    )


def test_channels_beside_the_latents(altered: Callable[..., Checkpoint], tmp_path: Path) -> None:
    """Those that a transformer takes and does not give: an input of their own, in the order of the pipeline."""
    wan_transformer(1, in_channels=36).save_pretrained(tmp_path / "image")
    graph = load_transformer(tmp_path / "image", LARGE, 24, Precision.FP32)
    assert [(each.name, each.shape[1:2]) for each in graph.spec.inputs[::3]] == [
        ("latents", (16,)),
        ("image_channels", (20,)),
    ]
    given = graph.inputs(graph.verify_sizes[0], torch.Generator().manual_seed(0))
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "image")
    latents, timestep, text, channels = given
    with torch.no_grad():
        (found,) = graph.module(*given)
        expected = stock(torch.cat([latents, channels], dim=1), timestep, text, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    config = {"in_channels": 36, "out_channels": 16}
    checkpoint = altered("transformer/config.json", **config)
    image = dataclasses.replace(checkpoint, pipeline="WanImageToVideoPipeline", takes=(Source.IMAGE,))
    spec = WAN.describe(image)
    assert (spec.latent_channels, spec.authors) == (16, None)
    assert [each.name for each in spec.conditions if each.required] == ["image_channels"]
    assert channels_beside(spec.conditions) == 20
    with pytest.raises(UsageError, match="is shown images or a control, for which there is none"):
        WAN.signal(image.folder / "transformer", "signal")
    path = image.folder / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 33}))
    with pytest.raises(FlowBlendingError, match="takes 33 channels and gives 16, but"):
        WAN.describe(image)


@pytest.mark.parametrize(
    ("layers", "heads", "architecture"),
    [(30, 12, "wan2.1-t2v-1.3b"), (40, 40, "wan2.1-t2v-14b"), (30, 40, None), (2, 2, None)],
)
def test_published_architectures_are_known(
    altered: Callable[..., Checkpoint], layers: int, heads: int, architecture: str | None
) -> None:
    settings = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 128}
    checkpoint = altered("transformer/config.json", **settings)
    assert WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE).architecture == architecture


def test_weights_that_do_not_fit_the_configuration_are_refused(altered: Callable[..., Checkpoint]) -> None:
    checkpoint = altered("transformer/config.json", num_layers=5)
    part = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE)
    with pytest.raises(FlowBlendingError, match=r"transformer.*blocks\.4") as caught:
        part.load(Precision.FP32)
    assert "\n" not in str(caught.value)


def test_the_parts_and_what_they_are_made_of(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(str(checkpoints("wan") / "large"))
    parts = [WAN.transformer(checkpoint, checkpoints("wan") / "small", SMALL), *WAN.parts(checkpoint)]
    assert [part.name for part in parts] == [SMALL, "text_encoder", "vae_first", "vae_next"]
    for part in parts:
        assert {path.suffix for path in part.sources} == {".json", ".safetensors"}
        assert all(path.is_file() for path in part.sources)


CONFIGURATIONS = [
    {"layers": 2, "heads": 2, "head_dim": 12},
    {"layers": 1, "heads": 3, "head_dim": 20, "cross_attn_norm": False, "rope_max_seq_len": 32},
    {"layers": 1, "heads": 1, "head_dim": 32, "freq_dim": 64, "eps": 1e-5, "patch_size": (1, 1, 2)},
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        (CONFIGURATIONS[1], Precision.FP16),
        *((settings, Precision.FP32) for settings in CONFIGURATIONS),
        (CONFIGURATIONS[0], Precision.FP16),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['head_dim']}",
)
def test_the_graph_equals_the_stock_transformer(settings: dict[str, Any], precision: Precision, tmp_path: Path) -> None:
    wan_transformer(7, **settings).save_pretrained(tmp_path / "model")
    made = load_transformer(tmp_path / "model", LARGE, 24, precision)
    assert {sizes["batch"] for sizes in made.verify_sizes} == {1, 2}
    folder = tmp_path / "graph"
    graph = export_graph(made, folder, "")
    parity = verify(made, graph)
    assert parity.relative < TOLERANCE[precision].relative / 4
    model = onnx.load(graph.onnx, load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    layers = settings["layers"]
    assert kinds.count("Attention") == 2 * layers
    assert kinds.count("RotaryEmbedding") == 2 * layers
    assert not {"ScatterND", "GatherND", "Range", "Softmax"} & set(kinds)
    # Compilers refuse rotary tables of a width that only the running graph knows.
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding":
            assert [shapes[name][-1].dim_value for name in node.input[1:3]] == [settings["head_dim"] // 2] * 2
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    if precision is Precision.FP16:
        assert onnx.TensorProto.FLOAT in {kind for name, kind in stored.items() if name.endswith("scale_shift_table")}


@pytest.mark.slow
@pytest.mark.long
def test_a_position_that_is_off_by_one_does_not_pass(checkpoints: Checkpoints, tmp_path: Path) -> None:
    made = load_transformer(checkpoints("wan") / "small", SMALL, 24, Precision.FP16)
    model = made.module.get_submodule("model")
    rotary = model.get_submodule("rope")
    rotary.register_buffer("cos", rotary.get_buffer("cos").roll(1, 0), persistent=False)
    with pytest.raises(FlowBlendingError, match=r"fp16 graph of small differs from torch .*velocity at batch 1"):
        verify(made, export_graph(made, tmp_path, ""))


@pytest.mark.slow
@pytest.mark.long
def test_bf16_keeps_in_fp32_what_diffusers_keeps(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoints("wan") / "large"))
    part = WAN.transformer(checkpoint, checkpoints("wan") / "small", SMALL)
    graph, parity = export_and_verify(part, Precision.BF16, tmp_path, "", lambda _: None)
    assert parity.relative < TOLERANCE[Precision.FP32].relative
    assert graph.spec.inputs[2].shape == ("batch", 512, TEXT_DIM)
    stored = onnx.load(graph.onnx, load_external_data=False).graph.initializer
    kinds = {tensor.name: tensor.data_type for tensor in stored}
    exact = [kind for name, kind in kinds.items() if "time_embedder" in name or "scale_shift_table" in name]
    assert len(exact) >= 5
    assert set(exact) == {onnx.TensorProto.FLOAT}
    assert list(kinds.values()).count(onnx.TensorProto.BFLOAT16) > 20


def test_the_reference_is_called_as_the_pipeline_calls_it(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(str(checkpoints("wan") / "large"))
    made = WAN.transformer(checkpoint, checkpoint.folder / "transformer", LARGE).load(Precision.FP16)
    pipeline = WanPipeline.from_pretrained(checkpoint.folder, torch_dtype=torch.float16)
    latents, timestep, text = made.inputs(made.verify_sizes[1], torch.Generator().manual_seed(0))
    dtype = pipeline.transformer.dtype
    with torch.no_grad():
        expected = pipeline.transformer(latents.to(dtype), timestep.long(), text.to(dtype), return_dict=False)[0]
        assert torch.equal(made.reference(latents, timestep, text)[0], expected.float())
        ours = made.module(latents, timestep, text)[0]
    assert (ours - expected.float()).norm() < TOLERANCE[Precision.FP16].relative * expected.float().norm()
