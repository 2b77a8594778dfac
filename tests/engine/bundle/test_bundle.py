from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import image_tokens_condition
from flowblending.contracts.manifest import MANIFEST
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.engine.bundle.bundle import bundle_id, check_bundle_place, check_outside, open_bundle, write_bundle
from tests.support import manifests
from tests.support.killed import leave_aside


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_whole_bundle_opens_and_verifies(tmp_path: Path) -> None:
    written = manifests.write(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    bundle.verify()
    assert bundle.manifest == written
    assert bundle.path("large").read_bytes().startswith(b"large")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "small.onnx").unlink(), "small.onnx is missing"),
    "truncated": (lambda folder: os.truncate(folder / "large.onnx", 10), "large.onnx has 10 bytes, but 500 were"),
    "altered": (lambda folder: _flip(folder / "large.onnx"), "large.onnx was altered after the build"),
    "foreign": (lambda folder: (folder / "other.plan").touch(), "other.plan does not belong to this bundle"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_named_with_the_command_that_rebuilds(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bundle"
    manifests.write(folder)
    open_bundle(folder).verify()  # also what was found whole before is found damaged afterwards
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(FlowBlendingError, match=message) as error:
        open_bundle(folder).verify()
    assert f"fb-build-engines --large 'a b' --small c --out {folder}" in str(error.value)


def test_a_copy_is_rebuilt_where_it_lies(tmp_path: Path) -> None:
    manifests.write(tmp_path / "bundle")
    (tmp_path / "bundle").rename(tmp_path / "moved")
    assert open_bundle(tmp_path / "moved").rebuild.endswith(f"--out {tmp_path / 'moved'}")


def test_an_alteration_that_keeps_the_time_stamp_is_found_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifests.write(folder)
    open_bundle(folder).verify()
    path = folder / "large.onnx"
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_bundle(folder).verify()
    with pytest.raises(FlowBlendingError, match="altered"):
        open_bundle(folder).verify(recompute=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is a bundle manifest of format 99, written by flowblending .* rebuild with: fb-build"),
        ({"profiles": [{"min": {"width": "wide"}}]}, "is damaged at profiles.0.min.width"),
        ({"profiles": []}, "is damaged at profiles"),
        ({"surprise": 1}, "is damaged at surprise"),
        ({"components": {}}, "component .* is missing"),
        ({"tokenizer": []}, "is damaged at tokenizer"),
        ({"tokenizer": [{"path": "../x", "bytes": 1, "sha256": ""}]}, "is damaged at tokenizer.0.path"),
    ],
)
def test_a_manifest_of_another_version_or_damaged(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = tmp_path / "bundle"
    manifests.write(folder)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FlowBlendingError, match=message):
        open_bundle(folder)


def test_what_looks_at_images_needs_both_encoders(tmp_path: Path) -> None:
    """The VAE's and CLIP's, where the models are declared to see images through it."""
    folder = tmp_path / "bundle"
    manifests.write(folder)
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content["pipeline"]["conditions"] = [dataclasses.asdict(image_tokens_condition(257, 1280, 1))]
    missing = []
    for _ in range(2):
        path.write_text(json.dumps(content))
        with pytest.raises(FlowBlendingError) as caught:
            open_bundle(folder)
        (name,) = re.findall(r"component (\w+) is missing", str(caught.value))
        missing.append(name)
        content["components"] |= {name.removesuffix("_first"): content["components"]["vae"]}
    assert missing == ["image_encoder", "vae_encoder_first"]
    path.write_text(json.dumps(content))
    assert open_bundle(folder).manifest.pipeline.conditions == (image_tokens_condition(257, 1280, 1),)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}'])
def test_a_manifest_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(FlowBlendingError, match="is damaged; build the bundle again"):
        open_bundle(tmp_path)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FlowBlendingError, match="check its permissions"):
        patch.setattr(Path, "read_text", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
        open_bundle(tmp_path)
    with pytest.raises(FlowBlendingError, match="is no bundle"):
        open_bundle(tmp_path)
    with pytest.raises(FlowBlendingError, match="make one with fb-build-engines --out 'my bundle'"):
        open_bundle(Path("my bundle"))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FlowBlendingError, match="exists and is no bundle"), write_bundle(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_failed_build_leaves_the_old_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    old = manifests.write(out)
    with pytest.raises(RuntimeError), write_bundle(out) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert open_bundle(out).manifest == old
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_build_replaces_the_old_bundle_whole(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    manifests.write(out)
    with write_bundle(out) as folder:
        (folder / MANIFEST).write_text("new")
    assert [path.name for path in out.iterdir()] == [MANIFEST]
    assert os.listdir(tmp_path) == ["bundle"]


KILLED = """
import sys, time
from pathlib import Path
from flowblending.engine.bundle.bundle import write_bundle
with write_bundle(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_build_leaves_the_old_bundle_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    old = manifests.write(out)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert open_bundle(out).manifest == old
    assert len(os.listdir(tmp_path)) == 2
    with write_bundle(out) as folder:
        (folder / MANIFEST).write_text("new")
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_bundle_stranded_between_two_renames_is_put_back(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    old = manifests.write(out)
    leave_aside(out, out)
    with pytest.raises(RuntimeError), write_bundle(out):
        raise RuntimeError
    assert open_bundle(out).manifest == old


def test_an_unwritable_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FlowBlendingError, match="file is no folder"),
        write_bundle(tmp_path / "file" / "bundle"),
    ):
        pass


def test_verifying_again_reads_nothing(tmp_path: Path) -> None:
    manifests.write(tmp_path / "bundle")
    read: list[int] = []
    bundle = open_bundle(tmp_path / "bundle")
    bundle.verify(progress=read.append)
    assert sum(read) == sum(file.bytes for file in bundle.files())
    time.sleep(0.01)
    read.clear()
    bundle.verify(progress=read.append)
    assert not read


def test_what_a_model_asks_for_is_part_of_the_identity(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    large, small = manifest.models
    identities = {manifest.id}
    for sampling in (ModelSampling(guidance=1.0), ModelSampling(guidance=2.0), ModelSampling(timesteps=(900.0,))):
        models = (large, small.model_copy(update={"sampling": sampling}))
        identities.add(bundle_id(manifest.pipeline, manifest.profiles, manifest.components, b"{}", models))
    again = bundle_id(manifest.pipeline, manifest.profiles, manifest.components, b"{}", manifest.models)
    assert again == manifest.id
    assert len(identities) == 4


def test_nothing_is_put_into_a_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifests.write(folder)
    for place in (folder / "inner", folder / "deep" / "inner"):
        for check in (check_outside, check_bundle_place):
            with pytest.raises(UsageError, match=f"lies in the bundle {folder}"):
                check(place)
    with pytest.raises(UsageError, match="lies in the bundle"):
        check_outside(folder)
    check_bundle_place(folder)  # which is replaced
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "manifest.json").write_text('{"name": "a web page\'s"}')
    check_outside(tmp_path / "page" / "cache")
    open_bundle(folder).verify()
