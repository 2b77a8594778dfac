"""Where ``fb-client`` and ``fb-export-triton`` write, told before a server is asked or a bundle is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.serve.triton.client_cli import main
from flowblending.runtime.serve.triton.repository import check_repository
from tests.support import manifests


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", "bundle/x.mp4"), "lies in the bundle"),
        (("--save-latents", "bundle/deep/x.npy"), "lies in the bundle"),
        (("--noise", "in.npy", "--save-latents", "link.npy"), "--save-latents and --noise both name link.npy"),
        (("--out", "loop.mp4"), "Too many levels of symbolic links"),
    ],
)
def test_the_client_refuses_a_place(
    options: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    manifests.write(Path("bundle"))
    Path("in.npy").write_bytes(npy())
    Path("link.npy").symlink_to("in.npy")
    Path("loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(SystemExit):
        main(["--url", "127.0.0.1:9", "--model", "wan", "--prompt", "x", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert Path("in.npy").read_bytes() == npy()


def test_no_repository_is_made_in_a_bundle(tmp_path: Path) -> None:
    manifests.write(tmp_path / "bundle")
    with pytest.raises(UsageError, match="lies in the bundle"):
        check_repository([], tmp_path / "bundle" / "models")
    with pytest.raises(FlowBlendingError, match="no model can be put into"):
        check_repository([], tmp_path / "bundle")


def npy() -> bytes:
    """A file of noise."""
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).standard_normal((1, 4, 2, 4, 4)).astype(np.float32))
    return file.getvalue()
