from __future__ import annotations

import numpy as np
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.tensor import Tensor

SPEC = GraphSpec(
    name="large",
    precision=Precision.FP32,
    inputs=(
        TensorSpec(name="latents", dtype="float32", shape=("batch", 3, "height")),
        TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
    ),
    outputs=(TensorSpec(name="pixels", dtype="float32", shape=("batch", "8*height")),),
)


def eight_times(arrays: Arrays) -> Arrays:
    return {"pixels": np.repeat(arrays["latents"].sum(axis=1), 8, axis=1) * arrays["timestep"][:, None]}


def tensors(batch: int = 2, height: int = 5) -> dict[str, Tensor]:
    return {
        "latents": Tensor.of(np.arange(batch * 3 * height, dtype=np.float32).reshape(batch, 3, height)),
        "timestep": Tensor.of(np.arange(1, batch + 1, dtype=np.float32)),
        "pixels": Tensor.of(np.full((batch, 8 * height), np.nan, np.float32)),
    }


def test_outputs_are_written_where_the_caller_wants_them() -> None:
    engine = FunctionEngine(SPEC, eight_times)
    for batch, height in ((2, 5), (1, 1), (3, 4)):
        given = tensors(batch, height)
        out = given["pixels"].numpy()
        engine.run(given, 0)
        expected = given["latents"].numpy().sum(axis=1) * given["timestep"].numpy()[:, None]
        np.testing.assert_array_equal(out[:, ::8], expected)
        np.testing.assert_array_equal(out[:, 7::8], expected)
    assert engine.calls == 3


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("latents", np.zeros((2, 4, 5), np.float32), r"Input latents of engine large has shape \[2, 4, 5\], but .*3"),
        ("latents", np.zeros((2, 3), np.float32), r"Input latents of engine large has shape \[2, 3\], but"),
        ("timestep", np.zeros(3, np.float32), r"Input timestep of engine large has shape \[3\], but \['batch'\]"),
        ("timestep", np.zeros(2), r"timestep of engine large is float64 \[2\], but float32 \[2\] was expected"),
        ("pixels", np.zeros((2, 5), np.float32), r"pixels of engine large is float32 \[2, 5\], but float32 \[2, 40\]"),
    ],
)
def test_a_wrong_tensor_is_named(name: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(FlowBlendingError, match=message):
        FunctionEngine(SPEC, eight_times).run(tensors() | {name: Tensor.of(array)}, 0)


def test_a_missing_tensor_is_named() -> None:
    for name in ("latents", "timestep", "pixels"):
        given = tensors()
        del given[name]
        with pytest.raises(FlowBlendingError, match=rf"large was.* {name}"):
            FunctionEngine(SPEC, eight_times).run(given, 0)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        ({}, "not there"),
        ({"pixels": np.zeros((2, 5), np.float32)}, r"float32 \[2, 5\]"),
        ({"pixels": np.zeros((2, 40), complex)}, r"complex128 \[2, 40\]"),
    ],
)
def test_a_function_that_returns_something_else_is_told(result: Arrays, got: str) -> None:
    with pytest.raises(FlowBlendingError, match=rf"function is {got}, but float32 \[2, 40\] was expected"):
        FunctionEngine(SPEC, lambda _: result).run(tensors(), 0)
