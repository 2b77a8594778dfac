"""Graphs compiled by the real TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision, TensorSpec
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import compile_plan
from flowblending.engine.backends.tensorrt.library import load
from tests.support.graphs import attention, linear
from tests.support.plans import RTX, build, ignore, needs_rtx, request


@needs_rtx
def test_one_plan_for_several_gpus(tmp_path: Path) -> None:
    graph, out, phases = linear(tmp_path), tmp_path / "large.plan", list[str]()
    out.write_bytes(b"an older plan")
    info = build(graph, out, "sm89", "sm120", progress=phases.append)
    plan = out.read_bytes()
    assert info.bytes == len(plan) > 10_000
    assert info.weights_bytes is not None
    assert info.weights_bytes >= graph.data.stat().st_size
    assert info.scratch_bytes is not None
    assert info.layers >= 3
    assert info.version == load(RTX).version
    assert phases.index("reading the graph") < phases.index("compiling") < phases.index("Building engine")
    # The compiler itself recognises its format and names what it compiled for.
    library = load(RTX)
    _, malformed = library.trt.Runtime(library.logger).get_engine_validity(plan)
    assert malformed == 0
    assert (b"sm89" in plan, b"sm120" in plan, b"sm86" in plan) == (True, True, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data", "large.plan"]


@needs_rtx
@pytest.mark.parametrize("precision", [each for each in Precision if each is not Precision.FP8])
def test_16_bit_attention_is_fused_and_fp32_attention_compiles(tmp_path: Path, precision: Precision) -> None:
    out = tmp_path / "large.plan"
    compile_plan(request(attention(tmp_path, precision), out, ("sm89", "sm120")), ignore)
    # Kernels lie in the plan as readable source: this is the name of the fused one.
    assert (b"_gemm_mha_v2" in out.read_bytes()) == (precision != Precision.FP32)


@needs_rtx
def test_attention_that_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    graph = attention(tmp_path, Precision.FP16, heads=1, size=384)
    with pytest.raises(FlowBlendingError, match=r"fp16 attention of large, .* 384 channels, on sm89; .*=fp32"):
        compile_plan(request(graph, tmp_path / "large.plan"), ignore)


@needs_rtx
def test_the_compilers_own_words_are_in_the_message(tmp_path: Path) -> None:
    out = tmp_path / "large.plan"
    with pytest.raises(FlowBlendingError, match=r"cannot compile large for sm75 \(.*FP32 GEMM is not supp.*\); try"):
        build(linear(tmp_path), out, "sm75")
    assert not list(tmp_path.glob("*plan*"))


@needs_rtx
@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ({"batch": Range.fixed(1)}, "gives no size for tokens of input x of large"),
        ({"batch": Range.fixed(1), "tokens": Range(min=8, opt=4, max=16)}, r"\[1, 8, 64\], \[1, 4, 64\] and"),
        ({"batch": Range.fixed(1), "tokens": Range(min=4, opt=8, max=7)}, r"\[1, 8, 64\] and \[1, 7, 64\]"),
        ({"batch": Range.fixed(0), "tokens": Range.fixed(4)}, r"but 0 < smallest"),
    ],
)
def test_an_impossible_profile_is_refused(tmp_path: Path, symbols: dict[str, Range], message: str) -> None:
    impossible = replace(request(linear(tmp_path), tmp_path / "p"), profiles=(ShapeProfile(symbols),))
    with pytest.raises(FlowBlendingError, match=message):
        compile_plan(impossible, ignore)


@needs_rtx
def test_a_plan_for_several_sizes(tmp_path: Path) -> None:
    """Without a GPU no plan can be opened, but the compiler tells what each profile takes."""
    one = request(linear(tmp_path), tmp_path / "one.plan")
    wide = ShapeProfile({"batch": Range(min=1, opt=1, max=2), "tokens": Range(min=64, opt=512, max=2048)})
    small = compile_plan(one, ignore)
    several = compile_plan(replace(one, profiles=(*one.profiles, wide), out=tmp_path / "p"), ignore)
    lines = load(RTX).messages.lines()
    scratch = [int(line.split()[-2]) for line in lines if line.startswith("Max Scratch Memory")]
    assert len(scratch) == 2
    assert several.scratch_bytes == max(scratch) >= (small.scratch_bytes or 0)
    assert several.weights_bytes == small.weights_bytes
    assert several.bytes > small.bytes


@needs_rtx
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorSpec(name="x", dtype="float32", shape=("batch", "tokens", 32)), r"64\], .* but .*\[-1, -1, 32\]"),
        (TensorSpec(name="x", dtype="int64", shape=("batch", "tokens", 64)), r"x float32 .*, but .* x int64"),
        (TensorSpec(name="latents", dtype="float32", shape=("batch", "tokens", 64)), r"has x .*, but .* has latents"),
    ],
)
def test_a_graph_that_is_not_as_specified_is_refused(tmp_path: Path, tensor: TensorSpec, message: str) -> None:
    graph = linear(tmp_path)
    other = replace(request(graph, tmp_path / "p"), spec=replace(graph.spec, inputs=(tensor,)))
    with pytest.raises(FlowBlendingError, match=message):
        compile_plan(other, ignore)


@needs_rtx
def test_damaged_graphs_and_weights_are_named(tmp_path: Path) -> None:
    graph = linear(tmp_path)
    bare = request(graph, tmp_path / "p")
    os.truncate(graph.data, 100)
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data is 100 bytes long"):
        compile_plan(bare, ignore)
    graph.data.unlink()
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data of large\.onnx cannot be read"):
        compile_plan(bare, ignore)
    graph.onnx.write_bytes(graph.onnx.read_bytes().replace(b"Softmax", b"Sofdmax"))
    graph.data.write_bytes(bytes(64 * 65 * 4))
    with pytest.raises(FlowBlendingError, match=r"TensorRT-RTX .* cannot read .*large\.onnx \(.*Sofdmax.*\); export"):
        compile_plan(bare, ignore)
    graph.onnx.write_bytes(b"x" * 999)
    with pytest.raises(FlowBlendingError, match=r"large\.onnx is not an ONNX model"):
        compile_plan(bare, ignore)
    graph.onnx.unlink()
    with pytest.raises(FlowBlendingError, match=r"graph .*large\.onnx cannot be read \(No such file"):
        compile_plan(bare, ignore)


@needs_rtx
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        compile_plan(request(linear(tmp_path), Path("/dev/full")), ignore)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match="nowhere"):  # as it arrives from the compiler's process
        build(linear(tmp_path, "small"), tmp_path / "nowhere" / "small.plan", "sm89")
