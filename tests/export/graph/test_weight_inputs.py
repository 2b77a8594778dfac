"""Graphs whose weights stay in the checkpoint compute what the stock classes compute, with no copy of a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer
from flowblending.contracts.graph import LARGE, TEXT_ENCODER, Precision
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.build.fp8.loader import Graph, HeldWeight, Loader
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.checkpoint.weights_file import read_weights
from flowblending.export.families.ltx import transformer as ltx
from flowblending.export.families.stand_in import stand_in
from flowblending.export.families.t5 import text_encoder_part
from flowblending.export.families.wan import transformer as wan
from flowblending.export.graph import load as weights
from flowblending.export.graph.exportable import Exportable
from flowblending.export.graph.stored import stored_of, weights_on_demand
from flowblending.export.graph.trace import trace_graph
from flowblending.export.graph.weight_inputs import write_weight_inputs
from flowblending.runtime.devices.host import HostDevice
from tests.export.families.test_t5 import encoder
from tests.support.weight_files import fp8, make_reference, save

LEFT = 1000
"""Bytes from which on a weight is left in its file here."""

ONNX = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}


def load(kind: str, folder: Path, held: torch.dtype) -> Exportable:
    """A model in fp32 whose checkpoint is in ``held``."""
    if kind == "umt5":
        checkpoint = encoder(folder, kind, vocab_size=300, feed_forward_proj="gated-gelu")
        path = folder / TEXT_ENCODER / "model.safetensors"
        save_file({name: tensor.to(held) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        return text_encoder_part(checkpoint, 16, zero_padding=True).load(Precision.FP32)
    if kind == "fp8 file":
        # Plain fp8 numbers are bf16 numbers, too.
        reference = make_reference("wan", folder)
        file = read_weights(save(fp8(reference.original), folder / "x.safetensors"))
        found = stand_in(file, open_checkpoint(reference.base, whole=False), folder / "scratch", here=True)
        return wan.load_transformer(found.folder, LARGE, 8, Precision.FP32)
    if kind == "wan":
        wan_transformer(7).to(held).save_pretrained(folder, max_shard_size="40KB")
        return wan.load_transformer(folder, LARGE, 8, Precision.FP32)
    ltx_transformer(7, caption_channels=TEXT_DIM).to(held).save_pretrained(folder)
    return ltx.load_transformer(folder, LARGE, Precision.FP32, text_length=8, factors=(8, 32), causal=True)


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        pytest.param("wan", torch.float32, marks=pytest.mark.long),
        pytest.param("wan", torch.bfloat16, marks=pytest.mark.long),
        ("fp8 file", torch.bfloat16),
        pytest.param("ltx", torch.float16, marks=pytest.mark.long),
        pytest.param("umt5", torch.float32, marks=pytest.mark.long),
        ("umt5", torch.bfloat16),
    ],
)
def test_equals_torch(kind: str, held: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STREAMED_BYTES", LEFT)
    exportable = load(kind, tmp_path / "checkpoint", held)
    apart = write_weight_inputs(trace_graph(exportable), tmp_path / "graph")
    used = [name for name, each in exportable.module.named_parameters() if stored_of(each) and "shared" not in name]
    assert len(used) > 5
    assert len(apart.weights) >= len(used)
    # What is left is biases, norms and tables of positions.
    assert (tmp_path / "graph" / f"{apart.onnx.name}.data").stat().st_size < 30_000
    assert {kind for _, kind in apart.weights.values()} == {ONNX[held]}
    weights_held = tuple(
        HeldWeight(
            name=name, path=each.path, offset=each.offset, shape=each.shape, itemsize=each.held.itemsize, kind=number
        )
        for name, (each, number) in apart.weights.items()
    )
    loader = Loader({LARGE: Graph(onnx=apart.onnx, spec=apart.spec, weights=weights_held)}, HostDevice())
    sizes = exportable.verify_sizes[1]
    inputs = exportable.inputs(sizes, torch.Generator().manual_seed(1))
    with torch.no_grad(), weights_on_demand(*exportable.streamed):
        (expected,) = exportable.reference(*inputs)
    output = np.empty(tuple(expected.shape), np.float32)
    given = {spec.name: Tensor.of(value.numpy()) for spec, value in zip(apart.spec.inputs, inputs, strict=True)}
    for _ in range(2):
        loader.engine(LARGE).run({**given, apart.spec.outputs[0].name: Tensor.of(output)}, 0)
        assert np.linalg.norm(output - expected.numpy()) < 1e-5 * np.linalg.norm(expected.numpy())
    loader.close()
