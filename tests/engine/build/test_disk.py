"""What a build needs of the disk, against sums by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.random_checkpoint import Model, element_count, write_model
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.build import disk, room
from flowblending.engine.build.disk import ComponentDisk, Need, check_disk, need
from flowblending.engine.build.room import Planned, check_room
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.store.store import Store, open_store
from flowblending.export.checkpoint.model_files import model_files
from flowblending.export.checkpoint.size import OVERHEAD, Fp8Blocks, graph_bytes
from tests.support import manifests, store_process


def test_the_most_is_at_the_worst_moment() -> None:
    # The second component's graph lies beside both plans; the last one's is small.
    assert need(
        [ComponentDisk(kept=10, beside=10), ComponentDisk(kept=30, beside=30), ComponentDisk(kept=5, beside=5)]
    ) == Need(kept=45, most=70)
    assert need([ComponentDisk(kept=10, beside=0), ComponentDisk(kept=30, beside=0)]) == Need(kept=40, most=40)


def test_it_is_said_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 50_000_000_000)
    line = check_disk(Need(kept=29_000_000_000, most=50_000_000_000), tmp_path, Path("wan"))
    assert line == "disk: up to 50.0 GB are needed, 21.0 GB of it only meanwhile, 50.0 GB are free"
    with pytest.raises(FlowBlendingError, match=r"Building wan takes up to 57\.2 GB of disk, but 50\.0 GB are free"):
        check_disk(Need(kept=29_000_000_000, most=57_200_000_000), tmp_path, Path("wan"))


def test_bytes_of_a_graph(tmp_path: Path) -> None:
    settings = {"num_layers": 5, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "text_dim": 16}
    model = Model(kind="WanTransformer3DModel", settings=settings)
    write_model(model, tmp_path)
    files, count = model_files(tmp_path), element_count(model)
    assert graph_bytes(files, Precision.FP32) == OVERHEAD + 4 * count
    assert graph_bytes(files, Precision.BF16) == OVERHEAD + 2 * count
    # Of five blocks, three lie between one kept at either end.
    block = element_count(model) - element_count(model.cut(4))
    blocks = Fp8Blocks(count=5, keep=1, base=Precision.BF16)
    assert graph_bytes(files, Precision.FP8, blocks) == OVERHEAD + 2 * count - 3 * block


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A cache with a component ``large``."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    store_process.obtain(tmp_path / "cache", tmp_path / "other", lambda _: None)
    with open_store(tmp_path / "cache", tmp_path, store_process.Recorder()) as opened:
        yield opened


def test_what_is_there_is_not_needed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 8_000_000)
    manifests.write(tmp_path / "old")
    old, out = open_bundle(tmp_path / "old"), tmp_path / "new"
    out.mkdir()
    size = ComponentDisk(kept=3_000_000, beside=2_000_000)
    cached = Planned(component=("large", store_process.KEY | {"ranges": "measured later"}), step=size)
    kept = Planned(component=("small", {"weights": "small"}), step=size)
    built = Planned(component=("vae", {"weights": "another"}), step=size)
    assert check_room([cached, kept], store, old, out, out) == []
    told = "disk: up to 5.0 MB are needed in the cache, 2.0 MB of it only meanwhile, 8.0 MB are free"
    assert check_room([cached, kept, built], store, old, out, out) == [told]
    other = Planned(component=("large", store_process.KEY | {"weights": "another"}), step=size)
    with pytest.raises(FlowBlendingError, match=r"takes up to 11\.0 MB of disk, .* free in the cache .*--cache-dir"):
        check_room([other, kept, built], store, None, out, out)


def test_weights_that_onnx_shall_read_are_counted_twice_or_shared(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 11_000_000
    monkeypatch.setattr(disk, "free_bytes", lambda _: free)
    monkeypatch.setattr(room, "can_clone", lambda *_: False)
    size = ComponentDisk(kept=3_000_000, beside=2_000_000)
    cached = Planned(component=("large", store_process.KEY), step=size, weights=3_000_000)
    built = Planned(component=("vae", {"weights": "another"}), step=size, weights=3_000_000)
    (line,) = check_room([built, cached], store, None, tmp_path, tmp_path)
    assert line == "disk: up to 9.0 MB are needed in the cache, 11.0 MB are free"
    (line,) = check_room([cached], store, None, tmp_path, tmp_path)
    assert line == "disk: up to 3.0 MB are needed, 11.0 MB are free"
    assert store.apart
    (line,) = check_room([cached, built], store, None, tmp_path, tmp_path)
    assert line == "disk: up to 9.0 MB are needed in the cache, 11.0 MB are free"
    free = 8_000_000
    said, line = check_room([cached, built], store, None, tmp_path, tmp_path)
    assert "the bundle shares the cache's files" in said and "cp -r" in said
    assert line.startswith("disk: up to 5.0 MB are needed in the cache, 2.0 MB of it only meanwhile")
    assert not store.apart
    # Clones take nothing.
    monkeypatch.setattr(room, "can_clone", lambda *_: True)
    store.apart = True
    assert check_room([cached], store, None, tmp_path, tmp_path) == []
    assert store.apart


def test_another_disk_holds_all_of_the_bundle_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own file system in memory is another one than that of the tests."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    size = ComponentDisk(kept=3_000_000, beside=2_000_000)
    planned = [
        Planned(component=("large", store_process.KEY), step=size),
        Planned(component=("vae", {"weights": "another"}), step=size),
    ]
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 6_000_000 if folder == memory else 5_000_000)
    assert check_room(planned, store, None, memory, tmp_path) == [
        "disk: up to 5.0 MB are needed in the cache, 2.0 MB of it only meanwhile, 5.0 MB are free",
        "disk: up to 6.0 MB are needed, 6.0 MB are free",
    ]
