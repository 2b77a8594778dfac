"""What is distributed: a source archive that is the whole checkout, its wheel, and types for users' scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.documents import ROOT

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def tracked() -> list[str]:
    """The files of the checkout, without what lies in it besides."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no checkout")
    return [name for name in done.stdout.split("\0") if name and Path(ROOT, name).exists()]


def distribute(kind: str, tree: Path, into: Path) -> Path:
    """Build a ``sdist`` or a ``wheel`` of a tree."""
    into.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(into)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout") / "flowblending"
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


@pytest.mark.slow
def test_the_source_archive_is_the_checkout_and_makes_its_wheel(checkout: Path, tmp_path: Path) -> None:
    archive = distribute("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in tracked():
        mine, theirs = checkout / name, unpacked / name
        assert theirs.is_symlink() == mine.is_symlink(), name
        if mine.is_symlink():
            assert theirs.readlink() == mine.readlink()
        else:
            assert theirs.read_bytes() == mine.read_bytes(), name
    wheels = [
        zipfile.ZipFile(distribute("wheel", tree, tmp_path / f"wheel-{index}"))
        for index, tree in enumerate((checkout, unpacked))
    ]
    first, second = ({name: wheel.read(name) for name in wheel.namelist()} for wheel in wheels)
    assert first == second
    # Every module and nothing of the tests; and what says that there are types.
    modules = {name for name in tracked() if re.match(r"(flowblending|engine|export|runtime)/.*\.py$", name)}
    packaged = {name.removeprefix("flowblending/") for name in first if name.endswith(".py")}
    assert packaged == {name.removeprefix("flowblending/") for name in modules}
    assert "flowblending/py.typed" in first
    assert "flowblending/runtime/compare/page.html" in first
    assert "flowblending/runtime/serve/http/page.js" in first


SCRIPT = """\
import flowblending
from flowblending import StepEvent, VideoSampler


def steps(sampler: VideoSampler) -> int:
    return sum(isinstance(event, StepEvent) for event in sampler.generate("a cat"))


sampler: str = flowblending.open("bundle")
"""


@pytest.mark.slow
def test_a_users_script_finds_the_types_of_the_installation_of_make_demo(checkout: Path, tmp_path: Path) -> None:
    """With the Makefile's own options, in an environment of its own."""
    makefile = (checkout / "Makefile").read_text()
    assert re.search(r"^INSTALL := \S+/uv pip install .* \$\(EDITABLE\)$", makefile, re.MULTILINE)
    assert len(re.findall(r"^\t\$\(INSTALL\) '\.\[", makefile, re.MULTILINE)) == 2
    (options,) = re.findall(r"^EDITABLE := (.*)$", makefile, re.MULTILINE)
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = str(environment / "bin" / "python")
    # setuptools, mypy and what our own annotations name are taken from this environment.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", python, "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, *options.split(), "."], cwd=checkout, check=True, capture_output=True, timeout=300)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [python, "-m", "mypy", "--strict", "--follow-imports", "silent", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert re.search(r'script\.py:9: error: .*expression has type "VideoSampler", variable has type "str"', done.stdout)
    assert done.stdout.count("error:") == 1, done.stdout
