"""Which models a command line asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.engine.build.request import BuildRequest, named_models, rebuild_command

SAMPLING = ModelSampling(timesteps=(1000.0, 750.0), guidance=1.0)


def test_models_in_order_and_again_from_the_command_that_rebuilds_them(tmp_path: Path) -> None:
    models = named_models("a", "b", ["draft=Org/Name@main", "other:xyz=c=d"], {"draft": SAMPLING, "small": SAMPLING})
    assert [(model.name, model.letter, model.expert_letters, model.source) for model in models] == [
        ("large", "L", "", "a"),
        ("small", "S", "", "b"),
        ("draft", "D", "", "Org/Name@main"),
        ("other", "X", "YZ", "c=d"),
    ]
    asked = BuildRequest(
        models=models, out=tmp_path, size=None, frames=None, precision=None, backend="onnxruntime", targets=()
    )
    words = rebuild_command(asked)
    assert words[1:9] == (
        "--large",
        "a",
        "--small",
        "b",
        "--model",
        "draft:D=Org/Name@main",
        "--model",
        "other:XYZ=c=d",
    )
    assert words[-8:] == (
        *("--small-timesteps", "1000,750", "--small-guidance", "1"),
        *("--model-timesteps", "draft=1000,750", "--model-guidance", "draft=1"),
    )
    assert [model.name for model in named_models(None, None, ["base=a"])] == ["base"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            ["lightning=c"],
            "The models large and lightning have the same letter L; give another: --model lightning:X=",
        ),
        (["draft:S=c"], "The models small and draft have the same letter S"),
        (["draft:DLS=c"], "The models large and draft have the same letter L"),
        (["draft:DHH=c"], "Parts of draft have the same letter H"),
        (["draft=c", "draft:E=d"], "Two models are called draft; give one another name"),
        (["large:X=c"], "Two models are called large"),
        (["c"], "--model c was given, but NAME=DIR_OR_HUB_ID was expected"),
        (["draft="], "--model draft= was given, but NAME=DIR_OR_HUB_ID was expected"),
        (["=c"], "--model calls a model nothing, but a name has small letters and digits"),
        (["vae=c"], "--model calls a model vae, but"),
        (["My-Model=c"], "--model calls a model My-Model, but"),
        (["draft:=c"], "--model draft has nothing for its letter, but one letter from A to Z was expected"),
        (
            ["draft:DE=c"],
            "--model draft has DE for its letter, but one letter from A to Z was expected, or three",
        ),
        (["draft:1=c"], "--model draft has 1 for its letter"),
    ],
)
def test_models_that_cannot_be_told_apart_or_read(others: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        named_models("a", "b", others)
    assert str(error.value).startswith(message)


def test_no_model_and_a_sampling_of_none() -> None:
    with pytest.raises(UsageError, match="No model was given; give --large DIR_OR_HUB_ID"):
        named_models(None, None)
    with pytest.raises(UsageError, match="were given for the model draft, but the models are large"):
        named_models("a", None, sampling={"draft": SAMPLING})
