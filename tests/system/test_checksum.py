"""Checksums against published vectors; the cache reads a file again exactly when it may have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flowblending.system import checksum
from flowblending.system.checksum import ChecksumCache, sha256

# FIPS 180-4, examples for "abc" and for the empty message.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def look_up(folder: Path, path: Path, *, recompute: bool = False) -> tuple[str, int]:
    """What a new process gets from the cache in ``folder``, and how many bytes it reads for that."""
    read: list[int] = []
    digest = ChecksumCache(folder).sha256(path, recompute=recompute, progress=read.append)
    return digest, sum(read)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.plan"
    path.write_bytes(b"abc")
    return path


def test_a_file_is_read_in_chunks_and_every_byte_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "CHUNK", 2)
    told: list[int] = []
    assert sha256(file, told.append) == ABC
    assert told == [2, 1]
    file.write_bytes(b"")
    assert sha256(file) == EMPTY


def test_an_unchanged_file_is_read_once(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_up(tmp_path / "cache", file) == (ABC, 3)
    assert look_up(tmp_path / "cache", file) == (ABC, 0)
    monkeypatch.chdir(tmp_path)
    assert look_up(tmp_path / "cache", Path(file.name)) == (ABC, 0)
    assert look_up(tmp_path / "cache", file, recompute=True) == (ABC, 3)


def test_a_file_that_was_touched_in_any_way_is_read_again(tmp_path: Path, file: Path) -> None:
    look_up(tmp_path / "cache", file)
    os.utime(file, ns=(0, 0))
    assert look_up(tmp_path / "cache", file) == (ABC, 3)
    # Another file of the same size and time in its place, as a copy that keeps time stamps leaves it.
    other = tmp_path / "other"
    other.write_bytes(b"abd")
    os.utime(other, ns=(0, 0))
    other.replace(file)
    digest, read = look_up(tmp_path / "cache", file)
    assert digest != ABC
    assert read == 3
    # What the file was before is not kept.
    (stored,) = (tmp_path / "cache").iterdir()
    assert len(json.loads(stored.read_text())) == 1


def test_processes_at_work_together_keep_what_the_other_found(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "small.plan"
    other.write_bytes(b"")
    one, two = ChecksumCache(tmp_path / "cache"), ChecksumCache(tmp_path / "cache")
    one.sha256(file)
    two.sha256(other)
    assert look_up(tmp_path / "cache", file) == (ABC, 0)
    assert look_up(tmp_path / "cache", other) == (EMPTY, 0)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe"], ids=repr)
def test_a_damaged_cache_costs_one_reading(tmp_path: Path, file: Path, content: bytes) -> None:
    look_up(tmp_path / "cache", file)
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(content)
    assert look_up(tmp_path / "cache", file) == (ABC, 3)
    assert look_up(tmp_path / "cache", file) == (ABC, 0)
    assert list((tmp_path / "cache").iterdir()) == [stored]


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, file: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert look_up(tmp_path / "cache", file) == (ABC, 3)
    assert look_up(tmp_path / "cache", file) == (ABC, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "large.plan"]


def test_a_user_without_a_home_has_no_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    assert ChecksumCache().sha256(file) == ABC
