"""LoRA files are accounted for to the last tensor, or refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.lora_pipeline import LTXVideoLoraLoaderMixin, WanLoraLoaderMixin
from diffusers.loaders.single_file_utils import (
    convert_ltx_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints import TEXT_DIM, ltx_transformer, wan_transformer
from flowblending import FlowBlendingError, UsageError
from flowblending.export.families.ltx import names as ltx_names
from flowblending.export.families.wan import names as wan_names
from flowblending.export.lora.file import find_lora, open_lora
from flowblending.export.lora.fit import Lora, LowRank, Whole, fit_lora
from tests.support.hub_server import Hub, serve, use
from tests.support.lora_files import ALPHA, FORMATS, RANK, make_adapter, write_lora

Shapes = dict[str, tuple[int, ...]]
DOWN, UP = "blocks.0.self_attn.q.lora_down.weight", "blocks.0.self_attn.q.lora_up.weight"


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(each.shape) for name, each in model.named_parameters()}


@pytest.fixture(scope="module")
def wan() -> Shapes:
    return shapes_of(wan_transformer(0))


def fit(path: Path, shapes: Shapes, strength: float = 1.0) -> Lora:
    return fit_lora(open_lora(path), shapes, wan_names.authors_name, strength)


def write(path: Path, tensors: Mapping[str, torch.Tensor], header: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, header)
    return path


def pair(down: str = DOWN, up: str = UP) -> dict[str, torch.Tensor]:
    """Factors of a layer of the tiny Wan model."""
    return {down: torch.ones(RANK, 32), up: torch.ones(32, RANK)}


def _models() -> list[tuple[torch.nn.Module, Callable[[str], str], Callable[[dict[str, str]], dict[str, str]]]]:
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2, "text_dim": 32}
    image = {"image_dim": 16, "added_kv_proj_dim": 32}
    wan, ltx = convert_wan_transformer_to_diffusers, convert_ltx_transformer_checkpoint_to_diffusers
    return [
        (WanTransformer3DModel(**tiny), wan_names.authors_name, wan),
        (WanTransformer3DModel(**tiny, **image), wan_names.authors_name, wan),
        (WanVACETransformer3DModel(**tiny, vace_layers=[0]), wan_names.authors_name, wan),
        (ltx_transformer(0, caption_channels=TEXT_DIM), ltx_names.authors_name, ltx),
    ]


def test_the_authors_names_are_those_that_diffusers_converts_back() -> None:
    for model, authors_name, convert in _models():
        names = [name for name, _ in model.named_parameters()]
        assert convert({authors_name(name): name for name in names}) == {name: name for name in names}


@pytest.mark.parametrize(
    "kind", ["diffusion_model, A/B", "diffusion_model, A/B, alpha", "diffusion_model, down/up", "musubi", "diffusers"]
)
def test_diffusers_finds_the_same_layers_and_scales(kind: str, tmp_path: Path) -> None:
    model = wan_transformer(0)
    adapter = make_adapter(model)
    if kind == "musubi" or "alpha" in kind:
        # Of these, diffusers reads layers of the blocks only, or fails.
        layers = {name: each for name, each in adapter.layers.items() if name.startswith("blocks.")}
        adapter = type(adapter)(layers=layers)
    path = write_lora(adapter, FORMATS[kind], wan_names.authors_name, tmp_path)
    theirs = WanLoraLoaderMixin.lora_state_dict(load_file(path))
    ours = fit(path, shapes_of(model))
    tensors = load_file(path)
    for parameter, changes in ours.changes.items():
        (change,) = changes
        assert isinstance(change, LowRank)
        module = parameter.removesuffix(".weight")
        down, up = (theirs[f"transformer.{module}.lora_{side}.weight"].double() for side in "AB")
        names = {(each.path, each.offset): name for name, each in open_lora(path).tensors.items()}
        mine = [tensors[names[(place.path, place.offset)]].double() for place in (change.up, change.down)]
        torch.testing.assert_close(change.scale * mine[0] @ mine[1], up @ down)
    assert len(ours.changes) == len(theirs) // 2


def test_ltx_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    model = ltx_transformer(0, caption_channels=TEXT_DIM)
    path = write_lora(make_adapter(model), FORMATS["diffusion_model, A/B"], lambda name: name, tmp_path)
    theirs = LTXVideoLoraLoaderMixin.lora_state_dict(load_file(path))
    ours = fit_lora(open_lora(path), shapes_of(model), ltx_names.authors_name, 1.0)
    assert {f"transformer.{name.removesuffix('.weight')}" for name in ours.changes} == {
        name.partition(".lora_")[0] for name in theirs
    }


def test_a_file_of_a_few_layers_is_enough(wan: Shapes, tmp_path: Path) -> None:
    # diffusers' converters fail on files without a block 0, or with attention alone.
    names = [name.replace("blocks.0", "blocks.1") for name in (DOWN, UP)]
    found = fit(write(tmp_path / "few.safetensors", pair(*names)), wan)
    assert list(found.changes) == ["blocks.1.attn1.to_q.weight"]
    assert found.keys == 2


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": RANK}, 2.0),
        ({"lora_alpha": 8, "r": RANK, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": RANK, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": RANK, "alpha_pattern": {r"blocks\.\d+\.attn2.*": 2}}, 2.0),
        ({"r": RANK}, 1.0),
    ],
)
def test_scales_are_pefts(config: dict[str, object], scale: float, wan: Shapes, tmp_path: Path) -> None:
    names = ("blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight")
    path = write(tmp_path / "adapter_model.safetensors", pair(*(f"base_model.model.{name}" for name in names)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    (change,) = fit(path, wan, 0.5).changes["blocks.0.attn1.to_q.weight"]
    assert change.scale == scale * 0.5
    # In the header, diffusers puts the name of the component before each field.
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in config.items()})}
    path = write(tmp_path / "other.safetensors", pair(*(f"transformer.{name}" for name in names)), header)
    (change,) = fit(path, wan, 0.5).changes["blocks.0.attn1.to_q.weight"]
    assert change.scale == scale * 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_alphas_of_any_type_are_read(dtype: torch.dtype, wan: Shapes, tmp_path: Path) -> None:
    alpha = {"blocks.0.self_attn.q.alpha": torch.tensor(ALPHA, dtype=dtype)}
    (change,) = fit(write(tmp_path / "x.safetensors", pair() | alpha), wan).changes["blocks.0.attn1.to_q.weight"]
    assert change.scale == ALPHA / RANK


def test_a_bias_of_a_layer_has_the_layers_scale_and_a_difference_none(wan: Shapes, tmp_path: Path) -> None:
    more = {
        "blocks.0.self_attn.q.alpha": torch.tensor(ALPHA),
        "blocks.0.self_attn.q.lora_up.bias": torch.ones(32),
        "blocks.0.self_attn.k.diff_b": torch.ones(32),
        "blocks.0.norm3.diff": torch.ones(32),
        "blocks.0.diff_m": torch.ones(1, 6, 32),
        "patch_embedding.diff": torch.ones(32, 16, 1, 2, 2),
        "head.modulation.diff": torch.ones(1, 2, 32),
    }
    found = fit(write(tmp_path / "x.safetensors", pair() | more), wan, 3.0).changes
    scales = {name: change.scale for name, (change,) in found.items()}
    assert scales == {
        "blocks.0.attn1.to_q.weight": 1.5,
        "blocks.0.attn1.to_q.bias": 1.5,
        "blocks.0.attn1.to_k.bias": 3.0,
        "blocks.0.norm2.weight": 3.0,
        "blocks.0.scale_shift_table": 3.0,
        "patch_embedding.weight": 3.0,
        "scale_shift_table": 3.0,
    }
    assert isinstance(found["patch_embedding.weight"][0], Whole)


def test_a_convolution_has_factors_too(wan: Shapes, tmp_path: Path) -> None:
    tensors = {
        "patch_embedding.lora_A.weight": torch.ones(RANK, 16, 1, 2, 2),
        "patch_embedding.lora_B.weight": torch.ones(32, RANK, 1, 1, 1),
    }
    assert list(fit(write(tmp_path / "x.safetensors", tensors), wan).changes) == ["patch_embedding.weight"]


def test_one_name_is_not_two_parameters(wan: Shapes, tmp_path: Path) -> None:
    # What diffusers calls norm2 is the authors' norm3, and theirs has no weight.
    difference = {"blocks.0.norm2.diff": torch.ones(32)}
    assert list(fit(write(tmp_path / "a.safetensors", difference), wan).changes) == ["blocks.0.norm2.weight"]
    with pytest.raises(UsageError, match=r"1 of its 3 tensors belong to no layer of the model: blocks\.0\.norm2\.diff"):
        fit(write(tmp_path / "b.safetensors", pair() | difference), wan)


BAD: Mapping[str, tuple[dict[str, torch.Tensor], str]] = {
    "unused": (pair() | {f"blocks.{n}.x.alpha": torch.tensor(1.0) for n in range(12)}, "12 of its 14 tensors belong"),
    "text encoder": (pair() | {"lora_te_x.lora_down.weight": torch.ones(1, 1)}, "1 of its 3 tensors"),
    "another model": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)},
        "1 of its 1 tensors belong to no layer",
    ),
    "wide": (
        {DOWN: torch.ones(RANK, 48), UP: torch.ones(48, RANK)},
        rf"{DOWN} has shape \[4, 48\], but blocks.0.attn1.to_q.weight of the model has \[32, 32\]",
    ),
    "tall": ({DOWN: torch.ones(RANK, 32), UP: torch.ones(48, RANK)}, rf"{UP} has shape \[48, 4\]"),
    "ranks": ({DOWN: torch.ones(RANK, 32), UP: torch.ones(32, 8)}, rf"{UP} has shape \[32, 8\]"),
    "no rank": ({DOWN: torch.ones(32), UP: torch.ones(32)}, "a matrix was expected"),
    "nothing in it": ({DOWN: torch.ones(0, 32), UP: torch.ones(32, 0)}, "a matrix was expected"),
    "half": ({DOWN: torch.ones(RANK, 32)}, "not all of that layer's LoRA"),
    "other half": ({UP: torch.ones(32, RANK)}, "not all of that layer's LoRA"),
    "alpha alone": ({"blocks.0.self_attn.q.alpha": torch.tensor(1.0)}, "not all of that layer's LoRA"),
    "bias alone": ({"blocks.0.self_attn.q.lora_B.bias": torch.ones(32)}, "not all of that layer's LoRA"),
    "difference": (pair() | {"blocks.0.self_attn.k.diff_b": torch.ones(31)}, r"diff_b has shape \[31\]"),
    "twice": (
        pair() | {f"diffusion_model.{name}": tensor for name, tensor in pair().items()},
        "are the same tensor of one layer",
    ),
    "two adapters": (
        pair("blocks.0.attn1.to_q.lora_A.a.weight", "blocks.0.attn1.to_q.lora_B.a.weight")
        | pair("blocks.0.attn1.to_q.lora_A.b.weight", "blocks.0.attn1.to_q.lora_B.b.weight"),
        "are the same tensor of one layer",
    ),
    "DoRA": (pair() | {"blocks.0.self_attn.q.dora_scale": torch.ones(32, 1)}, "was made by DoRA"),
    "DoRA of PEFT": (pair() | {"blocks.0.self_attn.q.lora_magnitude_vector": torch.ones(32)}, "was made by DoRA"),
    "LoHa": ({"lora_unet_blocks_0_self_attn_q.hada_w1_a": torch.ones(32, 4)}, "was made by LoHa"),
    "LoKr": ({"lycoris_blocks_0_self_attn_q.lokr_w1": torch.ones(4, 4)}, "was made by LoKr"),
    "OFT": ({"lora_unet_blocks_0_self_attn_q.oft_blocks": torch.ones(4, 4)}, "was made by OFT"),
    "whole layers": (
        {"base_model.model.proj_out.modules_to_save.default.weight": torch.ones(64, 32)},
        "trained as a whole",
    ),
    "fp8": (pair() | {DOWN: torch.ones(RANK, 32).to(torch.float8_e4m3fn)}, "in F8_E4M3, but a LoRA in F64"),
    "alpha of many": (pair() | {"blocks.0.self_attn.q.alpha": torch.ones(2)}, r"a tensor of type F32 and shape \[2\]"),
    "alpha not finite": (pair() | {"blocks.0.self_attn.q.alpha": torch.tensor(float("inf"))}, "= inf, but one finite"),
    "empty": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_used_whole_is_refused(case: str, wan: Shapes, tmp_path: Path) -> None:
    tensors, message = BAD[case]
    with pytest.raises(UsageError, match=message) as refusal:
        fit(write(tmp_path / "bad.safetensors", tensors), wan)
    assert str(tmp_path / "bad.safetensors") in str(refusal.value)


def test_ten_unused_names_are_listed(wan: Shapes, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        fit(write(tmp_path / "bad.safetensors", BAD["unused"][0]), wan)
    assert str(refusal.value).count(".x.alpha") == 10
    assert "and 2 more" in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "was made by DoRA"),
        ({"peft_type": "LOHA"}, "was made by LOHA"),
        ({"lora_alpha": "many"}, "has lora_alpha 'many', but a finite number"),
    ],
)
def test_pefts_configuration_is_believed(config: object, message: str, wan: Shapes, tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", pair())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        fit(path, wan)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no LoRA file"):
        find_lora(str(tmp_path / "nowhere.safetensors"))
    whole = write(tmp_path / "whole.safetensors", pair())
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(FlowBlendingError, match=r"cut\.safetensors .* is no whole safetensors file"):
        open_lora(tmp_path / "cut.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    with pytest.raises(FlowBlendingError, match="is no whole safetensors file"):
        open_lora(tmp_path / "page.safetensors")
    (tmp_path / "x.onnx").write_bytes(b"xxxxxxxxx")
    with pytest.raises(UsageError, match=r"a \.safetensors file was expected"):
        open_lora(tmp_path / "x.onnx")


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ckpt", "x.bin", "x.safetensors"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    torch.save({"x": _Bomb()}, tmp_path / name)
    with pytest.raises(UsageError, match=r"is a pickle, .* never read; convert it .* weights_only=True"):
        open_lora(find_lora(str(tmp_path / name)))


def test_the_conversion_of_a_pickle_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(pair(), tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refusal:
        find_lora("x.pt")
    _, code, _ = str(refusal.value).split('"')
    exec(code)
    assert open_lora(tmp_path / "x.safetensors").tensors.keys() == pair().keys()


def test_a_folder_has_one_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(none\); give one of them"):
        find_lora(str(tmp_path))
    write(tmp_path / "a.safetensors", pair())
    assert find_lora(str(tmp_path)).name == "a.safetensors"
    write(tmp_path / "b.safetensors", pair())
    with pytest.raises(UsageError, match=r"a\.safetensors, b\.safetensors"):
        find_lora(str(tmp_path))
    write(tmp_path / "adapter_model.safetensors", pair())
    assert find_lora(str(tmp_path)).name == "adapter_model.safetensors"


def test_a_file_of_the_hub_is_fetched_with_its_configuration(
    wan: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "repository/style.safetensors", pair())
    write(tmp_path / "repository/peft/adapter_model.safetensors", pair())
    (tmp_path / "repository/peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    (tmp_path / "repository/style.pt").write_bytes(b"")
    with serve(Hub(repositories={"Org/Loras": tmp_path / "repository"})) as hub:
        use(hub, tmp_path / "cache", monkeypatch.setattr)
        found = fit(find_lora("Org/Loras/style.safetensors@main"), wan)
        assert [change.scale for (change,) in found.changes.values()] == [1.0]
        found = fit(find_lora("Org/Loras/peft/adapter_model.safetensors"), wan)
        assert [change.scale for (change,) in found.changes.values()] == [2.0]
        with pytest.raises(FlowBlendingError, match=r"Org/Loras has no folder other\.safetensors, and no file"):
            find_lora("Org/Loras/other.safetensors")
        with pytest.raises(UsageError, match="is a pickle"):
            find_lora("Org/Loras/style.pt")
        assert not any(name.endswith(".pt") for name in hub.fetched)
