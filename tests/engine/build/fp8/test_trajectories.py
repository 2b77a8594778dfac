"""The trajectories of a calibration: which model meets what, in step with the runtime's own program."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import text_conditions
from flowblending.contracts.fp8_calibration import summarise
from flowblending.contracts.graph import Dim, ExportedGraph, GraphSpec, Precision, TensorSpec
from flowblending.contracts.manifest import Geometry, Manifest, VideoProfile
from flowblending.engine.build.fp8.loader import Graph
from flowblending.engine.build.fp8.trajectories import (
    RangesRequest,
    Trajectories,
    TrajectoryRanges,
    measure,
    sample_ranges,
)
from flowblending.export.fp8.observe import observe
from flowblending.export.graph.trace import read_graph
from flowblending.export.graph.weight_inputs import write_weight_inputs
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from tests.support.manifests import MODELS, PIPELINE
from tests.support.plans import ignore

SHAPE = (16, 3, 4, 8)
LAYER = "blocks.0.ffn"
PROMPTS = ("a cat", "a dog runs")


def tensor(name: str, *shape: Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


LATENT: tuple[Dim, ...] = ("batch", 16, "frames", "height", "width")
INPUTS = (tensor("latents", *LATENT), tensor("timestep", "batch"), tensor("text", "batch", 512, 4))


def save(folder: Path, spec: GraphSpec, nodes: list[onnx.NodeProto], kinds: dict[str, int]) -> ExportedGraph:
    def values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(each.name, kinds.get(each.dtype, 1), each.shape) for each in specs]

    stored = [
        numpy_helper.from_array(np.eye(1, dtype=np.float32), "weight"),
        numpy_helper.from_array(np.array([-1, 1]), "column"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([-1, 1, 1, 1, 1]), "whole"),
        numpy_helper.from_array(np.array(0, np.float32), "nothing"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "toy", values(spec.inputs), values(spec.outputs), [each for each in stored if each.name in used]
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{spec.name}.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return ExportedGraph(spec=spec, onnx=path, opset=23, weights_sha256="", versions={})


def transformer(folder: Path, name: str) -> Graph:
    """A layer that gets the timestep alone; velocity = -latents, into which the text goes with no weight."""
    outputs = (tensor("velocity", *LATENT),)
    nodes = [
        helper.make_node("Reshape", ["timestep", "column"], ["t"]),
        helper.make_node("MatMul", ["t", "weight"], ["m"], name=f"model.{LAYER}"),
        helper.make_node("ReduceMean", ["text"], ["s"]),
        helper.make_node("Reshape", ["m", "whole"], ["w"]),
        helper.make_node("Add", ["w", "s"], ["ws"]),
        helper.make_node("Mul", ["ws", "nothing"], ["z"]),
        helper.make_node("Sub", ["z", "latents"], ["velocity"]),
    ]
    spec = GraphSpec(name=name, precision=Precision.FP32, inputs=INPUTS, outputs=outputs)
    found = observe(read_graph(save(folder / "plain", spec, nodes, {})), 100.0)
    assert found.rows == ((LAYER,),)
    graph = write_weight_inputs(found.graph, folder)
    assert not graph.weights
    return Graph(onnx=graph.onnx, spec=graph.spec)


def request(folder: Path, *, schedule: str = "LSL", steps: int | None = 10, sample: bool = True) -> RangesRequest:
    """Toy graphs; the text encoder repeats each token's number."""
    spec = GraphSpec(
        name="text_encoder",
        precision=Precision.FP32,
        inputs=(tensor("ids", "batch", 512, dtype="int64"),),
        outputs=(tensor("text", "batch", 512, 4),),
    )
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "last"], ["u"]),
        helper.make_node("Concat", ["u"] * 4, ["text"], axis=-1),
    ]
    encoder = save(folder, spec, nodes, {"int64": TensorProto.INT64})
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "cat": 3, "dog": 4, "runs": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return RangesRequest(
        pipeline=dataclasses.replace(PIPELINE, conditions=text_conditions(512, 4, mask=False)),
        models=MODELS,
        geometry=Geometry(width=64, height=32, frames=9, latent_shape=SHAPE),
        graphs={
            "text_encoder": Graph(onnx=encoder.onnx, spec=spec),
            **{name: transformer(folder, name) for name in ("large", "small")},
        },
        hints={},
        tokenizer=folder / "tokenizer.json",
        trajectories=Trajectories(jobs=tuple(Job(prompt=each) for each in PROMPTS), schedule=schedule, steps=steps),
        sample=sample,
    )


def timesteps(schedule: str) -> list[tuple[str, float]]:
    """Model and timestep of every step, as fb-run would have them."""
    profiles = (VideoProfile.fixed(Geometry(width=64, height=32, frames=9, latent_shape=SHAPE)),)
    manifest = Manifest.model_construct(
        id="",
        pipeline=PIPELINE,
        models=MODELS,
        profiles=profiles,
        components={},
        tokenizer=(),
        rebuild=(),
        created_by="",
    )
    program = compile_job(Job(prompt="", steps=10, schedule=schedule), manifest)
    return [(step.model, step.timestep) for step in program.steps]


def amax(measured: TrajectoryRanges, model: str) -> float:
    observed = measured.models[model]
    return summarise([[LAYER]], observed.ranges, observed.timesteps, weights="", margin=1.0).layers[LAYER].amax


def test_each_model_meets_its_own_timesteps_and_both_branches(tmp_path: Path) -> None:
    doings: list[str] = []
    found = sample_ranges(request(tmp_path), doings.append)
    assert (found.schedule, found.steps, found.guidance) == ("L4 S4 L2", 10, 5.0)
    for model in ("large", "small"):
        steps = [timestep for each, timestep in timesteps("LSL") if each == model]
        # Each step of both prompts with both guidance branches, in the order of the steps.
        assert found.models[model].timesteps == tuple(each for each in steps for _ in range(4))
        assert found.models[model].ranges[:, 0, 1].tolist() == pytest.approx(list(found.models[model].timesteps))
    assert doings[0] == "encoding the prompts"
    assert doings[1:3] == ["step 1 of 10, large, prompt 1 of 2", "step 1 of 10, large, prompt 2 of 2"]
    text = found.conditions["text"]
    assert text.shape == (4, 512, 4)
    assert sorted(text[:, :3, 0].tolist()) == [[0, 0, 0], [0, 0, 0], [2, 3, 0], [2, 4, 5]]


def test_a_stage_needs_a_smaller_range_than_all_steps(tmp_path: Path) -> None:
    """The layer's values grow with the timestep, so what is right for all steps wastes range in the middle ones."""
    staged, uniform = sample_ranges(request(tmp_path), ignore), sample_ranges(request(tmp_path, schedule="SSS"), ignore)
    every = [timestep for _, timestep in timesteps("SSS")]
    middle = [timestep for model, timestep in timesteps("LSL") if model == "small"]
    assert amax(uniform, "small") == pytest.approx(max(every), rel=1e-5)
    assert amax(staged, "small") == pytest.approx(max(middle), rel=1e-5)
    assert amax(staged, "small") < 0.95 * amax(uniform, "small")
    assert set(uniform.models) == {"small"}


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = measure(request(tmp_path, sample=False), ignore)
    assert not found.models
    assert set(found.conditions) == {"text"}
    with pytest.raises(UsageError, match="add up to 3 steps, but 10"):
        measure(request(tmp_path, schedule="L1 S2"), ignore)
    wrong = request(tmp_path)
    (tmp_path / "small.onnx").write_bytes(b"")
    with pytest.raises(FlowBlendingError, match=r"cannot load .*small\.onnx"):
        measure(wrong, ignore)
