"""A graph run in parts gives what it gives as a whole, whatever the parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from flowblending.export.graph.stored import Stored, StoredTensor
from flowblending.export.graph.stretches import run_stretches, stretches

WIDTH, LAYERS = 32, 6
MATRIX = 4 * WIDTH * WIDTH


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A chain of layers, a value of the first that is needed at the end, and a shape that must be a constant."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((generator.standard_normal((WIDTH, WIDTH)) / 6).astype(np.float32), f"w{index}")
        for index in range(LAYERS)
    ]
    nodes = []
    for index in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [f"h{index}" if index else "x", f"w{index}"], [f"h{index + 1}"]))
    nodes += [
        helper.make_node("Add", [f"h{LAYERS}", "h1"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["y"]),
        helper.make_node("Neg", ["h2"], ["z"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    inner = [helper.make_tensor_value_info(f"h{index}", TensorProto.FLOAT, None) for index in range(1, LAYERS + 1)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        outputs,
        [*weights, numpy_helper.from_array(np.array([-1], np.int64), "shape")],
        value_info=[*inner, helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(("budget", "count"), [(1, 6), (MATRIX, 6), (2 * MATRIX, 3), (4 * MATRIX, 2), (9 * MATRIX, 1)])
def test_parts_give_what_the_whole_gives(budget: int, count: int, model: onnx.ModelProto) -> None:
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["y", "z"], {"x": x})
    ours = ir.from_proto(model)
    parts = stretches(ours.graph, budget)
    assert len(parts) == count
    assert all(len(part.weights) <= max(1, budget // MATRIX) for part in parts)
    assert sorted(str(value.name) for part in parts for value in part.weights) == [f"w{i}" for i in range(LAYERS)]
    found = run_stretches(ours, {"x": x}, budget)
    assert list(found) == ["y", "z"]
    for value, other in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("budget", "count"), [(1, 4), (MATRIX, 4), (3 * MATRIX, 1)])
def test_of_a_large_table_the_rows_that_are_asked_for(
    budget: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.random.default_rng(0).standard_normal((2 * WIDTH, WIDTH)).astype(np.float32)
    one = numpy_helper.from_array(np.array(1), "one")
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["ids", "one"], ["next"]),
            helper.make_node("Gather", ["table", "next"], ["rows"]),
            helper.make_node("Gather", ["table", "ids"], ["others"]),
            helper.make_node("Sub", ["rows", "others"], ["y"]),
            helper.make_node("Cast", ["next"], ["z"], to=TensorProto.FLOAT),
        ],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [numpy_helper.from_array(table, "table"), one],
        value_info=[
            helper.make_tensor_value_info("next", TensorProto.INT64, None),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "others")),
        ],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    table.tofile(tmp_path / "table")
    stored = Stored(path=tmp_path / "table", offset=0, shape=table.shape, held=torch.float32, dtype=torch.float32)
    model.graph.initializers["table"].const_value = StoredTensor(stored, "table")
    if count > 1:
        monkeypatch.delattr(Stored, "read")  # and still
    assert len(stretches(model.graph, budget)) == count
    ids = np.array([[5, 62, 5], [0, 7, 33]])
    found = run_stretches(model, {"ids": ids}, budget)
    np.testing.assert_array_equal(found["y"], table[ids + 1] - table[ids])
    np.testing.assert_array_equal(found["z"], (ids + 1).astype(np.float32))
