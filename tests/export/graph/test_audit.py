"""What a graph is said to compute in which type: on a graph of a few nodes, and against what diffusers does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, Precision
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.families.ltx.family import Ltx
from flowblending.export.families.wan.family import Wan
from flowblending.export.graph.audit import Audit, Node, audit
from flowblending.export.graph.exportable import Exportable
from flowblending.export.graph.trace import export_graph

LAYERS = 2


def typed(names: str, kind: int, *shape: int | str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, kind, shape) for name in names.split()]


def save(path: Path, nodes: list[onnx.NodeProto], inner: list[onnx.ValueInfoProto]) -> Path:
    """A graph of fp32 x [batch, 8], with weights of several types."""
    weights = {
        "w16": (TensorProto.FLOAT16, [8, 8]),
        "w8": (TensorProto.FLOAT8E4M3FN, [8, 24]),
        "w32": (TensorProto.FLOAT, [24, 2]),
        "scale": (TensorProto.FLOAT16, []),
        "zero": (TensorProto.FLOAT8E4M3FN, []),
    }
    stored = [
        TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for name, (kind, shape) in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        typed("x", TensorProto.FLOAT, "batch", 8),
        typed("y", TensorProto.FLOAT, "batch", 2),
        stored,
        value_info=inner,
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]).SerializeToString())
    return path


NODES = [
    helper.make_node("Exp", ["x"], ["e"], name="exp"),
    helper.make_node("Cast", ["e"], ["h"], to=TensorProto.FLOAT16),
    helper.make_node("MatMul", ["h", "w16"], ["p"], name="plain"),
    helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]),
    helper.make_node("MatMul", ["d", "w"], ["r"], name="quantised"),
    helper.make_node("Cast", ["r"], ["s"], to=TensorProto.FLOAT),
    helper.make_node("Neg", ["w32"], ["n"], name="constant"),
    helper.make_node("MatMul", ["s", "n"], ["y"], name="wide"),
]
INNER = [
    *typed("e", TensorProto.FLOAT, "batch", 8),
    *typed("h p d", TensorProto.FLOAT16, "batch", 8),
    *typed("q", TensorProto.FLOAT8E4M3FN, "batch", 8),
    *typed("w", TensorProto.FLOAT16, 8, 24),
    *typed("r", TensorProto.FLOAT16, "batch", 24),
    *typed("s", TensorProto.FLOAT, "batch", 24),
    *typed("n", TensorProto.FLOAT, 24, 2),
]


def test_products_by_type_and_the_islands_by_name(tmp_path: Path) -> None:
    found = audit(save(tmp_path / "toy.onnx", NODES, INNER), {"batch": 3})
    assert found == Audit(
        layers={"fp16": 1, "fp8": 1, "fp32": 1},
        flops={"fp16": 2 * 3 * 8 * 8, "fp8": 2 * 3 * 8 * 24, "fp32": 2 * 3 * 24 * 2},
        attention={},
        scatters=0,
        islands=(Node(name="exp", operator="Exp"), Node(name="wide", operator="MatMul")),
        layer_types={"plain": "fp16", "quantised": "fp8", "wide": "fp32"},
        attention_types={},
        own_fp8=0,
    )
    assert found.share("fp8") == 192 / (64 + 192 + 48)
    assert found.share("bf16") == 0


def test_weights_alone_in_fp8_are_no_fp8_product(tmp_path: Path) -> None:
    nodes = [helper.make_node(node.op_type, ["p" if each == "d" else each for each in node.input], node.output)
             if node.name == "quantised" else node for node in NODES]  # fmt: skip
    assert audit(save(tmp_path / "toy.onnx", nodes, INNER), {"batch": 3}).layers == {"fp16": 2, "fp32": 1}


def test_scatters_are_counted_and_a_type_that_is_unknown_is_told(tmp_path: Path) -> None:
    scatter = helper.make_node("ScatterND", ["e", "i", "u"], ["v"])
    nodes = [*NODES, scatter]
    assert audit(save(tmp_path / "a.onnx", nodes, [*INNER, *typed("v", TensorProto.FLOAT, 3)]), {"batch": 3}).scatters
    with pytest.raises(FlowBlendingError, match=r"The type of e in .*b\.onnx is unknown; export the graph again"):
        audit(save(tmp_path / "b.onnx", NODES, INNER[1:]), {"batch": 3})


class Calls(torch.overrides.TorchFunctionMode):
    """Counts what a torch module computes, by ONNX operator and type."""

    OPERATORS: Mapping[str, str] = {
        "linear": "layer",
        "conv3d": "layer",
        "layer_norm": "LayerNormalization",
        "rms_norm": "RMSNormalization",
        "scaled_dot_product_attention": "Attention",
        "gelu": "Gelu",
    }
    TYPES: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16"}

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[tuple[str, str]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = self.OPERATORS.get(getattr(func, "__name__", ""))
        if operator:
            values = args[0] if args else kwargs["query"]
            self.counts[operator, self.TYPES[values.dtype]] += 1
        return func(*args, **kwargs or {})


def operators(path: Path) -> Counter[tuple[str, str]]:
    """The same of a graph."""
    graph = onnx.load(path, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    counts = Counter[tuple[str, str]]()
    for node in graph.node:
        operator = "layer" if node.op_type in ("MatMul", "Gemm", "Conv") else node.op_type
        if operator in Calls.OPERATORS.values():
            counts[operator, {1: "fp32", 10: "fp16"}[types[node.output[0]]]] += 1
    return counts


@pytest.fixture
def load(checkpoints: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Exportable]:
    def make(kind: str) -> Exportable:
        checkpoint, folder = open_checkpoint(str(checkpoints(kind) / "large")), tmp_path / "model"
        if kind == "wan":
            wan_transformer(7, layers=LAYERS).save_pretrained(folder)
            return Wan().transformer(checkpoint, folder, LARGE).load(Precision.FP16)
        ltx_transformer(7, layers=LAYERS, caption_channels=TEXT_DIM).save_pretrained(folder)
        return Ltx().transformer(checkpoint, folder, LARGE).load(Precision.FP16)

    return make


# Everything in fp32 of a fp16 graph. Positions and the embedding of the timestep: any number of layers has them once.
ISLANDS = {
    "wan": {
        # The time embedder, which WanTransformer3DModel._keep_in_fp32_modules names, and the SiLU between its layers.
        **{"Cos": 1, "Sin": 1, "Gemm": 2, "Sigmoid": 1},
        # Per block: norm1, norm2 and norm3 (FP32LayerNorm); once: norm_out.
        "LayerNormalization": 3 * LAYERS + 1,
        "RotaryEmbedding": 2 * LAYERS,
        # Per block: table + embedding; scale and shift of two norms; two of three sums of the stream (the one after
        # cross-attention is 16-bit). Once: table + embedding, scale and shift of norm_out.
        "Add": 7 * LAYERS + 3,
        # Per block: two modulations and two gates. Once: norm_out's, the timestep's frequencies, the SiLU.
        "Mul": 4 * LAYERS + 3,
    },
    # LTXVideoTransformer3DModel keeps nothing in fp32 but positions and the sinusoid of the timestep.
    "ltx": {
        **{"Cos": 4, "Sin": 4, "Range": 3, "Div": 3, "Sub": 3, "Reciprocal": 1, "Mul": 11},
        "RotaryEmbedding": 2 * LAYERS,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan", pytest.param("ltx", marks=pytest.mark.long)])
def test_fp32_is_where_diffusers_has_it_and_nowhere_else(
    kind: str, load: Callable[[str], Exportable], tmp_path: Path
) -> None:
    made = load(kind)
    with torch.no_grad(), Calls() as stock:
        made.reference(*made.inputs(made.export_sizes, torch.Generator().manual_seed(0)))
    if kind == "ltx":
        # diffusers' own RMSNorm, two a block, is no call of torch's: 16-bit values, and fp32 inside, as ONNX's.
        stock.counts["RMSNormalization", "fp16"] += 2 * LAYERS
    graph = export_graph(made, tmp_path / "graph", "")
    assert operators(graph.onnx) == stock.counts
    found = audit(graph.onnx, made.export_sizes)
    assert Counter(node.operator for node in found.islands) == ISLANDS[kind]
    assert all(node.name for node in found.islands)
    assert found.attention == {"fp16": 2 * LAYERS}
    assert found.scatters == 0
    assert sum(found.layers.values()) == sum(stock.counts["layer", each] for each in ("fp32", "fp16"))
    assert found.share("fp16") > 0.9
    model = onnx.load(graph.onnx, load_external_data=False)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [23]
    # Norms of 16-bit values are summed up in fp32, which is what an absent attribute means.
    norms = [node for node in model.graph.node if node.op_type == "RMSNormalization"]
    assert {a.i for node in norms for a in node.attribute if a.name == "stash_type"} <= {TensorProto.FLOAT}
