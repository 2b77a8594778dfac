"""Quantised checkpoints, named after what wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flowblending.export.checkpoint.quantised import quantised_by_config, quantised_by_name, quantised_by_type


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes (4 bits)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}},
            "bitsandbytes (8 bits)",
        ),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": "int8wo"}}, "torchao"),
        ({"quantization_config": {"quant_method": "gguf"}}, "gguf"),
        ({"quantization_config": {"rank": 32}}, "a quantization_config in its config.json"),
    ],
)
def test_by_configuration(config: Mapping[str, Any], method: str | None) -> None:
    assert quantised_by_config(config) == method


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("blocks.0.attn1.to_q.weight.absmax", "bitsandbytes (4 bits)"),
        ("blocks.0.attn1.to_q.weight.nested_quant_map", "bitsandbytes (4 bits)"),
        ("blocks.0.attn1.to_q.weight.quant_state.bitsandbytes__nf4", "bitsandbytes (4 bits)"),
        ("blocks.0.attn1.to_q.SCB", "bitsandbytes (8 bits)"),
        ("blocks.0.attn1.to_q.weight._data", "optimum-quanto"),
        ("blocks.0.attn1.to_q.qzeros", "GPTQ or AWQ"),
        ("scaled_fp8", "scaled fp8 or fp4"),
        ("blocks.0.attn1.to_q.scale_weight", "scaled fp8 or fp4"),
        ("blocks.0.attn1.to_q.weight_scale_2", "scaled fp8 or fp4"),
        ("blocks.0.attn1.to_q.comfy_quant", "scaled fp8 or fp4"),
        ("blocks.0.attn1.to_q.input_quantizer._amax", "NVIDIA Model Optimizer"),
        ("blocks.0.attn1.to_q.smooth_factor", "SVDQuant"),
        ("blocks.0.attn1.to_q.weight", None),
        ("blocks.0.scale_shift_table", None),
        ("latents_std", None),
    ],
)
def test_by_name(name: str, method: str | None) -> None:
    assert quantised_by_name(["proj_out.bias", name]) == method


def test_by_type() -> None:
    assert quantised_by_type("F8_E4M3") == "fp8"
    assert quantised_by_type("BF16") is None
