"""Attention in fp8: what enters it in a graph, against E4M3 written out; and what the real compiler makes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Dim, ExportedGraph, GraphSpec, Precision, TensorSpec
from flowblending.contracts.proof import Compared, read_proof
from flowblending.engine.backends.backend import Compiled, Fp8AttentionError
from flowblending.engine.backends.protocol import Range, ShapeProfile
from flowblending.engine.backends.tensorrt.compile import PlanRequest, compile_plan
from flowblending.engine.backends.tensorrt.listing import LISTING, fp8_attention, fused_attention
from flowblending.engine.build.proof.component import gather
from flowblending.export.fp8.attention import block_attention, quantise_attention
from flowblending.export.fp8.layers import fp8_scale, quantise
from flowblending.export.fp8.observe import observe
from flowblending.export.graph.audit import audit
from flowblending.export.graph.trace import read_graph, write_graph
from tests.export.fp8.test_layers import Floats, through_fp8
from tests.support.plans import RTX, ignore, needs_rtx

HEADS, HEAD = 2, 64
WIDTH = HEADS * HEAD
PARTS = ("query", "key", "value")
TYPES = {Precision.FP32: TensorProto.FLOAT, Precision.BF16: TensorProto.BFLOAT16}


def blocks(
    folder: Path, count: int, precision: Precision = Precision.FP32, *, keys: int | None = None
) -> ExportedGraph:
    """x [batch, tokens, 128] through self-attention, or attention to ``keys`` tokens of text, and back onto x."""
    kind, dtype = TYPES[precision], helper.tensor_dtype_to_np_dtype(TYPES[precision])
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[Dim, ...]] = {"x": ("batch", "tokens", WIDTH)}
    if keys is not None:
        shapes["text"] = ("batch", keys, WIDTH)
    nodes = [helper.make_node("Cast", [name], [f"{name}.cast"], to=kind) for name in shapes]
    inner, weights, value = {f"{name}.cast": shape for name, shape in shapes.items()}, [], "x.cast"
    for block in range(count):
        name, context = f"blocks.{block}.attn1", value if keys is None else "text.cast"
        for layer, source in (("to_q", value), ("to_k", context), ("to_v", context)):
            for part, shape in (("w", (WIDTH, WIDTH)), ("b", (WIDTH,))):
                values = (generator.standard_normal(shape) / 6).astype(dtype)
                weights.append(numpy_helper.from_array(values, f"{name}.{layer}.{part}"))
            product, total = f"{name}.{layer}.product", f"{name}.{layer}.sum"
            module = f"model.{name}.{layer}"
            nodes.append(helper.make_node("MatMul", [source, f"{name}.{layer}.w"], [product], name=module))
            nodes.append(helper.make_node("Add", [product, f"{name}.{layer}.b"], [total]))
            inner |= dict.fromkeys((product, total), shapes["x" if source == value else "text"])
        heads: dict[str, Any] = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
        taken = [f"{name}.{layer}.sum" for layer in ("to_q", "to_k", "to_v")]
        nodes.append(helper.make_node("Attention", taken, [f"{name}.out"], name=f"attention_{block}", **heads))
        nodes.append(helper.make_node("Add", [f"{name}.out", value], [f"{name}.residual"]))
        inner |= dict.fromkeys((f"{name}.out", f"{name}.residual"), shapes["x"])
        value = f"{name}.residual"
    nodes.append(helper.make_node("Cast", [value], ["y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["x"])],
        weights,
        value_info=[helper.make_tensor_value_info(name, kind, shape) for name, shape in inner.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(model, folder / "large.onnx", save_as_external_data=True, location="large.onnx.data")
    spec = GraphSpec(
        name="large",
        precision=precision,
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shapes["x"]),),
    )
    return ExportedGraph(spec=spec, onnx=folder / "large.onnx", opset=23, weights_sha256="0", versions={})


def ranges(count: int, amax: float) -> dict[str, float]:
    return {f"blocks.{block}.attn1.{part}": amax for block in range(count) for part in PARTS}


def projected(graph: ExportedGraph, x: Floats) -> list[Floats]:
    """Queries, keys and values of the first block."""
    known = {each.name: numpy_helper.to_array(each) for each in onnx.load(graph.onnx).graph.initializer}
    names = [f"blocks.0.attn1.{layer}" for layer in ("to_q", "to_k", "to_v")]
    return [x @ known[f"{name}.w"] + known[f"{name}.b"] for name in names]


def attended(operands: list[np.ndarray]) -> np.ndarray:
    query, key, value = (
        each.reshape(*each.shape[:2], HEADS, HEAD).transpose(0, 2, 1, 3).astype(np.float64) for each in operands
    )
    scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(HEAD))
    found = scores / scores.sum(axis=-1, keepdims=True) @ value
    return np.asarray(found.transpose(0, 2, 1, 3).reshape(operands[0].shape))


def test_the_graph_computes_what_e4m3_gives(tmp_path: Path) -> None:
    plain = blocks(tmp_path / "plain", 1)
    amax = {"query": 3.0, "key": 5.0, "value": 4.0}
    x = np.random.default_rng(1).standard_normal((2, 7, WIDTH)).astype(np.float32)
    entering = projected(plain, x)
    # Some values are clipped.
    assert all(np.abs(each).max() > limit for each, limit in zip(entering, amax.values(), strict=True))
    expected = attended(
        [through_fp8(each, fp8_scale(np.float32(limit))) for each, limit in zip(entering, amax.values(), strict=True)]
    )
    named = {f"blocks.0.attn1.{part}": limit for part, limit in amax.items()}
    graph = write_graph(quantise_attention(read_graph(plain), named, 0), tmp_path / "fp8", "0")
    onnx.checker.check_model(str(graph.onnx))
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0] - x
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(attended(entering) - found) > 1e-2 * np.linalg.norm(found)


def test_what_enters_attention_is_observed_under_the_modules_name(tmp_path: Path) -> None:
    plain = blocks(tmp_path, 2)
    graph = observe(read_graph(plain), 100.0)
    named = {name: row for row, names in enumerate(graph.rows) for name in names}
    assert named.keys() == {
        f"blocks.{block}.attn1.{each}" for block in (0, 1) for each in (*PARTS, "to_q", "to_k", "to_v")
    }
    # The three layers of a block have one input.
    assert len(graph.rows) == 2 * (1 + 3)
    x = np.random.default_rng(2).standard_normal((1, 9, WIDTH)).astype(np.float32)
    written = write_graph(graph.graph, tmp_path / "observed", "0")
    session = onnxruntime.InferenceSession(written.onnx, providers=["CPUExecutionProvider"])
    found = session.run(["ranges"], {"x": x})[0]
    for part, expected in zip(PARTS, projected(plain, x), strict=True):
        np.testing.assert_allclose(found[named[f"blocks.0.attn1.{part}"], 1], np.abs(expected).max(), rtol=1e-5)


def test_the_ends_stay_as_they_are_and_a_missing_range_is_told(tmp_path: Path) -> None:
    plain, sizes = blocks(tmp_path / "plain", 4), {"batch": 2, "tokens": 5}
    graph = write_graph(quantise_attention(read_graph(plain), ranges(4, 2.0), 1), tmp_path / "fp8", "0")
    found = audit(graph.onnx, sizes)
    assert found.attention_types == {
        "attention_0": "fp32",
        "attention_1": "fp8",
        "attention_2": "fp8",
        "attention_3": "fp32",
    }
    assert found.attention == {"fp32": 2, "fp8": 2}
    amax = ranges(4, 2.0)
    del amax["blocks.2.attn1.value"]
    with pytest.raises(FlowBlendingError, match=r"no range for blocks\.2\.attn1\.value of large; calibrate again"):
        quantise_attention(read_graph(plain), amax, 1)
    # Keys alone in 16 bits are no attention in fp8, whatever the others are.
    model = onnx.load(graph.onnx)
    (attention,) = [node for node in model.graph.node if node.name == "attention_1"]
    attention.input[1] = "blocks.1.attn1.to_k.sum"
    onnx.save_model(model, graph.onnx)
    assert audit(graph.onnx, sizes).attention == {"fp32": 3, "fp8": 1}


def profile_of(tokens: Range) -> ShapeProfile:
    return ShapeProfile({"batch": Range(min=1, opt=1, max=2), "tokens": tokens})


def asked(graph: ExportedGraph, out: Path, profile: ShapeProfile, *targets: str) -> PlanRequest:
    return PlanRequest(library=RTX, onnx=graph.onnx, spec=graph.spec, profiles=(profile,), targets=targets, out=out)


def plan(graph: ExportedGraph, out: Path, tokens: Range, *targets: str) -> Path:
    compile_plan(asked(graph, out, profile_of(tokens), *targets or ("sm89",)), ignore)
    return out


def fp8_blocks(folder: Path, *, keys: int | None = None) -> ExportedGraph:
    """Three blocks in bf16, of which the middle one is fp8."""
    traced = read_graph(blocks(folder / "plain", 3, Precision.BF16, keys=keys))
    amax = {f"blocks.1.attn1.{each}": 5.0 for each in (*PARTS, "to_q", "to_k", "to_v")}
    return write_graph(quantise_attention(quantise(traced, amax, 1), amax, 1), folder / "fp8", "0")


@needs_rtx
@pytest.mark.parametrize("keys", [None, 32])
def test_the_compiler_makes_one_fp8_kernel_of_it(tmp_path: Path, keys: int | None) -> None:
    out = plan(fp8_blocks(tmp_path, keys=keys), tmp_path / "p", Range(min=32, opt=64, max=4096), "sm89", "sm120")
    names = {f"attention_{block}" for block in range(3)}
    assert (names & fused_attention(out), names & fp8_attention(out)) == (names, {"attention_1"})
    # Kernels lie in the plan as readable source, and this is the one that multiplies in E4M3.
    assert b"_qmma_e4m3" in out.read_bytes()


@needs_rtx
@pytest.mark.parametrize(("keys", "least"), [(None, 31), (31, 64)])
def test_fewer_than_32_keys_have_no_kernel_and_are_refused(tmp_path: Path, keys: int | None, least: int) -> None:
    graph, tokens = fp8_blocks(tmp_path, keys=keys), Range(min=least, opt=64, max=4096)
    with pytest.raises(
        Fp8AttentionError, match=r"no fused kernel for the fp8 attention of large, .* 64 channels, on sm89 at"
    ):
        plan(graph, tmp_path / "p", tokens)
    # It is not that the attention has none in bf16.
    assert len(fused_attention(plan(blocks(tmp_path / "bf16", 1, Precision.BF16, keys=keys), tmp_path / "q", tokens)))


@needs_rtx
def test_a_graph_that_quantises_less_gets_16_bit_attention(tmp_path: Path) -> None:
    graph = fp8_blocks(tmp_path)
    model = onnx.load(graph.onnx)
    (attention,) = [node for node in model.graph.node if node.name == "attention_1"]
    attention.input[2] = "blocks.1.attn1.to_v.sum"
    onnx.save_model(model, graph.onnx)
    out = plan(graph, tmp_path / "p", Range.fixed(64))
    assert {f"attention_{block}" for block in range(3)} <= fused_attention(out)
    assert fp8_attention(out) == frozenset()
    assert b"_qmma_e4m3" not in out.read_bytes()


def test_attention_is_found_by_the_layer_that_makes_its_values(tmp_path: Path) -> None:
    traced = read_graph(blocks(tmp_path, 2))
    assert [(each.name, each.block, each.node.name) for each in block_attention(traced.model.graph)] == [
        ("blocks.0.attn1", 0, "attention_0"),
        ("blocks.1.attn1", 1, "attention_1"),
    ]
    # One that is in no block, but behind one.
    for node in traced.model.graph:
        node.name = (node.name or "").replace("blocks.1.", "refiner.1.")
    assert [each.name for each in block_attention(traced.model.graph)] == ["blocks.0.attn1"]


@needs_rtx
def test_a_plan_that_tells_of_another_kernel_is_no_fp8_attention(tmp_path: Path) -> None:
    graph, profile = fp8_blocks(tmp_path), profile_of(Range.fixed(64))
    info = compile_plan(asked(graph, tmp_path / "large.plan", profile, "sm89"), ignore)
    compared = Compared(relative=0.0, maximum=0.0, allowed=0.1, sizes=())
    graph.onnx.with_suffix(".compared.json").write_text(compared.model_dump_json())
    compiled = Compiled(files=(tmp_path / "large.plan",), plan=info, listing=LISTING)
    gather(graph, compiled, (profile,), tmp_path)
    proof = read_proof(tmp_path, "large")
    assert proof.plan is not None
    assert (proof.plan.fused, proof.plan.fused_fp8, proof.no_fp8_attention) == (3, 1, None)
    other = dataclasses.replace(LISTING, fp8_attention=lambda _: frozenset({"attention_0"}))
    with pytest.raises(Fp8AttentionError, match=r"of 1 attention operators of large .* in fp8, the plan has 0"):
        gather(graph, dataclasses.replace(compiled, listing=other), (profile,), tmp_path)
