"""Small ONNX graphs with external weights, each with a numpy oracle; for the tests of all back ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from flowblending.contracts.graph import Dim, ExportedGraph, GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.protocol import Range, ShapeProfile

WIDTH = 64
FloatArray = npt.NDArray[np.float32]

PROFILE = ShapeProfile({"batch": Range(min=1, opt=1, max=2), "tokens": Range(min=4, opt=8, max=16)})

_TYPES = {
    Precision.FP32: TensorProto.FLOAT,
    Precision.FP16: TensorProto.FLOAT16,
    Precision.FP16_MIXED: TensorProto.FLOAT16,
    Precision.BF16: TensorProto.BFLOAT16,
}


def linear(folder: Path, name: str = "large", *, seed: int = 0) -> ExportedGraph:
    """``y = softmax(x @ weight + bias)`` of fp32 [batch, tokens, 64]; both weights are external."""
    generator = np.random.default_rng(seed)
    weights = {
        "weight": generator.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "bias": generator.standard_normal(WIDTH).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["y"], axis=-1),
    ]
    return _save(folder, name, nodes, inputs=("x",), shape=("batch", "tokens", WIDTH), weights=weights)


def linear_oracle(folder: Path, name: str, x: FloatArray) -> FloatArray:
    """What `linear` computes, from the weights in its file."""
    model = onnx.load(folder / f"{name}.onnx")
    weight, bias = (numpy_helper.to_array(each) for each in model.graph.initializer)
    return _softmax(x @ weight + bias)


def attention(folder: Path, precision: Precision, *, heads: int = 2, size: int = 64) -> ExportedGraph:
    """Scaled dot-product attention of q, k, v, fp32 [batch, heads, tokens, size], computed in ``precision``."""
    nodes = [helper.make_node("Cast", [name], [f"{name}_cast"], to=_TYPES[precision]) for name in "qkv"]
    nodes += [
        helper.make_node("Attention", ["q_cast", "k_cast", "v_cast"], ["y_cast"]),
        helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT),
    ]
    shape: tuple[Dim, ...] = ("batch", heads, "tokens", size)
    return _save(folder, "large", nodes, inputs=("q", "k", "v"), shape=shape, weights={}, precision=precision)


def attention_oracle(q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
    """What `attention` computes, in fp32."""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    return np.asarray(_softmax(scores) @ v, np.float32)


def _softmax(values: npt.NDArray[np.floating]) -> FloatArray:
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def _save(
    folder: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    *,
    inputs: tuple[str, ...],
    shape: tuple[Dim, ...],
    weights: Mapping[str, FloatArray],
    precision: Precision = Precision.FP32,
) -> ExportedGraph:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, each) for each, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = folder / f"{name}.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=0)
    spec = GraphSpec(
        name=name,
        precision=precision,
        inputs=tuple(TensorSpec(name=each, dtype="float32", shape=shape) for each in inputs),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
    )
    exported = ExportedGraph(spec=spec, onnx=path, opset=23, weights_sha256="", versions={})
    exported.data.touch()
    return exported
