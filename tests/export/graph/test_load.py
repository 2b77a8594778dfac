"""Modules from checkpoints: every weight and buffer as diffusers' own from_pretrained gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, UMT5EncoderModel

from benchmarks.checkpoints import ltx_transformer, ltx_vae, wan_transformer
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.export.graph import load as weights
from flowblending.export.graph.exportable import TORCH_DTYPES
from flowblending.export.graph.load import check_encoder, check_model, load_encoder, load_model
from flowblending.export.graph.stored import stored_of

KINDS: dict[str, tuple[Any, Any]] = {
    "wan": (WanTransformer3DModel, lambda: wan_transformer(1)),
    "ltx": (LTXVideoTransformer3DModel, lambda: ltx_transformer(1)),
    "vae": (AutoencoderKLLTXVideo, lambda: ltx_vae(1, "0.9.5")),
}


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A class, and a folder with its weights in several shards."""
    kind, make = KINDS[request.param]
    make().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return kind, tmp_path


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("streamed", [False, True])
def test_equals_from_pretrained(
    model: tuple[Any, Path], precision: Precision, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, folder = model
    monkeypatch.setattr(weights, "STREAMED_BYTES", 2000)
    stock = kind.from_pretrained(folder, torch_dtype=TORCH_DTYPES[precision])
    found = load_model(kind, folder, precision, streamed=streamed)
    expected = dict(stock.named_parameters()) | dict(stock.named_buffers())
    ours = dict(found.named_parameters()) | dict(found.named_buffers())
    assert list(ours) == list(expected)
    left = 0
    for name, tensor in ours.items():
        stored = stored_of(tensor)
        left += stored is not None
        assert stored is None or set(tensor.stride()) == {0}
        value = tensor if stored is None else stored.read()
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(value, expected[name]), name
    assert (left > 5) == streamed
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("kind", [T5EncoderModel, UMT5EncoderModel])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("tables", ["shared", "encoder.embed_tokens", "shared encoder.embed_tokens"])
def test_text_encoders_equal_from_pretrained(
    kind: Any, precision: Precision, tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"vocab_size": 40, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    torch.manual_seed(0)
    kind(kind.config_class(**settings, feed_forward_proj="gated-gelu")).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors.pop("shared.weight")
    # Two tables that differ are two tables, of which the encoder uses its own.
    tensors |= {f"{name}.weight": table + index for index, name in enumerate(tables.split())}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stock = kind.from_pretrained(tmp_path, dtype=TORCH_DTYPES[precision])
    monkeypatch.setattr(weights, "STREAMED_BYTES", 2000)
    found = load_encoder(kind, tmp_path, precision)
    expected, ours = (dict(model.named_parameters(remove_duplicate=False)) for model in (stock, found))
    assert list(ours) == list(expected)
    for name, tensor in ours.items():
        stored = stored_of(tensor)
        value = tensor if stored is None else stored.read()
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(value, expected[name]), name
    assert sum(stored_of(tensor) is not None for tensor in ours.values()) > 5
    assert not found.training
    assert found.config._attn_implementation == stock.config._attn_implementation


def test_the_first_blocks_alone(tmp_path: Path) -> None:
    transformer = wan_transformer(1)
    transformer.save_pretrained(tmp_path)
    expected = {name: value for name, value in transformer.state_dict().items() if not name.startswith("blocks.")}
    assert len(expected) < len(transformer.state_dict())
    found = load_model(WanTransformer3DModel, tmp_path, Precision.FP32, layers=0).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    wan_transformer(1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_layers": 3}, r"The weights in .* lack blocks\.2\.scale_shift_table, .* and 24 more; give a checkpoint"),
        ({"num_layers": 1}, r"hold blocks\.1\.attn1\..* and 24 more, for which a WanTransformer3DModel of this config"),
        (
            {"ffn_dim": 65},
            r"blocks\.0\.ffn\..* has shape \[64, 32\], but config\.json asks for \[65, 32\] \(5 more differ, too\)",
        ),
        ({"patch_size": 3}, r"Cannot load the model in .*; give a complete diffusers checkpoint"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(FlowBlendingError, match=message):
            load_model(WanTransformer3DModel, tmp_path, Precision.FP32)


def test_checks_headers_alone(tmp_path: Path) -> None:
    """Nothing but the headers is there: the weights are holes."""
    wan_transformer(1).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:start])
    with path.open("r+b") as file:
        file.truncate(len(content))
    assert check_model(WanTransformer3DModel, tmp_path) == ()
    assert not any(path.read_bytes()[start:])


def test_what_may_be_left_out_is_told_with_the_reason(tmp_path: Path) -> None:
    wan_transformer(1).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    extra = {"blocks.0.attn2.norm_added_q.weight": torch.ones(32), "rope.freqs_cos": torch.ones(64, 16)}
    save_file(tensors | extra, path)
    assert check_model(WanTransformer3DModel, tmp_path) == (
        f"{tmp_path}: blocks.0.attn2.norm_added_q.weight is left out (its class ignores them).",
        f"{tmp_path}: rope.freqs_cos is left out (positions, which the class computes).",
    )
    found = load_model(WanTransformer3DModel, tmp_path, Precision.FP32).state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_text_encoder_may_lie_beside_its_decoder(tmp_path: Path) -> None:
    settings = {"vocab_size": 40, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 3}
    for kind in (T5EncoderModel, UMT5EncoderModel):
        encoder = kind(kind.config_class(**settings))
        encoder.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        decoder = {"decoder.final_layer_norm.weight": torch.ones(24), "lm_head.weight": torch.ones(40, 24)}
        save_file(load_file(path) | decoder, path)
        assert check_encoder(kind, tmp_path) == (
            f"{tmp_path}: decoder.final_layer_norm.weight, lm_head.weight are left out "
            "(the decoder, which encodes no text).",
        )
        save_file(load_file(path) | {"encoder.block.0.layer.0.gate": torch.ones(3)}, path)
        for reads in (check_encoder, lambda kind, folder: load_encoder(kind, folder, Precision.FP32)):
            with pytest.raises(
                FlowBlendingError, match=r"hold encoder\.block\.0\.layer\.0\.gate, for which a U?M?T5Enc"
            ):
                reads(kind, tmp_path)
