"""Clones, names and copies of files, on the file systems that there are here."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from flowblending.system import share
from flowblending.system.share import FICLONE, can_clone, clone_or_copy, link_or_copy

CONTENT = bytes(range(256)) * 64


def cloned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand in for a file system that clones; the requests made of it."""
    requests: list[int] = []

    def ioctl(target: int, request: int, source: int) -> int:
        requests.append(request)
        os.write(target, os.pread(source, os.fstat(source).st_size, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return requests


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_a_second_name_takes_nothing(source: Path, tmp_path: Path) -> None:
    assert link_or_copy(source, tmp_path / "target") == 0
    assert (tmp_path / "target").samefile(source)


def test_a_clone_is_a_file_of_its_own_and_takes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = cloned(monkeypatch)
    assert clone_or_copy(source, tmp_path / "target") == 0
    assert requests == [FICLONE]
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert source.stat().st_nlink == (tmp_path / "target").stat().st_nlink == 1
    assert can_clone(tmp_path, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@pytest.mark.parametrize("refusal", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY])
def test_where_nothing_can_be_cloned_or_linked_it_is_copied(
    refusal: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert clone_or_copy(source, tmp_path / "copy") == len(CONTENT)
    monkeypatch.setattr(os, "link", refuse)
    assert link_or_copy(source, tmp_path / "other") == len(CONTENT)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "other").read_bytes() == CONTENT
    assert not can_clone(tmp_path, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["copy", "other", "source"]


def test_no_file_is_overwritten_and_none_is_lost(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        clone_or_copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_the_kernel_knows_the_request(source: Path, tmp_path: Path) -> None:
    """A file system without clones refuses this request, and not as one that it does not know."""
    done = subprocess.run(
        ["cp", "--reflink=always", source, tmp_path / "reference"], check=False, capture_output=True, text=True
    )
    assert (done.returncode == 0) == can_clone(tmp_path, tmp_path)
    with source.open("rb") as old, (tmp_path / "new").open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), share.FICLONE, old.fileno())
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL)
