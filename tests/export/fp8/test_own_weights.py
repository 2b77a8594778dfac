"""Weights that a file has in fp8 are in an fp8 graph bit for bit; what a file does not have is quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from flowblending.contracts.graph import LARGE, Precision
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.checkpoint.weights_file import read_weights
from flowblending.export.families.stand_in import stand_in
from flowblending.export.families.wan.transformer import load_transformer
from flowblending.export.fp8.layers import block_layers, quantise
from flowblending.export.graph import load as weights
from flowblending.export.graph.audit import OWN, audit
from flowblending.export.graph.trace import trace_graph, write_graph
from tests.support.weight_files import Reference, Tensors, authors_name, fp8, make_reference, save, scaled

SIZES = {"batch": 1, "frames": 1, "height": 4, "width": 4}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference("wan", tmp_path_factory.mktemp("wan"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("write", "precision"),
    [
        (fp8, Precision.BF16),
        (lambda tensors: scaled(tensors, "scale_weight"), Precision.FP32),
        (lambda tensors: scaled(tensors, "weight_scale", by_row=True), Precision.BF16),
    ],
)
def test_what_the_file_has_is_not_rounded_again(
    wan: Reference,
    write: Callable[[Tensors], Tensors],
    precision: Precision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "STREAMED_BYTES", 1000)
    made = write(wan.original)
    # One layer of a block that will be in fp8 is not in the file.
    other = "blocks.1.cross_attn.k"
    made = {name: tensor for name, tensor in made.items() if not name.startswith(f"{other}.")}
    made |= {name: tensor for name, tensor in wan.original.items() if name.startswith(f"{other}.")}
    file = read_weights(save(made, tmp_path / "x.safetensors"))
    folder = stand_in(file, open_checkpoint(wan.base, whole=False), tmp_path / "scratch", here=True).folder
    traced = trace_graph(load_transformer(folder, LARGE, 8, precision))
    names = [layer.name for layer in block_layers(traced.model.graph)]
    graph = write_graph(quantise(traced, dict.fromkeys(names, 5.0), 1), tmp_path / "graph", "")
    found = audit(graph.onnx, SIZES)
    assert found.layers["fp8"] == 10
    assert found.own_fp8 == 9
    stored = {tensor.name: tensor for tensor in onnx.load(graph.onnx).graph.initializer}
    seen = 0
    for name in (each for each in names if each.startswith("blocks.1.")):
        layer = authors_name("wan", f"{name}.weight").removesuffix(".weight")
        if layer == other:
            assert f"{name}.weight" in stored
            continue
        seen += 1
        codes = np.frombuffer(stored[f"{name}{OWN}"].raw_data, np.uint8).reshape(made[f"{layer}.weight"].shape[::-1])
        np.testing.assert_array_equal(codes.T, made[f"{layer}.weight"].view(torch.uint8).numpy())
        scale = next((made[key] for key in (f"{layer}.scale_weight", f"{layer}.weight_scale") if key in made), None)
        exact = np.ones(1) if scale is None else scale.numpy().reshape(-1)
        kept = numpy_helper.to_array(stored[f"{name}.weight_scale"]).astype(np.float64)
        assert kept.shape == (codes.shape[1],)
        assert bool((np.abs(kept - exact) <= 2.0**-8 * exact).all())
    assert seen == 9
