"""Which pipeline the rest is taken from, and what of every source is fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowblending import FlowBlendingError
from flowblending.engine.build.plan import Plan, check_plan, make_plan
from flowblending.engine.build.request import BuildRequest, named_models, rebuild_command
from flowblending.engine.build.sources import Sources, find_sources
from flowblending.export.checkpoint.model_files import weights_sha256
from flowblending.system.checksum import sha256
from tests.support.hub_server import Hub, serve, use
from tests.support.weight_files import Reference, gguf, make_reference, prefixed, save, scaled


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture
def file(wan: Reference, tmp_path: Path) -> Path:
    return save(prefixed(wan.original, "diffusion_model."), tmp_path / "small.safetensors")


def asked(large: object, small: object, base: object = None) -> BuildRequest:
    return BuildRequest(
        models=named_models(str(large), str(small)),
        base=None if base is None else str(base),
        out=Path("bundle"),
        size="32x48",
        frames=5,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )


def planned(request: BuildRequest, scratch: Path) -> tuple[Plan, Sources]:
    scratch.mkdir()
    sources = find_sources(request, scratch)
    plan = make_plan(request, sources.folders)
    check_plan(request, plan, sources)
    return plan, sources


def key(plan: Plan, name: str, checksums: dict[Path, str] | None = None) -> str:
    """What stands in the key of a component for its weights."""
    sources = next(part.sources for part in plan.parts if part.name == name)
    known = checksums or {}
    return weights_sha256(sources, checksum=lambda path, _: known.get(path) or sha256(path))


def test_files_run_in_whatever_pipeline_there_is(wan: Reference, file: Path, tmp_path: Path) -> None:
    plans = [
        planned(request, tmp_path / str(number))
        for number, request in enumerate(
            (
                asked(file, file, wan.base),
                asked(file, wan.base),
                asked(wan.base, file),
                asked(wan.folder, file, wan.base),
                asked(wan.base, wan.folder, wan.base),
                asked(wan.folder, wan.base),
            )
        )
    ]
    assert [sources.base for _, sources in plans] == ["_base", "small", "large", "_base", "_base", "small"]
    assert len({plan.pipeline for plan, _ in plans}) == 1
    for plan, _ in plans:
        assert {part.name for part in plan.parts} == {"large", "small", "text_encoder", "vae_first", "vae_next"}
    # One file is one component, whichever model it is.
    assert key(plans[0][0], "large") == key(plans[2][0], "small") == key(plans[3][0], "small")
    command = rebuild_command(asked(file, file, wan.base))
    assert command[command.index("--base") + 1] == str(wan.base)


def test_a_base_needs_no_transformer_and_refuses_another_one(wan: Reference, file: Path, tmp_path: Path) -> None:
    base = shutil.copytree(wan.base, tmp_path / "base")
    (base / "transformer/diffusion_pytorch_model.safetensors").unlink()
    planned(asked(file, file, base), tmp_path / "whole")
    config = json.loads((base / "transformer/config.json").read_text())
    (base / "transformer/config.json").write_text(json.dumps(config | {"in_channels": 36}))
    with pytest.raises(FlowBlendingError, match=r"in_channels is 36 in the pipeline \(.*\) but 16 in the large model"):
        planned(asked(file, file, base), tmp_path / "other")


def test_without_a_pipeline_one_is_asked_for(wan: Reference, file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FlowBlendingError, match=r"small\.safetensors and .*transformer hold transformers alone; .*--base"
    ):
        planned(asked(file, wan.folder), tmp_path / "none")
    with pytest.raises(FlowBlendingError, match="no diffusers checkpoint, as it has neither model_index"):
        (tmp_path / "empty").mkdir()
        planned(asked(file, tmp_path / "empty"), tmp_path / "foreign")


@pytest.fixture
def hub(wan: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "repository/split_files").mkdir(parents=True)
    save(scaled(wan.original, "scale_weight"), tmp_path / "repository/split_files/fp8.safetensors")
    bad = scaled(wan.original, "scale_weight") | {"blocks.0.ffn.0.scale_weight": torch.tensor(0.0)}
    save(bad, tmp_path / "repository/bad.safetensors")
    gguf(wan.original, (), tmp_path / "repository/bf16.gguf", arch="wan")
    (tmp_path / "repository/old.ckpt").write_bytes(b"pickle" * 1000)
    with serve(Hub(repositories={"Org/Files": tmp_path / "repository", "Org/Base": wan.base})) as hub:
        use(hub, tmp_path / "cache", monkeypatch.setattr)
        yield hub


def test_of_the_hub_only_what_is_needed_is_fetched(
    hub: Hub, wan: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked("Org/Files/split_files/fp8.safetensors", wan.folder, "Org/Base@main")
    plan, sources = planned(request, tmp_path / "headers")
    assert sources.remote
    before = key(plan, "large", dict(sources.checksums))
    fetched = make_plan(request, sources.fetch())
    assert key(fetched, "large") == before
    sent = {name for name in hub.fetched if name.endswith(".safetensors")}
    assert sent == {
        "Org/Files/split_files/fp8.safetensors",
        "Org/Base/vae/diffusion_pytorch_model.safetensors",
        "Org/Base/text_encoder/model.safetensors",
    }
    # What is in the cache is enough where the hub is out of reach.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again, sources = planned(request, tmp_path / "offline")
    assert not sources.remote
    assert key(again, "large") == before


@pytest.mark.usefixtures("hub")
def test_of_a_gguf_file_of_the_hub_the_header_comes_first(
    wan: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowblending.export.checkpoint.hub.HEADER_BYTES", 10_000)
    request = asked(wan.folder, "Org/Files/bf16.gguf", wan.base)
    plan, sources = planned(request, tmp_path / "headers")
    before = key(plan, "small", dict(sources.checksums))
    assert sources.sources["small"].left(("",)) > 60_000
    assert key(make_plan(request, sources.fetch()), "small") == before


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.safetensors", "has no folder nothing.safetensors, and no file of that name"),
        ("old.ckpt", "is a pickle"),
        ("bad.safetensors", r"scale of blocks\.0\.ffn\.0\.weight in Org/Files/bad\.safetensors is 0, but"),
    ],
)
def test_files_of_the_hub_that_are_none(wan: Reference, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match=said):
        _, sources = planned(asked(wan.folder, f"Org/Files/{name}", wan.base), tmp_path / "scratch")
        sources.fetch()
