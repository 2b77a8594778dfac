"""The text encoder's graph against the pipelines' own encode_prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DiffusionPipeline
from tokenizers import Tokenizer
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from flowblending import FlowBlendingError
from flowblending.contracts.graph import TEXT_ENCODER, Precision
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.families.registry import family_of
from flowblending.export.families.t5 import text_encoder_part
from flowblending.export.families.tokenizer import read_tokenizer
from flowblending.export.graph.exportable import Exportable, Part
from flowblending.export.graph.trace import export_graph
from flowblending.export.verify.verify import TOLERANCE

PROMPTS = ["A cat walks on the grass.", "", "一只猫 🐈 " + "walks over the wooden floor and back again, " * 60]
KINDS = {"t5": (T5EncoderModel, T5Config), "umt5": (UMT5EncoderModel, UMT5Config)}


def _part(checkpoint: Checkpoint) -> Part:
    """The text encoder as the checkpoint's family asks for it."""
    return next(part for part in family_of(checkpoint).parts(checkpoint) if part.name == TEXT_ENCODER)


def encoder(folder: Path, kind: str, **settings: object) -> Checkpoint:
    """A checkpoint that has nothing but a random text encoder."""
    model, config = KINDS[kind]
    torch.manual_seed(len(settings))
    base = {"vocab_size": 40, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 3}
    stock = model(config(**base | settings))
    with torch.no_grad():
        for weight in stock.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    stock.save_pretrained(folder / TEXT_ENCODER)
    return Checkpoint(folder=folder, pipeline="LTXPipeline")


def _distance(exportable: Exportable, seed: int) -> float:
    """Relative L2 distance between the module in torch and its reference."""
    inputs = exportable.inputs({"batch": 3}, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        (found,), (expected,) = exportable.module(*inputs), exportable.reference(*inputs)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "settings"),
    [
        (16, {}),
        (33, {"feed_forward_proj": "relu", "num_layers": 1}),
        # Distances on both sides of every bucket's edge, and past the last one.
        (160, {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32}),
        (64, {"feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 20, "d_kv": 5}),
    ],
)
@pytest.mark.parametrize(("zero", "attend"), [(False, False), (True, False), (False, True), (True, True)])
def test_equals_the_stock_classes(
    tmp_path: Path, kind: str, length: int, settings: dict[str, object], zero: bool, attend: bool
) -> None:
    part = text_encoder_part(encoder(tmp_path, kind, **settings), length, zero_padding=zero, attend_padding=attend)
    exportable = part.load(Precision.FP32)
    names = [tensor.name for tensor in exportable.spec.inputs]
    assert names == (["ids"] if attend and not zero else ["ids", "mask"])
    assert _distance(exportable, seed=1) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_neither_overflows_nor_drifts(tmp_path: Path, kind: str) -> None:
    checkpoint = encoder(tmp_path, kind, feed_forward_proj="gated-gelu")
    # T5's second feed-forward matrix gives sums beyond fp16's 65504; so do these.
    model = KINDS[kind][0].from_pretrained(tmp_path / TEXT_ENCODER)
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[-1].DenseReluDense.wo.weight.mul_(1e6)
    model.save_pretrained(tmp_path / TEXT_ENCODER)
    part = text_encoder_part(checkpoint, 16, zero_padding=False)
    half, full = part.load(Precision.FP16), part.load(Precision.FP32)
    inputs = full.inputs({"batch": 2}, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,), (expected,) = half.module(*inputs), full.module(*inputs)
    assert found.isfinite().all()
    assert (found - expected).norm() < 1e-2 * expected.norm()
    assert {str(weight.dtype) for name, weight in half.module.named_parameters() if ".wo." in name} == {"torch.float32"}
    assert _distance(half, seed=2) < TOLERANCE[Precision.FP16].relative


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_nearer_to_fp32_than_the_stock_class_is(tmp_path: Path, kind: str) -> None:
    part = text_encoder_part(encoder(tmp_path, kind, num_layers=12), 16, zero_padding=False)
    narrow, full = part.load(Precision.BF16), part.load(Precision.FP32)
    stock = KINDS[kind][0].from_pretrained(tmp_path / TEXT_ENCODER, dtype=torch.bfloat16)
    ids, mask = full.inputs({"batch": 3}, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,), (expected,) = narrow.module(ids, mask), full.reference(ids, mask)
        theirs = stock(ids, attention_mask=mask).last_hidden_state.float()
        assert torch.equal(narrow.reference(ids, mask)[0], expected)
    assert (found - expected).norm() < 0.8 * (theirs - expected).norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan", "ltx", pytest.param("ltx-condition", marks=pytest.mark.long)])
@pytest.mark.parametrize("precision", [Precision.FP32, pytest.param(Precision.FP16, marks=pytest.mark.long)])
def test_graph_encodes_prompts_as_the_pipeline_does(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str, precision: Precision
) -> None:
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    length = family_of(checkpoint).describe(checkpoint).text_length
    graph = export_graph(_part(checkpoint).load(precision), tmp_path, "")
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_str(read_tokenizer(checkpoint).content.decode())
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    encoded = tokenizer.encode_batch(PROMPTS)
    feed = {"ids": [each.ids for each in encoded], "mask": [each.attention_mask for each in encoded]}
    found = session.run(None, {tensor.name: np.array(feed[tensor.name]) for tensor in graph.spec.inputs})[0]
    dtype = torch.float16 if precision is Precision.FP16 else torch.float32
    pipeline = DiffusionPipeline.from_pretrained(checkpoint.folder, torch_dtype=dtype)
    with torch.no_grad():
        expected = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=length)[0]
    expected = expected.float().numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < TOLERANCE[precision].relative * np.linalg.norm(expected)
    if kind == "wan":
        assert not found[1, 1:].any()


def test_refuses_other_encoders_and_missing_weights(tmp_path: Path) -> None:
    checkpoint = encoder(tmp_path, "t5")
    weights = tmp_path / TEXT_ENCODER / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    del tensors["encoder.block.1.layer.1.layer_norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(FlowBlendingError, match=r"lack encoder\.block\.1\.layer\.1\.layer_norm\.weight"):
        text_encoder_part(checkpoint, 16, zero_padding=False).load(Precision.FP32)
    config = tmp_path / TEXT_ENCODER / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    with pytest.raises(FlowBlendingError, match="is of type llama, but t5 or umt5 was expected"):
        text_encoder_part(checkpoint, 16, zero_padding=False)
