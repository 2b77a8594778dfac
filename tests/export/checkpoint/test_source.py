"""Checkpoints as people name them: folders, and folders of the hub at a revision, against a stand-in for the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import open_checkpoint, open_transformer, vae_statistics
from flowblending.export.checkpoint.model_files import stored_tensors, weights_sha256
from flowblending.export.checkpoint.source import (
    TRANSFORMER_HEADERS,
    TRANSFORMER_WEIGHTS,
    WHOLE_WEIGHTS,
    Source,
    locate,
)
from flowblending.export.families.clip import image_encoder_part
from flowblending.export.families.pair import check_pair
from flowblending.export.families.registry import pipeline_classes
from tests.support.hub_server import COMMIT, Hub, serve, use

NAME = "Lightricks/LTX-Video-0.9.1"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def repository(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """An LTX pipeline as the hub has it, with files beside it that no build needs."""
    folder = shutil.copytree(checkpoints("ltx") / "large", tmp_path / "repository")
    for extra in (
        "ltx-video-2b.safetensors",
        f"transformer/{WEIGHTS.replace('.safetensors', '.fp16.safetensors')}",
        "text_encoder/pytorch_model.bin",
        "media/clip.mp4",
        "media/list.json",
        "stray.json",
    ):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"gigabytes" * 300)
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(repositories={NAME: repository})) as hub:
        use(hub, tmp_path / "cache", monkeypatch.setattr)
        yield hub


def find(source: str, tmp_path: Path, wanted: tuple[str, ...] = WHOLE_WEIGHTS) -> Source:
    scratch = tmp_path / "scratch" / str(len(list(tmp_path.glob("scratch/*"))))
    scratch.mkdir(parents=True)
    return locate(source, wanted, scratch)


def refusal(source: str, tmp_path: Path) -> str:
    with pytest.raises(FlowBlendingError) as caught:
        find(source, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_configurations_then_headers_then_weights(hub: Hub, repository: Path, tmp_path: Path) -> None:
    found = find(NAME, tmp_path)
    assert hub.weights() == 0
    opened = open_checkpoint(found.folder, whole=False)
    assert opened.config("scheduler")["base_shift"] == 0.95
    found.read_headers()
    needed = {
        name: repository / name
        for name in (f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors")
    }
    # These are small: the first request for a header is answered with all of them.
    before = hub.weights()
    opened = open_checkpoint(found.folder)
    local = open_checkpoint(repository)
    for component in ("transformer", "text_encoder", "vae"):
        ours, theirs = (stored_tensors(each.folder / component) for each in (opened, local))
        assert {name: (place.shape, place.kind, place.offset) for name, place in ours.items()} == {
            name: (place.shape, place.kind, place.offset) for name, place in theirs.items()
        }
    assert vae_statistics(opened) == vae_statistics(local)
    assert {path.relative_to(found.folder).as_posix() for path in found.checksums} == set(needed)
    assert found.left(WHOLE_WEIGHTS) == sum(path.stat().st_size for path in needed.values())
    # The key of a component is known before its weights are here.
    files = sorted(path for path in found.checksums if path.parent.name == "transformer")
    expected = weights_sha256([repository / path.relative_to(found.folder) for path in files])
    assert weights_sha256(files, checksum=lambda path, _: found.checksums[path]) == expected
    assert hub.weights() == before
    fetched = found.fetch(WHOLE_WEIGHTS)
    have = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    everything = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert have == everything - {
        "ltx-video-2b.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "media/clip.mp4",
        "media/list.json",
        "stray.json",
    }
    assert all((fetched / name).read_bytes() == path.read_bytes() for name, path in needed.items())
    # What is here is not asked for again.
    sent = hub.weights()
    again = find(NAME, tmp_path)
    again.read_headers()
    assert again.left(WHOLE_WEIGHTS) == 0
    assert again.checksums == {}
    assert again.fetch(WHOLE_WEIGHTS) == fetched
    assert hub.weights() == sent


def test_what_looks_at_images_comes_with_its_encoder(
    hub: Hub, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """CLIP's weights are told by their headers first, and its processor's settings are there from the beginning."""
    hub.repositories["Org/Image"] = folder = checkpoints("wan-clip") / "large"
    found = find("Org/Image", tmp_path)
    found.read_headers()
    part = image_encoder_part(open_checkpoint(found.folder))
    assert part.check() == ()
    assert json.loads(part.sources[-1].read_text())["image_processor_type"].startswith("CLIP")
    file = "image_encoder/model.safetensors"
    assert found.left(("image_encoder",)) == (folder / file).stat().st_size
    fetched = found.fetch(WHOLE_WEIGHTS)
    assert (fetched / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
def test_of_large_files_the_header_alone_is_read(
    hub: Hub, repository: Path, tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the header is longer than the first request, and where a server knows no ranges."""
    monkeypatch.setattr("flowblending.export.checkpoint.hub._FIRST_READ", 64)
    hub.ranges = ranges
    path = repository / "transformer" / WEIGHTS
    tensors = load_file(path)
    save_file(tensors | {"filler": torch.zeros(3_000_000)}, path)
    found = find(f"{NAME}/transformer", tmp_path, TRANSFORMER_HEADERS)
    found.read_headers()
    places = stored_tensors(found.folder)
    assert places["filler"].shape == (3_000_000,)
    assert set(places) == {*tensors, "filler"}
    assert (found.folder / WEIGHTS).stat().st_size == path.stat().st_size
    if ranges:
        assert hub.weights() < 30_000


@pytest.mark.usefixtures("hub")
def test_shards_are_found_by_their_index(repository: Path, tmp_path: Path) -> None:
    folder = repository / "transformer"
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    for index in range(8):
        save_file({name: tensors[name] for name in names[index::8]}, folder / f"{index}.safetensors")
    weight_map = {name: f"{index}.safetensors" for index in range(8) for name in names[index::8]}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = find(NAME, tmp_path)
    found.read_headers()
    assert set(stored_tensors(found.folder / "transformer")) == set(names)
    for index in range(5):
        (folder / f"{index}.safetensors").unlink()
    found = find(NAME, tmp_path)
    found.read_headers()
    with pytest.raises(FlowBlendingError) as caught:
        open_checkpoint(found.folder)
    assert str(caught.value) == (
        f"{NAME}/transformer lacks 0.safetensors, 1.safetensors, 2.safetensors and 2 more, though {WEIGHTS}.index.json "
        f"names them; download {NAME}/transformer again."
    )


@pytest.mark.usefixtures("hub")
def test_a_small_model_needs_its_transformer_alone(
    repository: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = open_checkpoint(checkpoints("ltx") / "large")
    found = find(NAME, tmp_path, TRANSFORMER_HEADERS)
    found.read_headers()
    folder, theirs = open_transformer(found.folder, ours)
    check_pair(ours, ours.folder / "transformer", folder, theirs)
    size = (repository / "transformer" / WEIGHTS).stat().st_size
    assert found.left(TRANSFORMER_WEIGHTS) == size
    fetched = found.fetch(TRANSFORMER_WEIGHTS)
    assert {path.parent.name for path in fetched.rglob("*.safetensors")} == {"transformer"}
    assert open_transformer(fetched, ours)[0] == fetched / "transformer"


@pytest.mark.parametrize("layout", ["root", "folder", "pipeline", "inside", "revision"])
def test_every_place_of_a_transformer(
    hub: Hub, repository: Path, checkpoints: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    ours = open_checkpoint(checkpoints("ltx") / "large")
    source = "someone/finetune"
    other = tmp_path / "other"
    if layout == "root":
        shutil.copytree(repository / "transformer", other)
    elif layout == "folder":
        shutil.copytree(repository / "transformer", other / "transformer")
    else:
        shutil.copytree(repository, other)
        hub.revisions = ("main", "refs/pr/3", "v2")
        source += {"pipeline": "", "inside": "/transformer", "revision": "/transformer@v2"}[layout]
    hub.repositories[source.partition("@")[0].removesuffix("/transformer")] = other
    found = find(source, tmp_path, TRANSFORMER_HEADERS)
    found.read_headers()
    folder, whole = open_transformer(found.folder, ours)
    assert (whole is not None) == (layout == "pipeline")
    assert len(stored_tensors(folder)) == len(stored_tensors(repository / "transformer"))
    fetched = open_transformer(found.fetch(TRANSFORMER_WEIGHTS), ours)[0]
    assert (fetched / WEIGHTS).read_bytes() == (repository / "transformer" / WEIGHTS).read_bytes()
    assert COMMIT in fetched.parts


def test_what_the_hub_refuses_is_told_as_what_it_is(hub: Hub, tmp_path: Path) -> None:
    assert "the hub has no Nobody/Nothing that you may read" in refusal("Nobody/Nothing", tmp_path)
    assert f"{NAME} has no revision of the name in {NAME}@v9" in refusal(f"{NAME}@v9", tmp_path)
    hub.refuses["Org/Gated"] = (403, "GatedRepo")
    assert "accept them at https://huggingface.co/Org/Gated and log in" in refusal("Org/Gated", tmp_path)
    hub.refuses["Org/Broken"] = (500, "")
    assert "Org/Broken is no folder here and could not be fetched from the hub (" in refusal("Org/Broken", tmp_path)
    assert f"{NAME} has no folder unet" in refusal(f"{NAME}/unet", tmp_path)
    assert "There is no folder ../nowhere" in refusal("../nowhere", tmp_path)
    assert hub.weights() == 0


def test_a_repository_without_any_checkpoint(hub: Hub, tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    ours = open_checkpoint(checkpoints("wan") / "large")
    authors = tmp_path / "authors"
    authors.mkdir()
    for index in range(37):
        (authors / f"diffusion_pytorch_model-{index:05}-of-00037.safetensors").write_bytes(b"x" * 3000)
    hub.repositories["Wan-AI/Wan2.1-T2V-14B"] = authors
    for config in (None, {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 5120}):
        if config is not None:
            (authors / "config.json").write_text(json.dumps(config))
        found = find("Wan-AI/Wan2.1-T2V-14B", tmp_path)
        for opens in (
            lambda folder: open_checkpoint(folder, whole=False),
            lambda folder: open_transformer(folder, ours),
        ):
            with pytest.raises(FlowBlendingError) as caught:
                opens(found.folder)
            message = str(caught.value)
            assert message.startswith(
                "Wan-AI/Wan2.1-T2V-14B holds weights in their authors' format (diffusion_pytorch_"
            )
            assert "and 34 more" in message
            assert "Wan-AI/Wan2.1-T2V-14B-Diffusers" in message
    shutil.rmtree(authors)
    authors.mkdir()
    (authors / "README.md").write_text("soon")
    with pytest.raises(FlowBlendingError, match=r"^Wan-AI/Wan2.1-T2V-14B is no diffusers checkpoint"):
        open_checkpoint(find("Wan-AI/Wan2.1-T2V-14B", tmp_path).folder)
    assert hub.weights() == 0


def test_an_unknown_pipeline_costs_one_file(hub: Hub, repository: Path, tmp_path: Path) -> None:
    index = json.loads((repository / "model_index.json").read_text())
    (repository / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(FlowBlendingError, match=rf"^{NAME} is a checkpoint of FluxPipeline, which is not supported"):
        open_checkpoint(find(NAME, tmp_path).folder, pipeline_classes())
    assert hub.weights() == 0


@pytest.mark.usefixtures("hub")
def test_the_cache_is_used_where_the_hub_is_out_of_reach(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the repository lists and no build needs makes nothing incomplete."""
    found = find(NAME, tmp_path)
    found.read_headers()
    fetched = found.fetch(WHOLE_WEIGHTS)
    (repository / "stray.json").rename(repository / "other.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (NAME, f"{NAME}@main"):
        offline = find(source, tmp_path)
        assert offline.folder == fetched
        assert offline.remote is None
    assert find(f"{NAME}/transformer", tmp_path).folder == fetched / "transformer"
    open_checkpoint(offline.folder)
    assert "HF_HUB_OFFLINE forbids asking the hub" in refusal("Org/Other", tmp_path)
    # A link whose file was removed from the cache.
    link = fetched / "vae" / WEIGHTS
    link.resolve().unlink()
    with pytest.raises(FlowBlendingError) as caught:
        open_checkpoint(offline.folder)
    assert str(caught.value).startswith(f"{NAME}/vae/{WEIGHTS} is missing (a link to nothing); ")


@pytest.mark.usefixtures("hub")
def test_a_link_to_nothing_is_fetched_again(tmp_path: Path) -> None:
    fetched = find(NAME, tmp_path).fetch(WHOLE_WEIGHTS)
    (fetched / "vae" / WEIGHTS).resolve().unlink()
    (fetched / "vae" / "config.json").resolve().unlink()
    found = find(NAME, tmp_path)
    found.read_headers()
    open_checkpoint(found.folder)
    open_checkpoint(found.fetch(WHOLE_WEIGHTS))


def test_refuses_a_file_and_a_name_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"x")
    assert "is a file, but a diffusers folder, a hub id, or a file that ends" in refusal(
        str(tmp_path / "one.txt"), tmp_path
    )
    assert "There is no file one.safetensors" in refusal("one.safetensors", tmp_path)
    assert "There is no file some/one.safetensors" in refusal("some/one.safetensors", tmp_path)
    assert "There is no folder" in refusal(str(tmp_path / "nowhere"), tmp_path)
    assert "There is no folder" in refusal("nowhere", tmp_path)
