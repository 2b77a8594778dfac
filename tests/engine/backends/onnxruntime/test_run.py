from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.scale_step import anonymous_bytes
from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.onnxruntime import run as ort
from flowblending.engine.backends.onnxruntime.run import BoundWeight, OrtEngine
from flowblending.engine.backends.tensor import CUDA, Tensor
from tests.support.graphs import FloatArray, attention, attention_oracle, linear, linear_oracle


def random(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_any_size_of_the_symbols_runs(tmp_path: Path) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    for batch, tokens in ((1, 1), (2, 7), (5, 3)):
        x, y = random(batch, tokens, 64), np.full((batch, tokens, 64), np.nan, np.float32)
        engine.run({"x": Tensor.of(x), "y": Tensor.of(y)}, 0)
        np.testing.assert_allclose(y, linear_oracle(tmp_path, "large", x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-6), (Precision.FP16, 2e-3)])
def test_attention_in_the_precisions_of_the_cpu(tmp_path: Path, precision: Precision, tolerance: float) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", attention(tmp_path, precision).spec)
    q, k, v = (random(2, 2, 9, 64, seed=seed) for seed in range(3))
    y = np.empty_like(q)
    engine.run({name: Tensor.of(array) for name, array in zip("qkvy", (q, k, v, y), strict=True)}, 0)
    expected = attention_oracle(q, k, v)
    assert np.linalg.norm(y - expected) < tolerance * np.linalg.norm(expected)


def test_every_call_uses_the_memory_it_is_given(tmp_path: Path) -> None:
    """The same addresses with new content, then new addresses, then the first ones again, and more than are kept."""
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    arrays = [random(1, 4, 64, seed=seed) for seed in range(ort.BINDINGS + 3)]
    outputs = [np.zeros((1, 4, 64), np.float32) for _ in arrays]
    for index in (0, 0, 1, 0, *range(len(arrays)), 0):
        arrays[index] *= -0.5
        expected = linear_oracle(tmp_path, "large", arrays[index])
        others = [each.copy() for number, each in enumerate(outputs) if number != index]
        engine.run({"x": Tensor.of(arrays[index]), "y": Tensor.of(outputs[index])}, 0)
        np.testing.assert_allclose(outputs[index], expected, rtol=1e-5, atol=1e-7)
        for before, after in zip(others, [o for number, o in enumerate(outputs) if number != index], strict=True):
            np.testing.assert_array_equal(before, after)


def test_one_address_may_hold_another_shape(tmp_path: Path) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    x, y = random(2, 6, 64), np.zeros((2, 6, 64), np.float32)
    for shape in ((2, 6, 64), (1, 12, 64), (4, 3, 64)):
        engine.run({"x": Tensor.of(x.reshape(shape)), "y": Tensor.of(y.reshape(shape))}, 0)
        np.testing.assert_allclose(y, linear_oracle(tmp_path, "large", x), rtol=1e-5, atol=1e-7)
        y[:] = 0


def test_two_engines_take_turns(tmp_path: Path) -> None:
    graphs = {name: linear(tmp_path, name, seed=seed) for seed, name in enumerate(("large", "small"))}
    engines = {name: OrtEngine(graph.onnx, graph.spec) for name, graph in graphs.items()}
    x = random(1, 4, 64)
    for name in ("large", "small", "small", "large", "small"):
        expected = linear_oracle(tmp_path, name, x)
        y = np.empty_like(x)
        engines[name].run({"x": Tensor.of(x), "y": Tensor.of(y)}, 0)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-7)
        x = y


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros((1, 4, 32), np.float32), r"Input x of engine large has shape \[1, 4, 32\], but"),
        ("x", np.zeros((4, 64), np.float32), r"Input x of engine large has shape \[4, 64\], but"),
        ("x", np.zeros((1, 4, 64)), r"x of engine large is float64 \[1, 4, 64\], but float32 \[1, 4, 64\]"),
        ("y", np.zeros((1, 5, 64), np.float32), r"y of engine large is float32 \[1, 5, 64\], but float32 \[1, 4, 64\]"),
        ("y", np.zeros((1, 4, 64), np.int32), r"y of engine large is int32 \[1, 4, 64\], but float32 \[1, 4, 64\]"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    given = {"x": Tensor.of(random(1, 4, 64)), "y": Tensor.of(random(1, 4, 64))}
    engine.run(given, 0)
    with pytest.raises(FlowBlendingError, match=message):
        engine.run(given | {name: Tensor.of(array)}, 0)


def test_the_type_of_a_tensor_is_checked_even_at_a_known_address(tmp_path: Path) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    x, y = random(1, 4, 64), random(1, 4, 64)
    engine.run({"x": Tensor.of(x), "y": Tensor.of(y)}, 0)
    with pytest.raises(FlowBlendingError, match="int32"):
        engine.run({"x": Tensor.of(x.view(np.int32)), "y": Tensor.of(y)}, 0)
    with pytest.raises(FlowBlendingError, match=r"on the device cuda, but cpu was expected"):
        engine.run({"x": replace(Tensor.of(random(2, 4, 64)), device=CUDA), "y": Tensor.of(random(2, 4, 64))}, 0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    graph = linear(tmp_path)
    os.truncate(graph.data, 100)
    with pytest.raises(FlowBlendingError, match=r"cannot load .*large\.onnx \(.*file_length: 100.*\); build .* again"):
        OrtEngine(graph.onnx, graph.spec)
    graph.data.unlink()
    with pytest.raises(FlowBlendingError, match=r"cannot load .*large\.onnx \(.*large\.onnx\.data"):
        OrtEngine(graph.onnx, graph.spec)
    for content in (b"", b"x" * 999):
        graph.onnx.write_bytes(content)
        with pytest.raises(FlowBlendingError, match=r"cannot load .*large\.onnx \(.+\); build the bundle again\.$"):
            OrtEngine(graph.onnx, graph.spec)
    with pytest.raises(FlowBlendingError, match=r"cannot load .*small\.onnx .*exist"):
        OrtEngine(tmp_path / "small.onnx", graph.spec)


def test_bf16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    graph = attention(tmp_path, Precision.BF16)
    with pytest.raises(FlowBlendingError, match=r"large is bf16, .* CPU .* --precision fp32, fp16-mixed or fp16"):
        OrtEngine(graph.onnx, graph.spec)


def test_another_stream_is_refused(tmp_path: Path) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    with pytest.raises(FlowBlendingError, match="one engine per stream"):
        engine.run({"x": Tensor.of(random(1, 4, 64)), "y": Tensor.of(random(1, 4, 64))}, 7)


@pytest.mark.skipif(ort.cuda_available(), reason="this ONNX Runtime has the CUDA provider")
def test_a_gpu_is_refused_without_the_provider(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match=r"no CUDA provider; run pip install '\.\[cuda\]'"):
        OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec, device=CUDA)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    engine = OrtEngine(tmp_path / "large.onnx", linear(tmp_path).spec)
    engine.close()
    engine.close()
    with pytest.raises(FlowBlendingError, match="closed"):
        engine.run({"x": Tensor.of(random(1, 4, 64)), "y": Tensor.of(random(1, 4, 64))}, 0)


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"onnxruntime", "onnxruntime-gpu"}, r"Both onnxruntime and onnxruntime-gpu .* uninstall both"),
        (set(), r"not installed; run pip install '\.\[cpu\]' or pip install '\.\[cuda\]'"),
    ],
)
def test_exactly_one_distribution_must_be_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], message: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "1.32.0"

    monkeypatch.setattr(ort, "version", version)
    with pytest.raises(FlowBlendingError, match=message):
        ort.installed_version()
    monkeypatch.setattr(ort, "version", lambda name: "1.31.1" if name == "onnxruntime-gpu" else version("nothing"))
    assert ort.installed_version() == "1.31.1"


def test_weights_as_inputs_are_cast_one_at_a_time(tmp_path: Path) -> None:
    layers, width = 24, 2048
    names = [f"w{index}" for index in range(layers)]
    values = ["x", *(f"h{index}" for index in range(1, layers)), "y"]
    nodes = []
    for name, given, made in zip(names, values[:-1], values[1:], strict=True):
        nodes.append(helper.make_node("Cast", [name], [f"{name}.cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [given, f"{name}.cast"], [made]))
    held = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [width, width]) for name in names]
    row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", [row[0], *held], [row[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "chain.onnx")
    stored = np.memmap(tmp_path / "weights", np.uint16, "w+", shape=(layers, width, width))
    # Every other one doubles what enters it.
    scales = np.array([1, 2] * (layers // 2), np.float32) / width
    stored[:] = scales.astype(ml_dtypes.bfloat16).view(np.uint16)[:, None, None]
    weights = [
        BoundWeight(name=name, tensor=Tensor.of(matrix), kind=TensorProto.BFLOAT16)
        for name, matrix in zip(names, stored, strict=True)
    ]
    x, y = (TensorSpec(name=name, dtype="float32", shape=(1, width)) for name in ("x", "y"))
    spec = GraphSpec(name="chain", precision=Precision.FP32, inputs=(x,), outputs=(y,))
    engine = OrtEngine(tmp_path / "chain.onnx", spec, weights=weights)
    ones, output = np.ones((1, width), np.float32), np.empty((1, width), np.float32)
    before, most = anonymous_bytes("self"), 0
    with ThreadPoolExecutor() as pool:
        run = pool.submit(engine.run, {"x": Tensor.of(ones), "y": Tensor.of(output)}, 0)
        while not run.done():
            most = max(most, anonymous_bytes("self") - before)
        run.result()
    np.testing.assert_array_equal(output, 2.0 ** (layers // 2))
    # One of them is 17 MB in fp32, and all of them are 403 MB.
    assert most < 100e6


@pytest.mark.parametrize(("free", "limit"), [(5 << 30, {"gpu_mem_limit": str(5 << 30)}), (None, {})])
def test_a_session_on_a_gpu_takes_what_it_needs(
    tmp_path: Path, free: int | None, limit: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked: list[Any] = []

    class Session:
        def __init__(self, path: Path, *, sess_options: Any, providers: list[Any], enable_fallback: int) -> None:
            assert not enable_fallback
            asked.extend([path, sess_options, providers])

        def get_providers(self) -> list[str]:
            return [ort.CUDA_PROVIDER, ort.CPU_PROVIDER]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CUDA_PROVIDER, ort.CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort, "free_memory", {1: free}.get)
    graph = linear(tmp_path)
    ort.OrtEngine(graph.onnx, graph.spec, device=CUDA, index=1, stream=7)
    options = {"device_id": "1", "user_compute_stream": "7", "arena_extend_strategy": "kSameAsRequested", **limit}
    assert asked[2] == [(ort.CUDA_PROVIDER, options), ort.CPU_PROVIDER]
    assert asked[1].get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
