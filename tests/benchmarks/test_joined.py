"""The benchmark of joined projections measures graphs that compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.checkpoints import wan_transformer
from benchmarks.joined import join_graph
from flowblending.contracts.graph import Precision
from flowblending.export.families.wan.transformer import load_transformer
from flowblending.export.graph.trace import export_graph

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_the_joined_graph_computes_the_same(tmp_path: Path) -> None:
    wan_transformer(0, layers=1, heads=3, head_dim=12).save_pretrained(tmp_path / "model")
    made = load_transformer(tmp_path / "model", "large", 24, Precision.FP32)
    graph = export_graph(made, tmp_path / "exported", "")
    # Three of self-attention become one, and two of cross-attention.
    assert join_graph(graph.onnx, tmp_path / "joined") == 3
    inputs = made.inputs(made.verify_sizes[0], torch.Generator().manual_seed(1))
    given = {spec.name: value.numpy() for spec, value in zip(made.spec.inputs, inputs, strict=True)}
    exported, joined = (
        onnxruntime.InferenceSession(tmp_path / name / "large.onnx", providers=["CPUExecutionProvider"]).run(
            None, given
        )
        for name in ("exported", "joined")
    )
    np.testing.assert_allclose(joined[0], exported[0], rtol=1e-5, atol=1e-6)
