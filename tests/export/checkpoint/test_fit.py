"""What a checkpoint holds against what its class has: every component, from headers, with names and a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL
from flowblending.engine.build.build import BuildRequest, build_bundle
from flowblending.engine.build.request import named_models
from flowblending.export.checkpoint.checkpoint import open_checkpoint, open_transformer
from flowblending.export.checkpoint.fit import Expected, check_tensors
from flowblending.export.checkpoint.places import TensorPlace
from flowblending.export.families.registry import family_of
from flowblending.system.console import Console

FILES = {
    "large": "large/transformer/diffusion_pytorch_model.safetensors",
    "small": "small/diffusion_pytorch_model.safetensors",
    "text_encoder": "large/text_encoder/model.safetensors",
    "vae": "large/vae/diffusion_pytorch_model.safetensors",
}
Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(params=["wan", "ltx"])
def pair(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a pair that a test may damage."""
    return shutil.copytree(checkpoints(request.param), tmp_path / "pair")


def check(pair: Path) -> tuple[str, ...]:
    """What the parts of a pair say of their headers."""
    large = open_checkpoint(str(pair / "large"))
    small, _ = open_transformer(str(pair / "small"), large)
    family = family_of(large)
    parts = (
        family.transformer(large, large.folder / "transformer", LARGE),
        family.transformer(large, small, SMALL),
        *family.parts(large),
    )
    return tuple(line for part in parts for line in part.check())


def test_a_whole_pair_fits(pair: Path) -> None:
    assert check(pair) == ()


@pytest.mark.parametrize("component", list(FILES))
def test_a_tensor_without_a_place_is_refused_in_every_component(pair: Path, component: str) -> None:
    path = pair / FILES[component]
    stored = load_file(path)
    gates = {f"gates.{index}.weight": torch.ones(4) for index in range(5)}
    save_file(stored | gates, path)
    with pytest.raises(FlowBlendingError) as caught:
        check(pair)
    assert f"{path.parent} hold gates.0.weight, gates.1.weight, gates.2.weight and 2 more, for which a" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("component", list(FILES))
def test_a_missing_tensor_is_refused_in_every_component(pair: Path, component: str) -> None:
    path = pair / FILES[component]
    stored = load_file(path)
    # Either name of a text encoder's table would do.
    name = max(name for name in stored if "embed" not in name and "shared" not in name)
    save_file({other: value for other, value in stored.items() if other != name}, path)
    with pytest.raises(FlowBlendingError, match="lack") as caught:
        check(pair)
    assert f"{path.parent} lack {name}; give a checkpoint that is a whole" in str(caught.value)


def _renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def _scaled_fp8(scale: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        large = [name for name, value in tensors.items() if name.endswith(".weight") and value.dim() >= 2]
        small = {name: tensors[name].to(torch.float8_e4m3fn) for name in large}
        scales = {name.removesuffix("weight") + scale: torch.ones(()) for name in large}
        return {**tensors, **small, **scales}

    return change


def _bitsandbytes(tensors: Tensors) -> Tensors:
    name = next(name for name, value in tensors.items() if name.endswith(".weight") and value.dim() >= 2)
    packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    state = {f"{name}.{each}": torch.ones(4) for each in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")}
    return {**tensors, name: packed, **state}


def _as_type(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value.to(dtype) for name, value in tensors.items()}


@pytest.mark.parametrize("component", list(FILES))
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_scaled_fp8("scale_weight"), "is quantised with scaled fp8 or fp4"),
        (_scaled_fp8("weight_scale"), "is quantised with scaled fp8 or fp4"),
        (_bitsandbytes, "is quantised with bitsandbytes (4 bits)"),
        (_as_type(torch.float8_e4m3fn), "is quantised with fp8 (F8_E4M3 is the type of"),
        (_as_type(torch.int8), "is quantised with int8"),
        (_as_type(torch.int16), "of type I16, but one of F64, F32, F16, BF16 was expected"),
        (_renamed("_orig_mod."), " and hold _orig_mod."),
    ],
)
def test_what_is_not_made_of_weights_is_named(
    pair: Path, component: str, change: Callable[[Tensors], Tensors], says: str
) -> None:
    path = pair / FILES[component]
    save_file(dict(change(load_file(path))), path)
    with pytest.raises(FlowBlendingError) as caught:
        check(pair)
    assert says in str(caught.value)
    assert str(path.parent) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_floating_type_fit(pair: Path, dtype: torch.dtype) -> None:
    for file in FILES.values():
        save_file({name: value.to(dtype) for name, value in load_file(pair / file).items()}, pair / file)
    assert check(pair) == ()


def test_a_build_refuses_before_it_reads_a_weight(pair: Path, tmp_path: Path) -> None:
    """More blocks than num_layers says, of the model that is built second."""
    config = pair / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 1}))
    # Its data are gone, and only the header is left.
    weights = pair / FILES["small"]
    size = weights.stat().st_size
    content = weights.read_bytes()
    weights.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    with weights.open("r+b") as file:
        file.truncate(size)
    request = BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")),
        out=tmp_path / "bundle",
        size=None,
        frames=None,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )
    with pytest.raises(FlowBlendingError, match=r"small hold (transformer_)?blocks\.1\..* more, for which a .*3DModel"):
        build_bundle(request, Console(quiet=True))
    assert not (tmp_path / "bundle").exists()


def test_shapes_and_types_of_tensors() -> None:
    expected = {
        "weight": Expected(shape=(2, 3), floating=True),
        "count": Expected(shape=(), floating=False),
    }

    def place(kind: str, *shape: int) -> TensorPlace:
        return TensorPlace(path=Path("x"), offset=0, shape=shape, kind=kind)

    fits = {"weight": place("BF16", 2, 3), "count": place("I64")}
    assert check_tensors(expected, fits, model="Toy", where="here") == ()
    with pytest.raises(
        FlowBlendingError, match=r"weight in here has shape \[3, 2\], but config.json asks for \[2, 3\];"
    ):
        check_tensors(expected, fits | {"weight": place("F32", 3, 2)}, model="Toy", where="here")
    extra = fits | {"attention.core._extra_state": place("U8", 0), "rope.inv_freq": place("F32", 4)}
    assert check_tensors(expected, extra, model="Toy", where="here") == (
        "here: attention.core._extra_state is left out (notes of Transformer Engine's layers beside their weights).",
        "here: rope.inv_freq is left out (positions, which the class computes).",
    )
