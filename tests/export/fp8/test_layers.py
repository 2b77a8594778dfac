"""fp8 layers in a graph: numbers against E4M3 written out, bytes on disk, and which layers are left alone."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision, TensorSpec
from flowblending.export.fp8 import layers as fp8
from flowblending.export.fp8.layers import check_kept, fp8_scale, kept_blocks
from flowblending.export.graph.audit import audit
from flowblending.export.graph.trace import read_graph, write_graph

WIDTH = 64
Floats = npt.NDArray[np.float32]

# E4M3 as its specification has it: a sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinity, one NaN.
POSITIVE = np.array([m * 2.0**-9 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:-1])


def through_fp8(values: npt.NDArray[np.floating], scale: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Quantise and dequantise: to the nearest number, ties to the even code, and the largest for what lies beyond."""
    size = np.abs(np.asarray(values, np.float64) / scale)
    above = np.searchsorted(POSITIVE, size).clip(1, len(POSITIVE) - 1)
    low, high = POSITIVE[above - 1], POSITIVE[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    return np.asarray(np.sign(values) * np.where(up, high, low) * scale)


def blocks(folder: Path, count: int = 3, precision: Precision = Precision.FP32) -> ExportedGraph:
    """x [batch, 64] through a layer outside the blocks, then two layers of one input in each block, then another."""
    kind = TensorProto.FLOAT if precision is Precision.FP32 else TensorProto.BFLOAT16
    dtype = np.dtype(np.float32) if precision is Precision.FP32 else np.dtype(ml_dtypes.bfloat16)
    generator = np.random.default_rng(0)
    weights: dict[str, npt.NDArray[np.generic]] = {}
    nodes, names, value = [], ["model.embed"], "h"
    nodes.append(helper.make_node("Cast", ["x"], ["h"], to=kind))
    for block in range(count):
        names += [f"model.blocks.{block}.attn1.to_q", f"model.blocks.{block}.attn1.to_k"]
    for name in [*names, "model.proj_out"]:
        weights[f"{name}.w"] = (generator.standard_normal((WIDTH, WIDTH)) / 8).astype(dtype)
    nodes.append(helper.make_node("MatMul", [value, "model.embed.w"], ["e"], name="model.embed"))
    value = "e"
    for query, key in zip(names[1::2], names[2::2], strict=True):
        nodes += [helper.make_node("MatMul", [value, f"{each}.w"], [each], name=each) for each in (query, key)]
        nodes.append(helper.make_node("Add", [query, key], [f"{query}.sum"]))
        value = f"{query}.sum"
    nodes.append(helper.make_node("MatMul", [value, "model.proj_out.w"], ["p"], name="model.proj_out"))
    nodes.append(helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT))
    inner = [name for node in nodes for name in node.output if name != "y"]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info(name, kind, ["batch", WIDTH]) for name in inner],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / "large.onnx", save_as_external_data=True, location="large.onnx.data")
    tensor = TensorSpec(name="x", dtype="float32", shape=("batch", WIDTH))
    spec = GraphSpec(
        name="large",
        precision=precision,
        inputs=(tensor,),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", WIDTH)),),
    )
    return ExportedGraph(spec=spec, onnx=folder / "large.onnx", opset=23, weights_sha256="0", versions={})


def quantise(graph: ExportedGraph, amax: dict[str, float], keep: int, folder: Path) -> ExportedGraph:
    """From file to file."""
    return write_graph(fp8.quantise(read_graph(graph), amax, keep), folder, "0")


def ranges(count: int, amax: float) -> dict[str, float]:
    return {f"blocks.{block}.attn1.{each}": amax for block in range(count) for each in ("to_q", "to_k")}


def weights(graph: ExportedGraph) -> dict[str, Floats]:
    stored = onnx.load(graph.onnx).graph.initializer
    return {each.name: numpy_helper.to_array(each).astype(np.float32) for each in stored}


def run(graph: ExportedGraph, x: Floats) -> Floats:
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def test_the_graph_computes_what_e4m3_gives(tmp_path: Path) -> None:
    plain, amax = blocks(tmp_path / "plain", 1), 3.0
    x = np.random.default_rng(1).standard_normal((50, WIDTH)).astype(np.float32)
    known = weights(plain)
    entering = x @ known["model.embed.w"]
    # Some values are clipped, some are too small for E4M3, most are neither.
    assert np.abs(entering).max() > amax
    scale = fp8_scale(np.float32(amax))
    quantised = through_fp8(entering, scale)
    expected = np.zeros_like(quantised)
    for name in ("to_q", "to_k"):
        weight = known[f"model.blocks.0.attn1.{name}.w"]
        expected += quantised @ through_fp8(weight, fp8_scale(np.abs(weight).max(axis=0)))
    expected = expected @ known["model.proj_out.w"]
    found = run(quantise(plain, ranges(1, amax), 0, tmp_path / "fp8"), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(expected - run(plain, x)) > 1e-2 * np.linalg.norm(expected)


def test_weights_take_a_byte_each_and_the_ends_stay_as_they_are(tmp_path: Path) -> None:
    plain = blocks(tmp_path / "plain", 4, Precision.BF16)
    graph = quantise(plain, ranges(4, 5.0), 1, tmp_path / "fp8")
    assert graph.spec.precision is Precision.FP8
    stored = {each.name: each for each in onnx.load(graph.onnx, load_external_data=False).graph.initializer}
    narrow = [name for name, each in stored.items() if each.data_type == TensorProto.FLOAT8E4M3FN and each.dims]
    assert sorted(narrow) == [f"blocks.{block}.attn1.{name}.weight" for block in (1, 2) for name in ("to_k", "to_q")]
    for name in narrow:
        assert {entry.key: entry.value for entry in stored[name].external_data}["length"] == str(WIDTH * WIDTH)
    # Six layers of two bytes a weight and four of one; the rest is scales, and far below a kilobyte a layer.
    size = graph.data.stat().st_size
    assert plain.data.stat().st_size >= 10 * 2 * WIDTH**2
    assert 6 * 2 * WIDTH**2 + 4 * WIDTH**2 <= size < (6 * 2 + 4) * WIDTH**2 + 4000
    found = audit(graph.onnx, {"batch": 7})
    assert found.layers == {"bf16": 6, "fp8": 4}
    assert found.share("fp8") == 0.4
    onnx.checker.check_model(str(graph.onnx))
    assert ExportedGraph.read(graph.onnx).spec == graph.spec


def test_layers_of_one_input_and_range_share_its_quantised_values(tmp_path: Path) -> None:
    plain = blocks(tmp_path / "plain", 2)

    def count(amax: dict[str, float], name: str) -> int:
        graph = onnx.load(quantise(plain, amax, 0, tmp_path / name).onnx, load_external_data=False).graph
        return sum(node.op_type == "QuantizeLinear" for node in graph.node)

    assert count(ranges(2, 2.0), "same") == 2
    assert count(ranges(2, 2.0) | {"blocks.1.attn1.to_k": 1.0}, "other") == 3


@pytest.mark.parametrize(
    ("count", "kept"), [(1, 0), (2, 0), (3, 1), (4, 1), (13, 1), (28, 2), (30, 2), (40, 3), (48, 4)]
)
def test_how_many_blocks_are_kept(count: int, kept: int) -> None:
    assert kept_blocks(count) == kept
    check_kept("large", count, kept)


def test_what_cannot_be_quantised_is_told(tmp_path: Path) -> None:
    plain = blocks(tmp_path / "plain", 3)
    for keep in (2, 99):
        with pytest.raises(UsageError, match=rf"large has 3 blocks, and keeping {keep} .* give --fp8-keep 1 or less"):
            quantise(plain, ranges(3, 1.0), keep, tmp_path / "fp8")
    amax = ranges(3, 1.0)
    del amax["blocks.1.attn1.to_k"]
    with pytest.raises(FlowBlendingError, match=r"no range for blocks\.1\.attn1\.to_k of large; calibrate again"):
        quantise(plain, amax, 1, tmp_path / "fp8")
    # The layers of the ends need none.
    quantise(plain, {name: 1.0 for name in ranges(3, 1.0) if "blocks.1." in name}, 1, tmp_path / "fp8")


def test_scales_are_bf16_numbers_that_nothing_exceeds() -> None:
    amax = np.abs(np.random.default_rng(0).standard_normal(1000).astype(np.float32)) * 100
    amax[:3] = 0.0, 448.0, 1e-30
    scale = fp8_scale(amax)
    assert (scale == scale.astype(ml_dtypes.bfloat16)).all()
    assert (scale[1:].astype(np.float64) * 448 >= amax[1:]).all()
    assert (scale[1:].astype(np.float64) * 448 <= amax[1:] * (1 + 2**-7)).all()
    assert list(scale[:2]) == [1.0, 1.0]
