"""Opening the models of a build: experts, their letters, and what is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.build.models import OpenModels, named, open_models
from flowblending.engine.build.request import BuildRequest, named_models
from flowblending.engine.build.sources import Folders

INDEX, CONFIG = "large/model_index.json", "large/transformer_2/config.json"


@pytest.fixture
def pair(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints("wan-experts"), tmp_path / "pair"))


def opened(pair: Path, *others: str, small: str = "small") -> OpenModels:
    models = named_models(str(pair / "large"), str(pair / small), others)
    request = BuildRequest(
        models=models, out=Path("out"), size=None, frames=None, precision=None, backend="onnxruntime", targets=()
    )
    folders = {model.name: Path(model.source) for model in models}
    return open_models(request, Folders(base=pair / "large", models=folders))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_two_experts_are_one_model_of_two_engines(pair: Path) -> None:
    found = opened(pair)
    assert list(found.transformers) == ["large_high", "large_low", "small"]
    large, small = named(found.models)
    assert (large.components, large.boundary, large.letters) == (("large_high", "large_low"), 0.875, ("H", "W"))
    assert (small.components, small.boundary, small.letters) == (("small",), None, ())


def test_letters_that_are_taken_are_left_to_those_who_took_them(pair: Path) -> None:
    models = named(opened(pair, f"high={pair / 'draft'}", f"more={pair / 'large'}", f"own:XYZ={pair / 'large'}").models)
    assert {model.name: (model.letter, *model.letters) for model in models} == {
        "large": ("L", "A", "W"),
        "small": ("S",),
        "high": ("H",),
        "more": ("M", "B", "C"),
        "own": ("X", "Y", "Z"),
    }


@pytest.mark.parametrize(
    "fields", [{"transformer_2": [None, None]}, {"boundary_ratio": None}], ids=["no second transformer", "no boundary"]
)
def test_a_boundary_and_a_second_transformer_mean_nothing_alone(pair: Path, fields: dict[str, object]) -> None:
    change(pair / INDEX, **fields)
    assert list(opened(pair).transformers) == ["large", "small"]


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            CONFIG,
            {"num_layers": 3},
            "two experts of .*large differ: num_layers is 4 in transformer but 3 in transf",
        ),
        (CONFIG, {"in_channels": 36}, "differ: in_channels is 16 in transformer but 36 in transformer_2; give"),
        (CONFIG, {"_class_name": "X"}, "says that the transformer_2 is a WanTransformer3DModel, but .* that of a X"),
        (CONFIG, {"quantization_config": {"quant_method": "gguf"}}, "transformer_2 is quantised with gguf"),
        (INDEX, {"boundary_ratio": 1.5}, "has boundary_ratio = 1.5, but a number from 0 to 1 was expected"),
        (INDEX, {"boundary_ratio": "high"}, "has boundary_ratio = 'high', but a number"),
    ],
)
def test_experts_that_are_none(pair: Path, file: str, fields: dict[str, object], message: str) -> None:
    change(pair / file, **fields)
    with pytest.raises(FlowBlendingError, match=message) as caught:
        opened(pair)
    assert "\n" not in str(caught.value)


def test_a_missing_expert(pair: Path) -> None:
    (pair / "large/transformer_2/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FlowBlendingError, match=r"large/transformer_2 "):
        opened(pair)


def test_models_whose_latents_differ_are_told_their_channels(pair: Path) -> None:
    """As Wan 2.2 TI2V-5B beside A14B: 48 channels, and a timestep for every token."""
    shutil.copytree(pair / "large", pair / "ti2v")
    change(pair / "ti2v/transformer/config.json", in_channels=48, out_channels=48)
    change(pair / "ti2v/model_index.json", expand_timesteps=True, transformer_2=[None, None])
    with pytest.raises(FlowBlendingError, match=r"in_channels is 16 in the large one \(.*\) but 48 in the small one"):
        opened(pair, small="ti2v")
    change(pair / "ti2v/transformer/config.json", in_channels=16, out_channels=16)
    with pytest.raises(FlowBlendingError, match=r"timestep per token is False in the large one .* True in the small"):
        opened(pair, small="ti2v")
