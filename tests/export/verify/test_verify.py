"""Verification passes what is right and names what is wrong."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, Precision
from flowblending.export.graph.exportable import TORCH_DTYPES, Exportable, Part, Tensors
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE, export_and_verify, verify
from tests.export.graph.test_trace import exportable, tensor


class Layer(torch.nn.Module):
    """A layer in a precision, fp32 outside; ``fault`` is added to its bias."""

    def __init__(self, precision: Precision, fault: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype = TORCH_DTYPES[precision]
        self.layer = torch.nn.Linear(64, 64)
        with torch.no_grad():
            self.layer.bias.add_(fault)
        self.layer.to(self.dtype)

    def forward(self, x: torch.Tensor) -> Tensors:
        return (self.layer(x.to(self.dtype)).float(), torch.zeros_like(x))


def made(precision: Precision) -> Exportable:
    shape = ("batch", "width", 64)
    return exportable(
        Layer(precision), (tensor("x", *shape),), (tensor("y", *shape), tensor("zero", *shape)), precision
    )


PART = Part(name="toy", sources=(), load=made, revision="toy 1")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], ExportedGraph]:
    known: dict[Precision, ExportedGraph] = {}

    def graph(precision: Precision) -> ExportedGraph:
        if precision not in known:
            known[precision] = export_graph(made(precision), tmp_path_factory.mktemp(precision), "")
        return known[precision]

    return graph


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_right_graph_passes_and_a_wrong_one_is_named(
    precision: Precision, graphs: Callable[[Precision], ExportedGraph]
) -> None:
    right, graph = made(precision), graphs(precision)
    parity = verify(right, graph)
    assert parity.relative < TOLERANCE[precision].relative / 4
    assert parity.shapes == 2
    for fault in (0.03, float("nan")):
        wrong = dataclasses.replace(right, reference=Layer(precision, fault=fault))
        with pytest.raises(
            FlowBlendingError, match=rf"{precision} graph of toy differs from torch by .*\(y at batch 1, width 3\)"
        ) as caught:
            verify(wrong, graph)
        assert "\n" not in str(caught.value)


def test_a_value_where_zero_was_expected_fails(graphs: Callable[[Precision], ExportedGraph]) -> None:
    right = made(Precision.FP32)
    wrong = dataclasses.replace(right, reference=lambda x: (right.reference(x)[0], torch.full_like(x, 1e-9)))
    with pytest.raises(FlowBlendingError, match="zero at batch 1"):
        verify(wrong, graphs(Precision.FP32))


def test_another_shape_than_specified_fails(graphs: Callable[[Precision], ExportedGraph]) -> None:
    right = made(Precision.FP32)
    wrong = dataclasses.replace(right, reference=lambda x: tuple(each[:, :1] for each in right.reference(x)))
    with pytest.raises(FlowBlendingError, match=r"gives \[1, 3, 64\] and torch \[1, 1, 64\] where \[1, 3, 64\]"):
        verify(wrong, graphs(Precision.FP32))


def test_missing_weights_fail(graphs: Callable[[Precision], ExportedGraph], tmp_path: Path) -> None:
    graph = graphs(Precision.FP32)
    alone = dataclasses.replace(graph, onnx=tmp_path / graph.onnx.name)
    alone.onnx.write_bytes(graph.onnx.read_bytes())
    with pytest.raises(FlowBlendingError, match="toy cannot be loaded by ONNX Runtime"):
        verify(made(Precision.FP32), alone)


def test_bf16_is_verified_by_its_twin(tmp_path: Path) -> None:
    doings: list[str] = []
    graph, parity = export_and_verify(PART, Precision.BF16, tmp_path, "0123", doings.append)
    assert graph.spec.precision is Precision.BF16
    assert parity.relative < TOLERANCE[Precision.FP32].relative
    assert doings == [
        *("loading", "tracing", "verifying"),
        *("loading the fp32 twin", "tracing the fp32 twin", "verifying the fp32 twin"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.json", "toy.onnx", "toy.onnx.data"]
    weights = onnx.load(graph.onnx, load_external_data=False).graph.initializer
    assert onnx.TensorProto.BFLOAT16 in {weight.data_type for weight in weights}


def test_fp16_mixed_is_compared_with_fp32(tmp_path: Path) -> None:
    def load(precision: Precision, fault: float = 0.0) -> Exportable:
        lost = float("nan") if precision is Precision.FP16_MIXED else fault
        return dataclasses.replace(made(precision), reference=Layer(precision, lost))

    part = dataclasses.replace(PART, load=load)
    graph, parity = export_and_verify(part, Precision.FP16_MIXED, tmp_path, "", lambda _: None)
    assert graph.spec.precision is Precision.FP16_MIXED
    assert 0 < parity.relative < TOLERANCE[Precision.FP16_MIXED].relative / 4
    wrong = dataclasses.replace(PART, load=functools.partial(load, fault=0.01))
    with pytest.raises(FlowBlendingError, match="fp16-mixed graph of toy differs from torch"):
        export_and_verify(wrong, Precision.FP16_MIXED, tmp_path, "", lambda _: None)


def test_a_twin_of_another_structure_is_refused(tmp_path: Path) -> None:
    class Longer(Layer):
        def forward(self, x: torch.Tensor) -> Tensors:
            y, zero = super().forward(x)
            return y.abs() if self.dtype is torch.bfloat16 else y, zero

    def load(precision: Precision) -> Exportable:
        module = Longer(precision)
        return dataclasses.replace(made(precision), module=module, reference=module)

    with pytest.raises(FlowBlendingError, match="has 1 operators Abs, but its fp32 twin has 0"):
        export_and_verify(dataclasses.replace(PART, load=load), Precision.BF16, tmp_path, "", lambda _: None)
    with pytest.raises(FlowBlendingError, match="bf16 graph of toy differs from torch"):
        export_and_verify(
            dataclasses.replace(PART, load=lambda each: dataclasses.replace(load(each), reference=Layer(each))),
            Precision.BF16,
            tmp_path,
            "",
            lambda _: None,
        )
