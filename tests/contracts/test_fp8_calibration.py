"""Calibration: what is observed in a call, what is made of many calls, and the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.fp8_calibration import Fp8Calibration, LayerRange, ModelCalibration, summarise
from flowblending.export.fp8.observe import observe
from flowblending.export.graph.trace import read_graph, write_graph
from tests.export.fp8.test_layers import WIDTH, Floats, blocks, weights


def observed(folder: Path, percentile: float, x: Floats) -> tuple[Floats, Floats]:
    """The ranges that a graph of two blocks tells, and what enters its first block."""
    plain = blocks(folder, 2)
    found = observe(read_graph(plain), percentile)
    assert found.rows == tuple((f"blocks.{each}.attn1.to_q", f"blocks.{each}.attn1.to_k") for each in (0, 1))
    graph = write_graph(found.graph, folder / "observed", "")
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    velocity, ranges = session.run([each.name for each in graph.spec.outputs], {"x": x})
    assert velocity.shape == x.shape
    return ranges, x @ weights(plain)["model.embed.w"]


@pytest.mark.parametrize("percentile", [100.0, 99.9, 99.0, 50.0, 0.1])
def test_percentile_and_largest_of_a_call(tmp_path: Path, percentile: float) -> None:
    x = np.random.default_rng(2).standard_normal((37, WIDTH)).astype(np.float32)
    ranges, entering = observed(tmp_path, percentile, x)
    assert ranges.shape == (2, 2)
    size = np.sort(np.abs(entering).ravel())
    nearest_rank = size[math.ceil(round(percentile / 100 * len(size), 6)) - 1]
    np.testing.assert_allclose(ranges[0], [nearest_rank, size[-1]], rtol=1e-5)


def test_a_percentile_leaves_out_planted_outliers_and_a_margin_makes_room(tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((100, WIDTH)).astype(np.float32)
    usual, _ = observed(tmp_path / "usual", 100.0, x)
    x[50] *= 1000
    ranges, _ = observed(tmp_path / "planted", 98.0, x)
    found = summarise([["a"], ["b"]], ranges[None], [7.0], weights="", margin=1.5).layers["a"]
    assert found.largest > 100 * usual[0, 1]
    assert 0.5 * usual[0, 1] < found.percentile < usual[0, 1]
    assert found.amax == pytest.approx(1.5 * found.percentile, rel=1e-5)


def test_the_largest_of_all_calls_counts_and_says_when_it_was() -> None:
    ranges = np.array([[[1, 2], [5, 5]], [[3, 4], [1, 9]], [[2, 8], [4, 4]]], np.float32)
    found = summarise([["a", "b"], ["c"]], ranges, [900.0, 500.0, 500.0], weights="w", margin=1.1)
    first = LayerRange(amax=3.3, percentile=3.0, largest=8.0, timestep=500.0)
    assert found == ModelCalibration(
        weights="w",
        calls=3,
        timesteps=(900.0, 500.0),
        layers={"a": first, "b": first, "c": LayerRange(amax=5.5, percentile=5.0, largest=9.0, timestep=900.0)},
    )
    ranges[1, 0, 1] = np.inf
    with pytest.raises(FlowBlendingError, match=r"Infinite or undefined values enter a, .* check the checkpoint"):
        summarise([["a"], ["c"]], ranges, [9.0, 5.0, 5.0], weights="w", margin=1.0)


CALIBRATION = Fp8Calibration(
    pipeline="WanPipeline",
    size="64x32",
    frames=9,
    prompts=('a  {  "cat" }', "[  dogs  ]"),
    negative_prompt="",
    seeds=(0, 1),
    schedule="L2 S2 L1",
    steps=5,
    solver="unipc",
    guidance=5.0,
    percentile=100.0,
    margin=1.1,
    models={
        "large": summarise(
            [["blocks.10.to_q", "blocks.10.to_k"], ["blocks.9.to_q"]],
            np.ones((4, 2, 2), np.float32),
            [999.0, 999.0, 100.0, 100.0],
            weights="ab" * 32,
            margin=1.1,
        )
    },
)


def test_the_file_is_readable_and_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "fp8_calibration.json"
    CALIBRATION.write(path)
    assert Fp8Calibration.read(path) == CALIBRATION
    lines = path.read_text().splitlines()
    layers = [line.strip() for line in lines if '"blocks.' in line]
    assert [line.partition(":")[0] for line in layers] == ['"blocks.9.to_q"', '"blocks.10.to_k"', '"blocks.10.to_q"']
    assert '{ "amax": 1.1, "percentile": 1.0, "largest": 1.0, "timestep": 999.0 }' in layers[0]
    assert CALIBRATION.model("large", "ab" * 32, path).amax["blocks.9.to_q"] == 1.1


def test_a_file_of_other_weights_or_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(FlowBlendingError, match=r"c\.json was made with other weights of large \(SHA-256 ababab.*anew"):
        CALIBRATION.model("large", "cd" * 32, path)
    with pytest.raises(FlowBlendingError, match=r"c\.json is a calibration of large, not of small; leave out"):
        CALIBRATION.model("small", "ab" * 32, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "is a fp8 calibration of format 9, written by a later version, but"),
        ({"extra": 1}, "is damaged"),
        ({"models": 3}, "is damaged"),
        ({"prompts": None}, "is damaged"),
        ({"models": {"large": {"weights": "", "calls": 1, "timesteps": [], "layers": {}}}}, r"the timesteps are \[\]"),
        ({"models": {"large": {"weights": 1, "calls": 1, "timesteps": [1], "layers": {}}}}, "the weights are 1, which"),
        (
            {"models": {"large": {"layers": {"a": dict.fromkeys(("amax", "percentile", "largest", "timestep"), -1)}}}},
            "amax of a is -1",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "fp8_calibration.json"
    CALIBRATION.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FlowBlendingError, match=message):
        Fp8Calibration.read(path)
    for content in ("{", "[]", '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(FlowBlendingError, match=r"\.json is no calibration .* leave out --fp8-calibration"):
            Fp8Calibration.read(path)
