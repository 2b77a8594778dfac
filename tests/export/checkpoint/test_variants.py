"""Variants of weights (``.fp16.safetensors``) as diffusers and transformers write them, whole, in shards and mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from safetensors.torch import save_file

from benchmarks.checkpoints import wan_pipeline, wan_transformer
from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.checkpoint.model_files import model_files, stored_tensors, weights_listing
from flowblending.export.checkpoint.source import WHOLE_WEIGHTS, locate
from flowblending.export.families.registry import family_of
from flowblending.export.graph.stored import find_stored
from tests.support.hub_server import Hub, serve, use

COMPONENTS = ("transformer", "text_encoder", "vae")


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return wan_pipeline(1, wan_transformer(1)).to(torch.float16)


def whole(pipeline: DiffusionPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder, variant="fp16")


def sharded(pipeline: DiffusionPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size="30KB")


def mixed(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Shards of a variant, one file of a variant, and plain weights: a component each."""
    pipeline.save_pretrained(folder)
    for name, options in (("transformer", {"max_shard_size": "30KB"}), ("text_encoder", {})):
        for path in (folder / name).glob("*.safetensors"):
            path.unlink()
        getattr(pipeline, name).save_pretrained(folder / name, variant="bf16", **options)


@pytest.mark.parametrize("write", [whole, sharded, mixed])
def test_every_form_is_read_as_the_library_wrote_it(
    pipeline: DiffusionPipeline, write: Callable[[DiffusionPipeline, Path], None], tmp_path: Path
) -> None:
    write(pipeline, tmp_path / "form")
    checkpoint = open_checkpoint(tmp_path / "form")
    for name in COMPONENTS:
        tensors = getattr(pipeline, name).state_dict()
        stored = find_stored(checkpoint.folder / name)
        assert stored
        assert all(torch.equal(tensor.read(), tensors[key].half()) for key, tensor in stored.items())
        files = {path.name for path in model_files(checkpoint.folder / name)}
        plain = write is mixed and name == "vae"
        assert plain or any("fp16" in each or "bf16" in each for each in files)
        assert (len(files) > 3) == (write is sharded or (write is mixed and name == "transformer"))
    for part in family_of(checkpoint).parts(checkpoint):
        part.check()


def test_plain_weights_come_first_then_the_type_of_the_widest_range() -> None:
    names = ["model.fp16.safetensors", "model.safetensors.index.bf16.json", "model.bf16-00001-of-00002.safetensors"]
    assert weights_listing(names) == "model.safetensors.index.bf16.json"
    assert weights_listing([*names, "model.safetensors"]) == "model.safetensors"
    assert weights_listing(["diffusion_pytorch_model.non_ema.safetensors"]) is not None
    # Which of these is meant, no name tells.
    assert weights_listing(["model.ema.safetensors", "model.non_ema.safetensors"]) is None
    assert weights_listing(["model.fp16-00001-of-00002.safetensors", "adapter_model.fp16.safetensors"]) is None


def test_an_index_without_its_shards(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    sharded(pipeline, tmp_path / "form")
    first = min((tmp_path / "form/transformer").glob("*fp16-00001-of-*.safetensors"))
    first.unlink()
    with pytest.raises(FlowBlendingError, match=rf"lacks {first.name}, though .*\.index\.fp16\.json names it"):
        open_checkpoint(tmp_path / "form")


def test_of_a_repository_with_both_one_is_fetched(
    pipeline: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    mixed(pipeline, repository)
    save_file({"x": torch.zeros(9999)}, repository / "text_encoder/model.fp16.safetensors")
    save_file({"x": torch.zeros(9999)}, repository / "vae/diffusion_pytorch_model.fp16.safetensors")
    with serve(Hub(repositories={"Org/Name": repository}, revisions=("main", "v1"))) as hub:
        use(hub, tmp_path / "cache", monkeypatch.setattr)
        (tmp_path / "scratch").mkdir()
        source = locate("Org/Name@v1", WHOLE_WEIGHTS, tmp_path / "scratch")
        source.read_headers()
        found = open_checkpoint(source.folder)
        ours = {name: set(stored_tensors(found.folder / name)) for name in COMPONENTS}
        fetched = open_checkpoint(source.fetch(WHOLE_WEIGHTS))
        assert {name: set(stored_tensors(fetched.folder / name)) for name in COMPONENTS} == ours
        assert not any(".fp16." in name for name in hub.fetched)
    assert WanPipeline.__name__ == fetched.pipeline
