"""Transformers in files of weights are the reference in diffusers' format, by tensor; what is none is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import Precision
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.checkpoint.model_files import model_files
from flowblending.export.checkpoint.naming import shown
from flowblending.export.checkpoint.size import graph_bytes
from flowblending.export.checkpoint.source import TRANSFORMER_HEADERS, locate
from flowblending.export.checkpoint.weights_file import read_weights
from flowblending.export.families.stand_in import StandIn, stand_in
from flowblending.export.graph.load import check_model
from flowblending.export.graph.stored import find_stored
from tests.support.weight_files import (
    FORMATS,
    Reference,
    Tensors,
    authors_name,
    fp8,
    is_linear,
    make_reference,
    prefixed,
    save,
    scaled,
    sharded,
    with_vae,
)

SPELLINGS = ("scale_weight", "weight_scale")
FP8: Mapping[str, Callable[[Tensors], Tensors]] = {
    "plain E4M3": fp8,
    "plain E5M2": lambda tensors: fp8(tensors, torch.float8_e5m2),
    "scale_weight": lambda tensors: scaled(tensors, "scale_weight"),
    "weight_scale": lambda tensors: scaled(tensors, "weight_scale"),
    "weight_scale by row": lambda tensors: scaled(tensors, "weight_scale", by_row=True),
}
CLASSES = {"wan": WanTransformer3DModel, "ltx": LTXVideoTransformer3DModel}


@pytest.fixture(scope="module", params=["wan", "ltx"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference("wan", tmp_path_factory.mktemp("wan-alone"))


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference("ltx", tmp_path_factory.mktemp("ltx-alone"))


def opened(reference: Reference, source: Path, scratch: Path) -> StandIn:
    """What a build reads of a source, checked against the class."""
    path = locate(str(source), TRANSFORMER_HEADERS, scratch).folder
    found = stand_in(read_weights(path), open_checkpoint(reference.base, whole=False), scratch, here=True)
    check_model(CLASSES[reference.family], found.folder)
    return found


def refusal(reference: Reference, source: Path, scratch: Path) -> str:
    with pytest.raises(FlowBlendingError) as caught:
        opened(reference, source, scratch)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def read(found: StandIn) -> Tensors:
    return {name: tensor.read() for name, tensor in find_stored(found.folder).items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_reference_bit_for_bit(reference: Reference, name: str, tmp_path: Path) -> None:
    source = FORMATS[name](reference, tmp_path)
    found = opened(reference, source, tmp_path / "scratch")
    tensors = read(found)
    assert tensors.keys() == reference.tensors.keys()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in reference.tensors.items())
    assert found.left_out == ()
    # The configuration is what diffusers writes, of the transformer and not of the pipeline's own.
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (found.folder, reference.folder))
    assert {key: ours.get(key) for key in theirs} == theirs
    # What determines the component is the file, and its size is told without reading it.
    files = model_files(found.folder)
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") > 10_000
    assert graph_bytes(files, Precision.BF16) == graph_bytes(model_files(reference.folder), Precision.BF16)
    assert shown(found.folder) == str(source)


def test_a_folder_under_the_authors_names(wan: Reference, tmp_path: Path) -> None:
    folder = sharded(wan.original, tmp_path / "Wan2.1-T2V").parent
    (folder / "model.safetensors.index.json").rename(folder / "diffusion_pytorch_model.safetensors.index.json")
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 1}))
    (folder / "Wan2.1_VAE.pth").write_bytes(b"never opened")
    assert read(opened(wan, folder, tmp_path / "scratch")).keys() == wan.tensors.keys()


def test_a_file_with_transformer_and_vae(ltx: Reference, tmp_path: Path) -> None:
    found = opened(ltx, save(with_vae(ltx), tmp_path / "ltxv.safetensors"), tmp_path / "scratch")
    assert all(torch.equal(read(found)[key], tensor) for key, tensor in ltx.tensors.items())
    (line,) = found.left_out
    assert "vae.decoder.conv_in.conv.weight" in line
    assert line.endswith("1 more are left out (the VAE, which the pipeline has).")
    other = with_vae(ltx)
    other["vae.per_channel_statistics.mean-of-means"] = other["vae.per_channel_statistics.mean-of-means"] + 1
    message = refusal(ltx, save(other, tmp_path / "other.safetensors"), tmp_path / "other")
    assert "was trained on the latents of another VAE than that of" in message


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("img_emb.proj.1.weight", "holds an image-to-video model (img_emb.proj.1.weight)"),
        ("vace_blocks.0.before_proj.weight", "holds a VACE model (vace_blocks.0.before_proj.weight)"),
        ("ref_conv.weight", "holds a Wan-Fun model with control (ref_conv.weight)"),
        ("blocks.0.gate.weight", "hold blocks.0.gate.weight, for which a WanTransformer3DModel of these shapes has"),
        ("first_stage_model.x", "hold first_stage_model.x, for which a WanTransformer3DModel of these shapes has no"),
        (
            "blocks.0.self_attn.q.weight_scale_2",
            "is quantised with scaled fp8 or fp4 (blocks.0.attn1.to_q.weight_scale_2",
        ),
    ],
)
def test_other_parts_are_named(wan: Reference, added: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(wan, save(wan.original | {added: torch.zeros(2, 2)}, tmp_path / "x.safetensors"), tmp_path)


def test_ten_keys_that_nothing_uses_are_listed(wan: Reference, tmp_path: Path) -> None:
    more = {f"extra.{number:02}.weight": torch.zeros(1) for number in range(12)}
    message = refusal(
        wan, save(prefixed(wan.original | more, "diffusion_model."), tmp_path / "x.safetensors"), tmp_path
    )
    assert "diffusion_model.extra.09.weight and 2 more, for which" in message
    assert "diffusion_model.extra.10" not in message


def test_files_that_are_none(wan: Reference, ltx: Reference, tmp_path: Path) -> None:
    whole = wan.original
    without = {name: tensor for name, tensor in whole.items() if name != "blocks.1.ffn.2.bias"}
    save(without, tmp_path / "missing.safetensors")
    assert "lack blocks.1.ffn.net.2.bias; give" in refusal(wan, tmp_path / "missing.safetensors", tmp_path / "1")
    message = refusal(wan, save(ltx.original, tmp_path / "ltx.safetensors"), tmp_path / "2")
    assert "ltx.safetensors cannot be run by WanPipeline: it is no Wan transformer, as it has no patch_emb" in message
    save({"clip": torch.zeros(3)}, tmp_path / "clip.safetensors")
    assert "it is no LTX-Video transformer" in refusal(ltx, tmp_path / "clip.safetensors", tmp_path / "3")
    odd = whole | {"blocks.2.ffn.0.weight": torch.zeros(7, 7)}
    message = refusal(wan, save(odd, tmp_path / "odd.safetensors"), tmp_path / "4")
    assert "The weight blocks.2.ffn.0.weight in" in message
    assert "has shape [7, 7], but the shapes of the others ask for [96, 48]" in message
    twice = whole | {"diffusion_model.head.modulation": whole["head.modulation"].clone()}
    assert "holds two tensors of the name head.modulation" in refusal(
        wan, save(twice, tmp_path / "twice.safetensors"), tmp_path / "5"
    )
    path = save(whole, tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "is no whole safetensors file; download it again" in refusal(wan, path, tmp_path / "6")
    index = sharded(whole, tmp_path / "shards")
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(wan, index, tmp_path / "7")


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
def test_pickles_are_never_opened(wan: Reference, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"wan.{suffix}"
    torch.save(wan.original, path)
    with pytest.raises(UsageError, match="is a pickle, which can run code") as caught:
        locate(str(path), TRANSFORMER_HEADERS, tmp_path)
    if suffix != "pt":
        return
    # The command that it gives does what it says.
    command = str(caught.value).split('python -c "')[1].split('", and give')[0]
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "wan.safetensors").keys() == wan.original.keys()


@pytest.mark.parametrize("name", FP8)
def test_fp8_weights_are_what_is_stored_times_its_scale(reference: Reference, name: str, tmp_path: Path) -> None:
    made = FP8[name](reference.original)
    found = opened(
        reference, save(prefixed(made, "diffusion_model."), tmp_path / "x.safetensors"), tmp_path / "scratch"
    )
    stored = find_stored(found.folder)
    assert stored.keys() == reference.tensors.keys()
    matrices = 0
    for key, tensor in reference.tensors.items():
        if not is_linear(key, tensor):
            assert torch.equal(stored[key].read(), tensor)
            continue
        matrices += 1
        layer = authors_name(reference.family, key).removesuffix(".weight")
        scale = next((made[f"{layer}.{each}"] for each in SPELLINGS if f"{layer}.{each}" in made), torch.tensor(1.0))
        exact = made[f"{layer}.weight"].float() * scale.float()
        assert torch.equal(stored[key].as_type(torch.float32).read(), exact)
        # Rounded once.
        assert torch.equal(stored[key].as_type(torch.bfloat16).read(), exact.bfloat16())
        assert torch.equal(stored[key].as_type(torch.float32).rows(np.array([2, 0])), exact[[2, 0]])
        # And no further from the number that it was made of than the format rounds.
        relative, smallest = (2.0**-3, 2.0**-17) if "E5M2" in name else (2.0**-4, 2.0**-10)
        assert bool(((exact - tensor.float()).abs() <= relative * tensor.float().abs() + smallest * scale).all())
    assert matrices > 20


def test_ranges_of_inputs_are_left_out_and_said(wan: Reference, tmp_path: Path) -> None:
    path = save(scaled(wan.original, "scale_weight"), tmp_path / "x.safetensors")
    (line,) = opened(wan, path, tmp_path / "scratch").left_out
    assert ".scale_input, blocks" in line
    assert line.endswith("more are left out (ranges of layers' inputs, which a build measures itself).")


LAYER = "blocks.1.self_attn.q"


@pytest.mark.parametrize(
    ("spelling", "change", "said"),
    [
        ("scale_weight", {f"{LAYER}.scale_weight": None}, f"but {LAYER}.weight has none; give a whole file"),
        ("weight_scale", {f"{LAYER}.weight_scale": None}, f"but {LAYER}.weight has none; give a whole file"),
        ("scale_weight", {f"{LAYER}.scale_weight": torch.tensor(0.0)}, f"The scale of {LAYER}.weight in"),
        ("weight_scale", {f"{LAYER}.weight_scale": torch.tensor([-1.0])}, "is -1, but a number above 0 was expected"),
        ("weight_scale", {f"{LAYER}.weight_scale": torch.tensor(float("nan"))}, "is nan, but a number above 0"),
        ("weight_scale", {f"{LAYER}.weight_scale": torch.ones(4, 4)}, "is F32 [4, 4], but one floating-point number"),
        (
            "scale_weight",
            {"blocks.9.x.scale_weight": torch.tensor(1.0)},
            "holds blocks.9.x.scale_weight, but no weights",
        ),
        (
            "weight_scale",
            {f"{LAYER}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            f"is quantised with nvfp4 ({LAYER}.comfy_quant says so)",
        ),
        ("plain", {f"{LAYER}.weight": torch.zeros(48, 48, dtype=torch.int8)}, "is quantised with int8"),
    ],
)
def test_scales_that_cannot_be_are_refused(
    wan: Reference, spelling: str, change: dict[str, torch.Tensor | None], said: str, tmp_path: Path
) -> None:
    made = dict(fp8(wan.original) if spelling == "plain" else scaled(wan.original, spelling))
    for key, tensor in change.items():
        made.pop(key, None)
        if tensor is not None:
            made[key] = tensor
    assert said in refusal(wan, save(made, tmp_path / "x.safetensors"), tmp_path / "scratch")
