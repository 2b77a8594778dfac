"""Every program looks at the names of its outputs before anything else is done."""

import contextlib
import os
from pathlib import Path

import pytest

from tests.support import manifests
from tests.support.programs import run

OPTIONS = {
    "fb-run --out": "{bundle} --prompt x --out {name}.mp4",
    "fb-run --out, many": "{bundle} --prompts {prompts} --out {name}",
    "fb-run --save-latents": "{bundle} --prompt x --out {new}.mp4 --save-latents {name}",
    "fb-run --emit-program": "{bundle} --prompt x --out {new}.mp4 --emit-program {name}",
    "fb-run --emit-inputs": "{bundle} --prompt x --emit-inputs {name}",
    "fb-calibrate --plot": "{bundle} --prompts {prompts} --plot {name}",
    "fb-compare --out": "{bundle} --prompts {prompts} --out {name}",
    "fb-compare --vbench": "{bundle} --prompts {prompts} --out {new} --vbench {name}",
    "fb-compare --videos": "--videos {prompts} {prompts} --out {name}",
    "fb-export-triton --out": "{bundle} --out {name}",
    "fb-client --out": "--model x --prompt x --out {name}.npy",
    "fb-client --save-latents": "--model x --prompt x --out {new}.npy --save-latents {name}.npy",
    "fb-build-engines --out": "--large {folder}/none --small {folder}/none --out {name}",
}


def said(option: str, folder: Path, name: object) -> str:
    """What a program says of a bundle without its engines, which would be the first that it found missing."""
    if not (folder / "bundle").exists():
        (folder / "prompts").write_text("a cat\na dog\n")
        manifests.write(folder / "bundle")
        for path in (folder / "bundle").iterdir():
            if path.name != "manifest.json":
                path.unlink()
    before = sorted(folder.rglob("*"))
    places = {"bundle": folder / "bundle", "prompts": folder / "prompts", "new": folder / "new", "folder": folder}
    words = OPTIONS[option].format(name=name, **places)
    with contextlib.chdir(folder):
        done = run(option.partition(" ")[0], *words.split())
    assert done.returncode in {1, 2}
    assert sorted(folder.rglob("*")) == before
    (sentence,) = done.stderr.splitlines()
    return sentence


@pytest.mark.parametrize("option", OPTIONS)
def test_a_name_that_is_too_long_is_refused_first(tmp_path: Path, option: str) -> None:
    assert "File name too long" in said(option, tmp_path, tmp_path / ("x" * 256))


@pytest.mark.parametrize("option", [option for option in OPTIONS if "{name}." not in OPTIONS[option]])
def test_standard_output_pipes_and_devices_are_refused_first(tmp_path: Path, option: str) -> None:
    assert "no file goes to standard output" in said(option, tmp_path, "-")
    os.mkfifo(tmp_path / "pipe")
    refused = "pipe exists and is no bundle" if option.startswith("fb-build") else "pipe is a pipe"
    assert refused in said(option, tmp_path, tmp_path / "pipe")
    assert "is a process's open file" in said(option, tmp_path, "/dev/stdout")


@pytest.mark.parametrize("name", ["videos.mp4", "X.MP4", "x.Npy"])
def test_one_video_is_no_folder_of_them_however_its_suffix_is_written(tmp_path: Path, name: str) -> None:
    sentence = said("fb-run --out, many", tmp_path, name)
    assert f"--out {name} names one video, but --prompts makes a folder of them" in sentence
