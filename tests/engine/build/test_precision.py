from __future__ import annotations

import re

import pytest

from flowblending import UsageError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.build import precision
from flowblending.engine.build.precision import choose_precisions, component_precision

MODELS = ("large", "small")
NAMES = ("large", "small", "text_encoder", "vae_first", "vae_next")


@pytest.mark.parametrize(
    ("text", "backend", "expected"),
    [
        (None, "onnxruntime", "fp32 fp32 fp32 fp32 fp32"),
        (None, "tensorrt", "bf16 bf16 bf16 fp32 fp32"),
        ("fp16", "onnxruntime", "fp16 fp16 fp32 fp32 fp32"),
        ("fp16-mixed", "onnxruntime", "fp16-mixed fp16-mixed fp32 fp32 fp32"),
        ("small=fp16-mixed", "tensorrt", "bf16 fp16-mixed bf16 fp32 fp32"),
        ("large=bf16,small=fp16", "tensorrt-rtx", "bf16 fp16 bf16 fp32 fp32"),
        ("large=bf16,small=fp8", "tensorrt-rtx", "bf16 fp8 bf16 fp32 fp32"),
        ("fp8", "onnxruntime", "fp8 fp8 fp32 fp32 fp32"),
        ("fp16, vae=bf16", "tensorrt", "fp16 fp16 bf16 bf16 bf16"),
        ("small=fp16,text_encoder=fp32", "tensorrt", "bf16 fp16 fp32 fp32 fp32"),
    ],
)
def test_precisions(text: str | None, backend: str, expected: str) -> None:
    chosen = choose_precisions(text, backend, MODELS)
    assert " ".join(component_precision(chosen, name) for name in NAMES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp4", "Precision 'fp4' was given, but ONNX Runtime has .*; use --precision fp32, for example"),
        ("fp8,vae=fp8", "asks for vae=fp8, but only the transformers have that; use vae=fp32"),
        ("text_encoder=fp8", "text_encoder=fp8, but only the transformers"),
        ("medium=fp16", "names 'medium', but the components are large, small, text_encoder, vae, vae_encoder"),
        ("=fp16", "names ''"),
        ("", "Precision '' was given"),
        ("bf16", "ONNX Runtime has no bf16 kernels .*; use --precision .*fp8"),
        ("vae=bf16", "ONNX Runtime has no bf16 kernels .*; use --precision vae=fp32 or fp16, or"),
        ("text_encoder=fp16-mixed", "text_encoder=fp16-mixed, but only the transformers .*; use text_encoder=fp16,"),
        ("fp16,vae=fp16-mixed", "asks for vae=fp16-mixed, but only the transformers have that; use vae=fp32"),
    ],
)
def test_wrong_precisions(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_precisions(text, "onnxruntime", MODELS)


@pytest.mark.parametrize("backend", BACKENDS.built_in)
@pytest.mark.parametrize("wrong", ["fp61", "bf61", "large=x", "bf16", "text_encoder=bf16", "vae=bf16"])
def test_what_a_message_suggests_is_accepted(backend: str, wrong: str) -> None:
    try:
        choose_precisions(wrong, backend, MODELS)
    except UsageError as error:
        advice = str(error).partition("; use --precision ")[2].partition(", or --backend")[0].partition(", for")[0]
        name, equals, words = advice.rpartition("=")
        for word in re.split(r", | or ", words):
            choose_precisions(name + equals + word, backend, MODELS)


@pytest.mark.parametrize(
    ("gpu", "provider", "expected"),
    [
        ("sm90", True, "fp16-mixed fp16-mixed fp16 fp32 fp32"),
        ("sm90", False, "fp32 fp32 fp32 fp32 fp32"),
        (None, True, "fp32 fp32 fp32 fp32 fp32"),
    ],
)
def test_onnx_runtime_takes_half_where_it_has_a_gpu(
    gpu: str | None, provider: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "gpu_architecture", lambda: gpu)
    providers = ["CUDAExecutionProvider"] if provider else []
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [*providers, "CPUExecutionProvider"])
    chosen = choose_precisions(None, "onnxruntime", MODELS)
    assert " ".join(component_precision(chosen, name) for name in NAMES) == expected
    assert component_precision(choose_precisions("fp32", "onnxruntime", MODELS), "large") is Precision.FP32
    assert component_precision(choose_precisions(None, "tensorrt", MODELS), "large") is Precision.BF16
