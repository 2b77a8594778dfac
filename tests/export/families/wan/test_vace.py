"""Wan VACE: the transformer's graph against the stock class, its layers in fp8, and a real plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.checkpoints import wan_vace_transformer
from flowblending.contracts.graph import LARGE, Precision
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import fused_attention, product_types
from flowblending.export.families.wan.vace import load_transformer
from flowblending.export.fp8.layers import block_layers, quantise
from flowblending.export.graph.exportable import Part
from flowblending.export.graph.trace import export_graph, read_graph, write_graph
from flowblending.export.verify.verify import export_and_verify
from tests.support.plans import RTX, ignore, needs_rtx

pytestmark = pytest.mark.slow

TEXT_LENGTH = 24
CONTROL = (0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with hints after two of four layers, and heads as wide as those of real models."""
    folder = tmp_path_factory.mktemp("vace")
    wan_vace_transformer(1, layers=4, control=CONTROL, head_dim=64, ffn=256).save_pretrained(folder)
    return folder


def part(folder: Path) -> Part:
    return Part(
        name=LARGE,
        sources=(),
        load=lambda precision: load_transformer(folder, LARGE, TEXT_LENGTH, precision),
        revision="",
    )


@pytest.mark.parametrize("precision", [Precision.FP32, pytest.param(Precision.FP16_MIXED, marks=pytest.mark.long)])
def test_it_equals_the_stock_class(precision: Precision, folder: Path, tmp_path: Path) -> None:
    """At two sizes, with scales that differ from layer to layer; fp16-mixed against the class in fp32."""
    _, parity = export_and_verify(part(folder), precision, tmp_path, "", ignore)
    assert parity.shapes == 2


@pytest.mark.long
@needs_rtx
def test_a_real_plan_with_fp8_layers(folder: Path, tmp_path: Path) -> None:
    plain = export_graph(part(folder).load(Precision.BF16), tmp_path / "bf16", "")
    traced = read_graph(plain)
    names = [layer.name for layer in block_layers(traced.model.graph)]
    # Ten layers of a block; the control's blocks have one behind them, and the first of them one before it.
    assert len(names) == len(set(names)) == 10 * (4 + len(CONTROL)) + len(CONTROL) + 1
    assert Counter(name.split(".")[0] for name in names) == {"blocks": 40, "vace_blocks": 23}
    graph = write_graph(quantise(traced, dict.fromkeys(names, 5.0), 1), tmp_path / "fp8", "")
    sizes = {"batch": 1, "frames": 2, "height": 4, "width": 6}
    profile = ShapeProfile({name: Range.fixed(size) for name, size in sizes.items()})
    out = tmp_path / "large.plan"
    compile_plan(
        PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(profile,), targets=("sm89",), out=out),
        ignore,
    )
    # A block of the control is as deep as the one that it stands behind: the first and the last stay as they are.
    inner = {name for name in names if name.startswith(("blocks.1.", "blocks.2.", "vace_blocks.1."))}
    fp8 = {name.removeprefix("model.") for name, types in product_types(out).items() if types == {"fp8"}}
    assert fp8 == inner
    # Two in each block, each one kernel.
    assert len(fused_attention(out)) == 2 * (4 + len(CONTROL))
