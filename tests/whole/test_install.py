"""What the documents tell people to install can be installed from PyPI alone.

uv's resolver is asked, without any wheel that lies on this machine: a local CPU build of torch hides what PyPI's CUDA
build pins.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.required import unavailable

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLACEHOLDERS = {"tensorrt"}
"""On PyPI these are source packages that fetch their wheels from NVIDIA's index while they are installed: what they pin
can't be read without it."""


def extras_told(text: str) -> Iterator[frozenset[str]]:
    """Every set of extras in a text: ``'.[build,cpu]'``, and the Dockerfile's EXTRAS."""
    for found in re.findall(r"\.\[([a-z0-9,-]+)\]|EXTRAS=([a-z0-9,-]+)", text):
        yield frozenset("".join(found).split(","))


SETS = sorted(
    {
        extras
        for name in ("Makefile", "README.md", "Dockerfile", *(str(path) for path in (ROOT / "docs").glob("*.md")))
        for extras in extras_told((ROOT / name).read_text())
    },
    key=sorted,
)


def requirements(extras: frozenset[str]) -> list[str]:
    wanted = PROJECT["dependencies"] + [each for extra in sorted(extras) for each in optional(extra)]
    return [each for each in wanted if re.split(r"[^\w-]", each)[0] not in PLACEHOLDERS]


def optional(extra: str) -> list[str]:
    found: list[str] = PROJECT["optional-dependencies"][extra]
    return found


def resolve(extras: frozenset[str], python: str, platform: str) -> subprocess.CompletedProcess[str]:
    """Ask for wheels alone: what is built while it is installed may need a compiler."""
    others = ("UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_CONSTRAINT", "UV_TORCH_BACKEND")
    alone = {name: value for name, value in os.environ.items() if name not in others}
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-config", "--only-binary", ":all:"]
    command += ["--python-version", python, "--python-platform", platform, "--constraint", "constraints.txt"]
    wanted = "\n".join(requirements(extras))
    return subprocess.run(command, cwd=ROOT, input=wanted, capture_output=True, text=True, env=alone, check=False)


def test_the_documents_name_sets_of_extras_that_exist() -> None:
    assert len(SETS) >= 4
    for extras in SETS:
        assert extras <= PROJECT["optional-dependencies"].keys()


def test_a_placeholder_is_an_extra_of_its_own_kind() -> None:
    """Whatever else stands beside it is resolved all the same."""
    left = requirements(frozenset({"tensorrt"}))
    assert not any(each.startswith("tensorrt") for each in left)
    assert any(each.startswith("nvidia-cuda-nvrtc") for each in left)


@pytest.mark.slow
@pytest.mark.parametrize(
    "python", ["3.11", "3.12", *(pytest.param(f"3.{each}", marks=pytest.mark.long) for each in (13, 14))]
)
@pytest.mark.parametrize(
    "platform", ["x86_64-manylinux_2_28", pytest.param("aarch64-manylinux_2_39", marks=pytest.mark.long)]
)
def test_every_set_of_extras_resolves_from_pypi_alone(platform: str, python: str) -> None:
    """All of them at once: what satisfies the union satisfies each of its parts."""
    outcome = resolve(frozenset().union(*SETS), python, platform)
    if "Failed to fetch" in outcome.stderr:
        unavailable("No index of Python packages can be reached from here.")
    assert outcome.returncode == 0, outcome.stderr[-600:]
    # The build of torch that PyPI has, and not one of this machine.
    assert re.search(r"^torch==[0-9.]+$", outcome.stdout, re.MULTILINE)
