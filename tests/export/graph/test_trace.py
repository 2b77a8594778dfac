"""The exporter's core, on modules of a few lines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Dim, ExportedGraph, GraphSpec, Precision, TensorSpec
from flowblending.export.graph.exportable import Exportable, Tensors
from flowblending.export.graph.trace import OPSET, export_graph, exporter_versions


def tensor(name: str, *shape: Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def exportable(
    module: torch.nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    precision: Precision = Precision.FP32,
) -> Exportable:
    def values(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        return tuple(torch.randn(each.resolve(sizes), generator=generator) for each in inputs)

    return Exportable(
        spec=GraphSpec(name="toy", precision=precision, inputs=inputs, outputs=outputs),
        module=module.eval(),
        reference=module,
        inputs=values,
        export_sizes={"batch": 2, "width": 5},
        verify_sizes=({"batch": 1, "width": 3}, {"batch": 3, "width": 7}),
    )


class Doubled(torch.nn.Module):
    """A wide layer, so that it has weights worth a file of their own; ``extra`` is twice as wide as ``x``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, extra: torch.Tensor) -> Tensors:
        y = torch.cat([self.layer(x), self.layer(x)], dim=1)
        return y + extra, y.mean(dim=(1, 2))


INPUTS = (tensor("x", "batch", "width", 16), tensor("extra", "batch", "2*width", 16))
OUTPUTS = (tensor("sum", "batch", "2*width", 16), tensor("mean", "batch"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ExportedGraph:
    folder = tmp_path_factory.mktemp("graph") / "not" / "there"
    return export_graph(exportable(Doubled(), INPUTS, OUTPUTS), folder, "0123")


def dims(value: onnx.ValueInfoProto) -> list[Dim]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_graph_is_what_the_specification_says(graph: ExportedGraph) -> None:
    model = onnx.load(graph.onnx, load_external_data=False)
    for values, specs in ((model.graph.input, INPUTS), (model.graph.output, OUTPUTS)):
        assert [(value.name, dims(value)) for value in values] == [(each.name, list(each.shape)) for each in specs]
    assert [opset.version for opset in model.opset_import if not opset.domain] == [OPSET]
    inner = [dim for value in model.graph.value_info for dim in dims(value)]
    assert "batch" in inner
    assert "2*width" in [str(dim).replace(" ", "") for dim in inner]


def test_weights_lie_in_one_file_beside_it(graph: ExportedGraph) -> None:
    assert sorted(path.name for path in graph.onnx.parent.iterdir()) == ["toy.json", "toy.onnx", "toy.onnx.data"]
    assert graph.data.stat().st_size >= 4 * 16 * 16
    weight = Doubled().layer.weight.detach().numpy()
    stored = graph.data.read_bytes()
    assert weight.tobytes() in stored or np.ascontiguousarray(weight.T).tobytes() in stored


def test_the_description_can_be_read_back(graph: ExportedGraph) -> None:
    assert ExportedGraph.read(graph.onnx) == graph
    assert graph.weights_sha256 == "0123"
    assert torch.__version__ in exporter_versions()


@pytest.mark.parametrize(("batch", "width"), [(1, 1), (3, 4)])
def test_every_symbol_is_dynamic(graph: ExportedGraph, batch: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, width, 16), np.float32)
    extra = rng.standard_normal((batch, 2 * width, 16), np.float32)
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x, "extra": extra})
    with torch.no_grad():
        expected = Doubled()(torch.from_numpy(x), torch.from_numpy(extra))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_equal_weights_give_equal_bytes_that_tell_nothing_of_this_machine(
    graph: ExportedGraph, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = export_graph(exportable(Doubled(), INPUTS, OUTPUTS), tmp_path, "0123")
    for name in (graph.onnx.name, graph.data.name):
        assert (tmp_path / name).read_bytes() == graph.onnx.with_name(name).read_bytes()
    assert str(Path(__file__).parent).encode() not in again.onnx.read_bytes()
    # A note of torch's to its developers would run across the progress display.
    assert capfd.readouterr() == ("", "")


class Written(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        y = torch.zeros_like(x)
        y[..., 0::2] = x[..., 1::2]
        return (y,)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        return (x + 1 if x.sum() > 0 else x,)


class Halved(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        return (x.half(),)


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        return (x.flatten(1),)


class Cut(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        return (x.mean(dim=1, keepdim=True).expand(-1, 3, -1) + 1,)


class Frozen(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Tensors:
        return (x + torch.ones(5, 1),)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Written(), "ScatterND"),
        (Branching(), "cannot be exported"),
        (Halved(), "y of the exported graph toy has type FLOAT16"),
        (Flat(), r"y of the exported graph toy has shape \[batch,.*float32 \['batch', 'width', 16\] was expected"),
        (Frozen(), r"cannot be exported .*a static shape of 5 for dimension .*shape\[1\]"),
        (Cut(), "y of the exported graph toy has the fixed size 3 at dimension 1"),
    ],
)
def test_what_no_engine_can_use_is_refused(module: torch.nn.Module, words: str, tmp_path: Path) -> None:
    shape: tuple[Dim, ...] = ("batch", "width", 16)
    with pytest.raises(FlowBlendingError, match=words) as caught:
        export_graph(exportable(module, (tensor("x", *shape),), (tensor("y", *shape),)), tmp_path, "")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
