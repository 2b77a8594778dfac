"""One checkpoint as both models of a bundle, in two precisions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flowblending import UsageError
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.engine.backends.registry import BACKENDS
from flowblending.engine.build.build import build_bundle
from flowblending.engine.build.fp8_middle import with_fp8_middle
from flowblending.engine.build.lora import read_loras
from flowblending.engine.build.precision import choose_precisions
from flowblending.engine.build.request import BuildRequest, ModelRequest, named_models, rebuild_command
from flowblending.system.console import Console

SAMPLING = {"large": ModelSampling(timesteps=(1000.0, 500.0), guidance=1.0)}


def asked(precision: str | None, **changes: Any) -> BuildRequest:
    request = BuildRequest(
        models=named_models("ORG/X", None, sampling=SAMPLING),
        out=Path("out"),
        size=None,
        frames=None,
        precision=precision,
        backend="tensorrt",
        targets=(),
    )
    return dataclasses.replace(request, **changes)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("fp8-middle", "small=fp8"),
        ("fp8-middle,large=fp16", "large=fp16,small=fp8"),
        ("vae=bf16, fp8-middle", "vae=bf16,small=fp8"),
        ("fp16,fp8-middle", "fp16,small=fp8"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS.built_in)
def test_it_is_a_pair_of_one_checkpoint(text: str, same_as: str, backend: str) -> None:
    request = with_fp8_middle(asked(text))
    assert request == asked(
        same_as,
        models=named_models("ORG/X", "ORG/X", sampling=SAMPLING | {"small": SAMPLING["large"]}),
    )
    if "bf16" in text and backend == "onnxruntime":
        return
    chosen = choose_precisions(request.precision, backend, request.names)
    assert str(chosen["small"]) == "fp8"
    assert str(chosen["large"]) == ("fp16" if "fp16" in text else BACKENDS.get(backend).base)
    # The command in the manifest makes the same bundle again.
    command = rebuild_command(request)
    assert command[1:5] == ("--large", "ORG/X", "--small", "ORG/X")
    assert command[command.index("--precision") + 1] == same_as


@pytest.mark.parametrize("precision", [None, "fp8", "large=bf16"])
def test_others_stay_as_they_are(precision: str | None) -> None:
    assert with_fp8_middle(asked(precision)) == asked(precision)


def test_lora_are_for_both() -> None:
    loras = read_loras(["a.safetensors:0.5,large=b.safetensors", "small=c.safetensors,large_high=d.safetensors"])
    found = [str(lora) for lora in with_fp8_middle(asked("fp8-middle", loras=loras)).loras]
    assert found == [
        *("large=a.safetensors:0.5", "small=a.safetensors:0.5", "large=b.safetensors", "small=b.safetensors"),
        *("small=c.safetensors", "large_high=d.safetensors", "small_high=d.safetensors"),
    ]


@pytest.mark.parametrize(
    ("precision", "models", "message"),
    [
        (
            "fp8-middle",
            named_models("X", "Y"),
            r"as large and small \(L and S\), but large \(L\), small \(S\) was given",
        ),
        ("fp8-middle", named_models(None, "Y"), r"but small \(S\) was given; give --large alone"),
        ("fp8-middle", named_models(None, None, ["student=Y"]), r"but student \(S\) was given"),
        ("fp8-middle", named_models(None, None, ["base:BSX=Y"]), r"but base \(B\) was given"),
        ("fp8-middle,small=bf16", named_models("X", None), "the model small of fp8-middle is in fp8; leave"),
    ],
)
def test_what_it_does_not_fit_is_refused_before_anything_is_read(
    precision: str, models: tuple[ModelRequest, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        build_bundle(asked(precision, models=models, out=tmp_path / "out"), Console(quiet=True))
    assert not (tmp_path / "out").exists()
