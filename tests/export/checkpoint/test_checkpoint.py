"""Reading checkpoints and pairing them: what is accepted, and one telling sentence for each thing that is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import (
    Checkpoint,
    component_files,
    model_files,
    open_checkpoint,
    open_transformer,
    vae_statistics,
    weights_sha256,
)
from flowblending.export.checkpoint.model_files import read_tensor
from flowblending.export.families.pair import check_pair
from flowblending.export.families.registry import check_experts, pipeline_classes, row_of, vae_factors

Edit = Callable[[Path], None]
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def large(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of an LTX 0.9.1 pipeline that a test may damage."""
    return shutil.copytree(checkpoints("ltx") / "large", tmp_path / "large")


def _set(file: str, **fields: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def _remove(name: str) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def _write(name: str, content: bytes) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return edit


def _dangle(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "nowhere")

    return edit


def _shorten(name: str, by: int) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-by])

    return edit


def _shard(folder: Path) -> None:
    """Spread the transformer's weights over two files and an index."""
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, whole.with_name(shard))
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()


def _change_statistics(folder: Path) -> None:
    tensors = load_file(folder / VAE_WEIGHTS)
    tensors["latents_std"][3] *= 1.5
    save_file(tensors, folder / VAE_WEIGHTS)


def _halve_statistics(folder: Path) -> None:
    """The same statistics, stored in bfloat16."""
    tensors = load_file(folder / VAE_WEIGHTS)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / VAE_WEIGHTS)


def _all(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit


def test_opens_a_pipeline_and_either_kind_of_transformer(checkpoints: Callable[[str], Path]) -> None:
    pair = checkpoints("ltx")
    large = open_checkpoint(str(pair / "large"))
    assert large.pipeline == "LTXPipeline"
    assert large.config("scheduler")["base_shift"] == 0.95
    assert open_transformer(str(pair / "small"), large) == (pair / "small", None)
    folder, whole = open_transformer(str(pair / "large"), large)
    assert (folder, whole) == (pair / "large" / "transformer", large)
    check_pair(large, large.folder / "transformer", pair / "small", None)
    check_pair(large, large.folder / "transformer", folder, whole)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_remove("model_index.json"), ["no diffusers checkpoint", "model_index.json", "hub id"]),
        (_write("model_index.json", b"{oops"), ["Cannot read", "model_index.json"]),
        (_write("model_index.json", b"[1]"), ["no JSON object", "model_index.json"]),
        (_write("model_index.json", b"\xff\xfe\x00"), ["Cannot read", "model_index.json"]),
        (_set("model_index.json", _class_name="FluxPipeline"), ["FluxPipeline", *pipeline_classes()]),
        (_write("model_index.json", b"{}"), ["model_index.json names no pipeline class (_class_name)"]),
        (_remove("vae"), ["vae/config.json is missing"]),
        (_remove("scheduler"), ["no folder scheduler"]),
        (_remove("tokenizer"), ["no folder tokenizer"]),
        (_remove("text_encoder/model.safetensors"), ["text_encoder has no", "none"]),
        (
            _all(
                _remove("transformer/diffusion_pytorch_model.safetensors"),
                _write("transformer/diffusion_pytorch_model.bin", b"x"),
            ),
            ["diffusion_pytorch_model.bin", "safetensors weights"],
        ),
        (
            _all(_shard, _remove("transformer/b.safetensors")),
            ["transformer lacks b.safetensors, though", "index.json names it"],
        ),
        (_all(_shard, _shorten("transformer/a.safetensors", 1)), ["a.safetensors", "no whole safetensors file"]),
        (
            _all(_shard, _set("transformer/diffusion_pytorch_model.safetensors.index.json", weight_map={})),
            ["names no weight files"],
        ),
        (_shorten(VAE_WEIGHTS, 40), [VAE_WEIGHTS, "no whole safetensors file", "download it again"]),
        (_write(VAE_WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), [VAE_WEIGHTS, "(43 bytes)"]),
        (_write(VAE_WEIGHTS, b""), [VAE_WEIGHTS, "(0 bytes)"]),
        (_dangle(VAE_WEIGHTS), [f"{VAE_WEIGHTS} is missing (a link to nothing)"]),
        (_dangle("vae/config.json"), ["vae/config.json is missing (a link to nothing)"]),
        (_all(_shard, _dangle("transformer/b.safetensors")), ["lacks b.safetensors", "names it (a link to nothing)"]),
        (
            _set("transformer/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            ["transformer is quantised with bitsandbytes (4 bits) (as its config.json says)", "--precision fp8"],
        ),
        (
            _set("text_encoder/config.json", quantization_config={"quant_method": "torchao"}),
            ["text_encoder is quantised with torchao"],
        ),
        (
            _set("model_index.json", transformer=["diffusers", "WanTransformer3DModel"]),
            ["says that the transformer is a WanTransformer3DModel, but", "that of a LTXVideoTransformer3DModel"],
        ),
        (
            _set("model_index.json", text_encoder=["transformers", "UMT5EncoderModel"]),
            ["says that the text_encoder is a UMT5EncoderModel, but", "that of a T5EncoderModel"],
        ),
        (
            _set("model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"]),
            ["says that the scheduler is a UniPCMultistepScheduler"],
        ),
        (
            _set("model_index.json", transformer_2=["diffusers", "X"]),
            ["transformer_2/config.json", "give a complete diffusers checkpoint"],
        ),
        (
            _all(_remove("model_index.json"), _write("ltx-video-2b-v0.9.5.safetensors", b"x")),
            ["authors' format", "ltx-video-2b-v0.9.5.safetensors"],
        ),
    ],
)
def test_refuses_a_damaged_pipeline(large: Path, edit: Edit, says: list[str]) -> None:
    edit(large)
    with pytest.raises(FlowBlendingError) as caught:
        open_checkpoint(str(large), pipeline_classes())
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in says:
        assert part in message


def test_refuses_what_is_no_pipeline_folder(large: Path) -> None:
    opened = open_checkpoint(large)
    for source, says in {
        large / "transformer": "one component of a checkpoint",
        large / "tokenizer": "no diffusers checkpoint",
    }.items():
        with pytest.raises(FlowBlendingError, match=says):
            open_checkpoint(source)
    for source, says in {
        large / "vae": "AutoencoderKLLTXVideo, but .* needs a LTXVideoTransformer3DModel",
        large / "text_encoder": "model of no diffusers class",
        large / "tokenizer": "neither model_index.json nor a transformer's config.json",
    }.items():
        with pytest.raises(FlowBlendingError, match=says):
            open_transformer(source, opened)


def test_sharded_weights_count_with_their_index(large: Path) -> None:
    _shard(large)
    names = [path.name for path in component_files(open_checkpoint(str(large)), "transformer")]
    assert names == [
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
        "a.safetensors",
        "b.safetensors",
    ]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_set("transformer/config.json", in_channels=16), ["transformer's in_channels is 8", "16"]),
        (_set("transformer/config.json", out_channels=4), ["transformer's out_channels is 8", "4"]),
        (_set("transformer/config.json", patch_size=2), ["transformer's patch_size is 1", "2"]),
        (_set("transformer/config.json", caption_channels=None), ["caption_channels is 32", "missing"]),
        # The first of two differences is named.
        (_set("transformer/config.json", patch_size_t=2, caption_channels=9), ["transformer's patch_size_t is 1"]),
        (
            _all(
                _set("vae/config.json", _class_name="AutoencoderKLWan"),
                _set("model_index.json", vae=["diffusers", "AutoencoderKLWan"]),
            ),
            ["vae's class_name", "AutoencoderKLWan"],
        ),
        (_set("vae/config.json", latent_channels=16), ["vae's latent_channels is 8", "16"]),
        (_set("vae/config.json", spatial_compression_ratio=16), ["compression", "(8, 32)", "(8, 16)"]),
        (_change_statistics, ["the VAE's latents_std[3] is "]),
        (_set("text_encoder/config.json", d_model=64), ["text_encoder's d_model is 32", "64"]),
        (_set("text_encoder/config.json", vocab_size=9), ["text_encoder's vocab_size is 256", "9"]),
        (_set("model_index.json", _class_name="LTXConditionPipeline"), ["LTXPipeline", "LTXConditionPipeline"]),
    ],
)
def test_refuses_a_pair_that_does_not_share_latents_or_text(
    checkpoints: Callable[[str], Path], large: Path, edit: Edit, says: list[str]
) -> None:
    ours = open_checkpoint(str(checkpoints("ltx") / "large"))
    edit(large)
    folder, theirs = open_transformer(str(large), ours)
    with pytest.raises(FlowBlendingError) as caught:
        check_pair(ours, ours.folder / "transformer", folder, theirs)
    for part in says:
        assert part in str(caught.value)


def test_a_pair_may_differ_in_depth_and_in_how_statistics_are_stored(
    checkpoints: Callable[[str], Path], large: Path
) -> None:
    ours = open_checkpoint(str(checkpoints("ltx") / "large"))
    # No out_channels means as many as in_channels.
    _all(_halve_statistics, _set("transformer/config.json", num_layers=2, out_channels=None))(large)
    folder, theirs = open_transformer(str(large), ours)
    check_pair(ours, ours.folder / "transformer", folder, theirs)


@pytest.mark.parametrize(
    "edit",
    [
        _remove("model_index.json"),
        _remove("vae"),
        _remove("text_encoder"),
        _remove(VAE_WEIGHTS),
        _all(_remove("vae"), _remove("text_encoder"), _remove("tokenizer"), _remove("scheduler")),
        _set("model_index.json", vae=[None, None], text_encoder=[None, None]),
        # The newer script that converts Wan writes it for Wan 2.1.
        _set("model_index.json", boundary_ratio=0.9, transformer_2=[None, None]),
    ],
)
def test_of_the_small_pipeline_a_transformer_is_enough(
    checkpoints: Callable[[str], Path], large: Path, edit: Edit
) -> None:
    ours = open_checkpoint(checkpoints("ltx") / "large")
    edit(large)
    folder, theirs = open_transformer(large, ours)
    assert folder == large / "transformer"
    check_pair(ours, ours.folder / "transformer", folder, theirs)


def test_a_second_transformer_that_the_pipeline_does_not_run_is_refused(large: Path) -> None:
    _set("model_index.json", transformer_2=["diffusers", "LTXVideoTransformer3DModel"], boundary_ratio=0.875)(large)
    shutil.copytree(large / "transformer", large / "transformer_2")
    with pytest.raises(FlowBlendingError, match=r"which WanPipeline.* may have and LTXPipeline does not run; correct"):
        check_experts(open_checkpoint(large))


def test_families_do_not_mix(checkpoints: Callable[[str], Path]) -> None:
    wan = open_checkpoint(str(checkpoints("wan") / "large"))
    with pytest.raises(FlowBlendingError, match=r"LTXVideoTransformer3DModel, but .* needs a WanTransformer3DModel"):
        open_transformer(str(checkpoints("ltx") / "small"), wan)


def test_statistics_and_factors(checkpoints: Callable[[str], Path]) -> None:
    for kind, factors in {"wan": (4, 8), "ltx": (8, 32), "ltx-condition": (8, 32)}.items():
        checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
        assert vae_factors(checkpoint) == factors
        mean, std = vae_statistics(checkpoint)
        if kind == "wan":
            assert list(mean) == checkpoint.config("vae")["latents_mean"]
        else:
            stored = load_file(checkpoint.folder / VAE_WEIGHTS)
            assert (list(mean), list(std)) == (stored["latents_mean"].tolist(), stored["latents_std"].tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reads_a_tensor_of_any_floating_type(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(7, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"other": torch.ones(3), "values": values}, tmp_path / "x.safetensors")
    assert read_tensor([tmp_path / "x.safetensors"], "values") == tuple(values.double().tolist())
    assert read_tensor([tmp_path / "x.safetensors"], "nothing") is None


def test_missing_statistics_are_named(large: Path) -> None:
    tensors = load_file(large / VAE_WEIGHTS)
    del tensors["latents_mean"]
    save_file(tensors, large / VAE_WEIGHTS)
    with pytest.raises(FlowBlendingError, match="holds no latents_mean"):
        vae_statistics(open_checkpoint(str(large)))


def test_the_hash_depends_on_names_and_contents_alone(large: Path, tmp_path: Path) -> None:
    files = model_files(large / "vae")
    read: list[int] = []
    key = weights_sha256(files, read.append)
    assert sum(read) == sum(path.stat().st_size for path in files)
    copy = shutil.copytree(large, tmp_path / "elsewhere")
    assert weights_sha256(model_files(copy / "vae")) == key
    changed = bytearray((copy / VAE_WEIGHTS).read_bytes())
    changed[-1] ^= 1
    (copy / VAE_WEIGHTS).write_bytes(changed)
    assert weights_sha256(model_files(copy / "vae")) != key
    # Bytes that move from one file to the next make another hash.
    for name, content in {"a": b"12", "b": b"3"}.items():
        (tmp_path / name).write_bytes(content)
    before = weights_sha256([tmp_path / "a", tmp_path / "b"])
    for name, content in {"a": b"1", "b": b"23"}.items():
        (tmp_path / name).write_bytes(content)
    assert weights_sha256([tmp_path / "a", tmp_path / "b"]) != before


def test_answers_without_a_machine_learning_library() -> None:
    code = (
        "import sys, flowblending.export.checkpoint.checkpoint;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_is_found_by_its_pipeline_class(tmp_path: Path) -> None:
    found = {name: row_of(Checkpoint(folder=tmp_path, pipeline=name)).name for name in pipeline_classes()}
    assert {"WanPipeline", "WanVACEPipeline", "LTXPipeline", "LTXConditionPipeline"} < set(found)
    assert found == {name: "ltx" if name.startswith("LTX") else "wan" for name in found}
    with pytest.raises(FlowBlendingError, match=r"FluxPipeline, which is not supported; give one of Wan.*LTX"):
        row_of(Checkpoint(folder=tmp_path, pipeline="FluxPipeline"))
