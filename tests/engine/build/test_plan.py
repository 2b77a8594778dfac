"""Builds from the hub: what is refused before any weight is fetched, and that a build then gives the same bundle."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flowblending import FlowBlendingError
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.request import named_models
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support.hub_server import Hub, serve, use
from tests.support.store_process import Recorder

LARGE, SMALL = "Wan-AI/Large-Diffusers", "Wan-AI/Small-Diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def repositories(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """Folders ``large`` and ``small`` that the hub serves, and a test may damage."""
    return shutil.copytree(checkpoints("wan"), tmp_path / "pair")


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(repositories={LARGE: repositories / "large", SMALL: repositories / "small"})) as hub:
        use(hub, tmp_path / "cache", monkeypatch.setattr)
        # Headers are a part of what even these small files hold.
        monkeypatch.setattr("flowblending.export.checkpoint.hub._FIRST_READ", 8)
        yield hub


def headers(folder: Path) -> int:
    """Bytes of the headers of all weights."""
    return sum(8 + int.from_bytes(path.open("rb").read(8), "little") for path in folder.rglob("*.safetensors"))


def request(out: Path, **changes: Any) -> BuildRequest:
    asked = BuildRequest(
        models=named_models(LARGE, SMALL),
        out=out,
        size="32x48",
        frames=9,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )
    return dataclasses.replace(asked, **changes)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(max(name for name in tensors if "embed" not in name))
    save_file(tensors, path)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"size": "33x48"}, "33x48"),
    "frames": ({"frames": 10}, "10"),
    "precision": ({"precision": "int3"}, "int3"),
    "small": ({"models": named_models(LARGE, "Wan-AI/Smal-Diffusers")}, "the hub has no Wan-AI/Smal-Diffusers"),
    "fp8 blocks": ({"precision": "fp8", "fp8": Fp8Options(keep="9")}, "--fp8-keep"),
    "fp8 calibration": ({"precision": "fp8", "fp8": Fp8Options(calibration=Path("nowhere.json"))}, "nowhere.json"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_wrong_argument_costs_no_weight(case: str, hub: Hub, repositories: Path, tmp_path: Path) -> None:
    changes, says = ARGUMENTS[case]
    with pytest.raises(FlowBlendingError, match=says) as caught:
        build_bundle(request(tmp_path / "out" / "bundle", **changes), Console(quiet=True))
    assert "models--" not in str(caught.value)
    assert hub.weights() <= headers(repositories)
    assert not (tmp_path / "out" / "bundle").exists()


def test_a_taken_folder_costs_nothing(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FlowBlendingError, match="exists and is no bundle"):
        build_bundle(request(tmp_path / "mine"), Console(quiet=True))
    assert hub.fetched == {}


def set_shift(shift: float) -> Callable[[Path], None]:
    return lambda pair: change(pair / "large/scheduler/scheduler_config.json", flow_shift=shift)


def no_levels(shift: float) -> str:
    return f"The configuration of {LARGE}/scheduler has flow_shift = {shift}, but a number above 0 was expected"


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no second expert": (
        lambda pair: change(pair / "large/model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        f"^Cannot read {LARGE}/transformer_2/config.json",
    ),
    "quantised": (
        lambda pair: change(pair / "small/config.json", quantization_config={"quant_method": "gguf"}),
        f"^{SMALL} is quantised with gguf",
    ),
    "too many blocks": (
        lambda pair: change(pair / "small/config.json", num_layers=1),
        f"weights in {SMALL} hold blocks",
    ),
    "missing, small": (lambda pair: drop_a_tensor(pair / "small" / WEIGHTS), f"The weights in {SMALL} lack "),
    "missing, text": (
        lambda pair: drop_a_tensor(pair / "large/text_encoder/model.safetensors"),
        f"The weights in {LARGE}/text_encoder lack ",
    ),
    "missing, vae": (lambda pair: drop_a_tensor(pair / "large/vae" / WEIGHTS), f"The weights in {LARGE}/vae lack "),
    "no pair": (lambda pair: change(pair / "small/config.json", text_dim=9), f"small one .{SMALL}.; choose two"),
    "no pipeline": (
        lambda pair: change(pair / "large/text_encoder/config.json", vocab_size=9),
        f"The components of {LARGE} do not fit together",
    ),
    "end of texts": (
        lambda pair: change(pair / "large/text_encoder/config.json", eos_token_id=5),
        f"The components of {LARGE} do not fit together: the tokenizer ends texts with token 1",
    ),
    **{f"shift {shift}": (set_shift(shift), no_levels(shift)) for shift in (math.nan, math.inf, 0.0)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_fault_of_any_component_costs_no_weight(damage: str, hub: Hub, repositories: Path, tmp_path: Path) -> None:
    break_it, says = DAMAGES[damage]
    break_it(repositories)
    with pytest.raises(FlowBlendingError, match=says) as caught:
        build_bundle(request(tmp_path / "out" / "bundle"), Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert "models--" not in str(caught.value)
    assert hub.weights() <= headers(repositories)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("full", "says"),
    [
        ("components", "Building .* takes up to .* MB of disk"),
        ("cache", f"weights of {LARGE} and {SMALL} are .* MB more"),
    ],
)
def test_too_small_a_disk_costs_no_weight(
    full: str, says: str, hub: Hub, repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flowblending.engine.build.disk.free_bytes",
        lambda folder: 1000 if tmp_path / full in (folder, *folder.parents) else 10**12,
    )
    with pytest.raises(FlowBlendingError, match=says):
        build_bundle(request(tmp_path / "bundle", cache=tmp_path / "components"), Console(quiet=True))
    assert hub.weights() <= headers(repositories)


@pytest.mark.slow
@pytest.mark.long
def test_a_build_from_the_hub_is_that_of_its_files(hub: Hub, build: Build, repositories: Path, tmp_path: Path) -> None:
    local = build("wan")
    out = shutil.copytree(local.folder, tmp_path / "bundle")
    console = Recorder()
    bundle = build_bundle(request(out), console)
    assert bundle.manifest.id == local.manifest.id
    made = [line for line in console.lines if line.partition(":")[0] in local.manifest.components]
    assert {line.partition(":")[2] for line in made} == {" reused, nothing changed"}
    assert bundle.manifest.rebuild[1:5] == ("--large", LARGE, "--small", SMALL)
    weights = sum(path.stat().st_size for path in repositories.rglob("*.safetensors"))
    assert hub.weights() <= weights + headers(repositories) + 32
