"""Latents in files: what was written is read again, and what cannot be is said in a sentence."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import numpy as np
import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.media.latents import read_latents, save_latents
from flowblending.system.output import check_file

LATENTS = np.random.default_rng(0).standard_normal((1, 16, 3, 4, 8)).astype(np.float32)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "latents"  # the name is the user's: no suffix is added
    save_latents(path, LATENTS)
    save_latents(path, -LATENTS)
    content = read_latents(path)
    assert content.dtype == np.float32
    np.testing.assert_array_equal(content, -LATENTS)
    assert list(tmp_path.iterdir()) == [path]


def stored(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"PK\x03\x04 no archive",
        stored(LATENTS)[:50],
        stored(LATENTS).replace(b"}", b" ", 1),
        stored(LATENTS)[:-1],
        stored([{}]),
    ],
    ids=["empty", "text", "bad archive", "half a header", "bad header", "truncated", "pickled"],
)
def test_files_that_hold_no_latents(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latents.npy"
    path.write_bytes(content)
    with pytest.raises(FlowBlendingError, match=r"Cannot read latents from .*latents.npy .*give a .npy file") as raised:
        read_latents(path)
    assert "pickle" not in str(raised.value)


def test_files_that_are_not_there_or_hold_several_arrays(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.npy"):
        with pytest.raises(FlowBlendingError, match="Cannot read latents"):
            read_latents(path)
    np.savez(tmp_path / "two.npz", a=LATENTS, b=LATENTS)
    with pytest.raises(FlowBlendingError, match="holds several arrays, but one was expected"):
        read_latents(tmp_path / "two.npz")


def test_a_write_that_fails_half_way_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    path.write_text("an earlier file")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LATENTS.nbytes // 2, limit[1]))
    try:
        with pytest.raises(FlowBlendingError, match=r"Cannot write .*latents.npy .*File too large"):
            save_latents(path, LATENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == "an earlier file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_is_checked_before_the_run_as_the_write_would_find_it(tmp_path: Path) -> None:
    check_file(tmp_path / "latents.npy")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none" / "latents.npy", tmp_path / "file" / "latents.npy"):
        with pytest.raises(FlowBlendingError, match=r"Cannot write .*; give|is a folder, but a file was"):
            check_file(path)
        with pytest.raises(FlowBlendingError, match=r"Cannot write .*; give|is a folder, but a file was"):
            save_latents(path, LATENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
