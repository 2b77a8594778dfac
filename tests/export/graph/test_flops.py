"""Operations counted from the graph: closed forms, and torch's own counter on the stock module."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.onnx import ops
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checkpoints import wan_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import Flops
from flowblending.export.families.wan.transformer import load_transformer
from flowblending.export.graph.exportable import Tensors
from flowblending.export.graph.flops import count_flops, token_flops
from flowblending.export.graph.trace import export_graph
from tests.export.graph.test_trace import exportable, tensor


class Everything(torch.nn.Module):
    """x [B, W, 24] through each of the operators that are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(24, 10)
        self.conv = torch.nn.Conv1d(24, 12, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> Tensors:
        wide = self.linear(x)
        pooled = self.linear(x.mean(dim=1))
        convolved = self.conv(x.transpose(1, 2))
        cross = ops.attention(x, x[:, :7, :12], x[:, :7, :12], q_num_heads=4, kv_num_heads=2)[0]
        split = x.reshape(-1, x.shape[1], 4, 6).transpose(1, 2)
        whole = ops.attention(split, split, split)[0]
        products = x @ x.transpose(1, 2)
        sums = (each.sum(dim=(1, 2)) for each in (wide, convolved, cross, whole.flatten(2), products))
        return (pooled.sum(dim=1) + sum(sums),)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = exportable(Everything(), (tensor("x", "batch", "width", 24),), (tensor("sum", "batch"),))
    # The cross-attention looks at the first seven places.
    made = dataclasses.replace(made, export_sizes={"batch": 2, "width": 9})
    graph = export_graph(made, tmp_path_factory.mktemp("flops"), "")
    graph.data.unlink()
    return graph.onnx


@pytest.mark.parametrize(("batch", "width"), [(1, 8), (3, 20)])
def test_closed_forms(graph: Path, batch: int, width: int) -> None:
    linear = batch * width * 24 * 10 + batch * 24 * 10 + batch * 12 * width * (24 // 2) * 3
    cross = batch * 4 * width * 7 * (6 + 6)
    whole = batch * 4 * width * width * (6 + 6)
    products = batch * width * width * 24
    assert count_flops(graph, {"batch": batch, "width": width}) == (2 * linear, 2 * (cross + whole + products))


def test_shapes_are_inferred_where_the_exporter_wrote_none(graph: Path, tmp_path: Path) -> None:
    sizes = {"batch": 2, "width": 11}
    model = onnx.load(graph, load_external_data=False)
    kinds = {name: node.op_type for node in model.graph.node for name in node.output}
    # ONNX cannot infer what an Attention with three-dimensional operands gives; everything else it can.
    kept = [value for value in model.graph.value_info if kinds.get(value.name) == "Attention"]
    assert len(kept) < len(model.graph.value_info) / 2
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, tmp_path / "bare.onnx")
    assert count_flops(tmp_path / "bare.onnx", sizes) == count_flops(graph, sizes)


def test_a_shape_that_nothing_tells_is_named(graph: Path) -> None:
    with pytest.raises(FlowBlendingError, match=r"The shape of \S+ in .*toy\.onnx is unknown"):
        count_flops(graph, {"batch": 2})


@pytest.mark.long
def test_torch_counts_the_same_in_the_stock_transformer(tmp_path: Path) -> None:
    wan_transformer(0, layers=2, heads=3, head_dim=12).save_pretrained(tmp_path / "model")
    made = load_transformer(tmp_path / "model", "large", 24, Precision.FP32)
    graph = export_graph(made, tmp_path, "")
    graph.data.unlink()
    for sizes in made.verify_sizes:
        inputs = made.inputs(sizes, torch.Generator())
        # Only the plain form of attention is made of products that torch counts on a CPU.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made.reference(*inputs)
        counts = {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}
        attention = counts.pop("aten.bmm")
        assert count_flops(graph.onnx, sizes) == (sum(counts.values()), attention)
    # What was counted at three sizes holds at all of them.
    linear, attention_of = token_flops(graph.onnx, (1, 2, 2))
    flops = Flops(linear=linear, attention=attention_of)
    for frames, height, width in ((1, 2, 2), (3, 4, 10), (21, 60, 104)):
        counted = count_flops(graph.onnx, {"batch": 1, "frames": frames, "height": height, "width": width})
        tokens = frames * height * width // 4
        assert (flops.linear_at(tokens), flops.attention_at(tokens)) == counted
        assert flops.at(tokens) == sum(counted)
