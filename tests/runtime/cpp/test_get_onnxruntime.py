"""The script that gathers ONNX Runtime's headers, with an apt that plays Debian and Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.required import unavailable

SCRIPT = Path(__file__).parents[3] / "runtime/cpp/scripts/get-onnxruntime.sh"
APT = """#!/bin/bash
# As apt-get: what is configured, and a package that only a later release has.
echo "$*" >> "$STAGE/calls"
case "$*" in
    *indextargets*) cat "$STAGE/targets" ;;
    *update*) cp sources.list "$STAGE/sources" ;;
    *download*)
        [ -f "$STAGE/here" ] || [ -f "$STAGE/sources" ] || exit 1
        cp "$STAGE/package.deb" libonnxruntime-dev_1_all.deb ;;
esac
"""
DEBIAN = """\
main bookworm-security Debian http://deb.debian.org/debian-security
contrib bookworm Debian http://mirror/contrib
main bookworm Debian http://deb.debian.org/debian
"""
UBUNTU = """\
main nodistro . https://deb.nodesource.com/node_20.x
main noble-updates Ubuntu http://archive.ubuntu.com/ubuntu
universe noble Ubuntu http://archive.ubuntu.com/ubuntu
main noble Ubuntu http://ports.ubuntu.com/ubuntu-ports
main noble-security Ubuntu http://security.ubuntu.com/ubuntu
"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with apt-get and the package that it has."""
    if shutil.which("dpkg-deb") is None:
        unavailable("dpkg-deb is missing; this is no Debian or Ubuntu.")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/apt-get").write_text(APT)
    (tmp_path / "bin/apt-get").chmod(0o755)
    control = tmp_path / "package/DEBIAN/control"
    header = tmp_path / "package/usr/include/onnxruntime/onnxruntime_cxx_api.h"
    for path in (control, header):
        path.parent.mkdir(parents=True)
    control.write_text(
        "Package: libonnxruntime-dev\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: headers\n"
    )
    header.write_text("#pragma once\n")
    subprocess.run(["dpkg-deb", "-b", tmp_path / "package", tmp_path / "package.deb"], check=True, capture_output=True)
    return tmp_path


def gather(stage: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STAGE": str(stage), "PATH": f"{stage / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), str(stage / "ort"), sys.executable]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("targets", "origin", "source"),
    [
        (DEBIAN, "debian", "http://deb.debian.org/debian trixie main"),
        (UBUNTU, "ubuntu", "http://ports.ubuntu.com/ubuntu-ports resolute universe"),
    ],
)
def test_headers_come_from_a_later_release_of_the_same_mirror(
    stage: Path, targets: str, origin: str, source: str
) -> None:
    (stage / "targets").write_text(targets)
    done = gather(stage)
    assert done.returncode == 0, done.stderr
    keyring = Path(f"/usr/share/keyrings/{origin}-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    assert (stage / "sources").read_text() == f"deb {signed}{source}\n"
    assert (stage / "ort/include/onnxruntime_cxx_api.h").read_text() == "#pragma once\n"
    assert (stage / "ort/lib/libonnxruntime.so").exists()
    assert not (stage / "ort/apt").exists()
    # Once complete, nothing is asked again.
    (stage / "calls").unlink()
    assert gather(stage).returncode == 0
    assert not (stage / "calls").exists()


def test_headers_of_this_release_come_first(stage: Path) -> None:
    (stage / "here").touch()
    assert gather(stage).returncode == 0
    assert (stage / "calls").read_text() == "-qq download libonnxruntime-dev\n"


@pytest.mark.parametrize("targets", ["", "main nodistro . https://deb.nodesource.com/node_20.x\n"])
def test_without_a_mirror_it_says_what_to_do(stage: Path, targets: str) -> None:
    (stage / "targets").write_text(targets)
    done = gather(stage)
    assert done.returncode == 1
    assert "apt knows no mirror of Debian or Ubuntu; run apt-get update" in done.stderr
    assert "-DONNXRUNTIME_ROOT" in done.stderr
    assert not (stage / "ort/complete").exists()
