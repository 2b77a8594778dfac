"""Images, videos and masks through Triton: what fb-run makes of the same files, and its refusals in its words."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.generate import generate
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.runtime.serve.triton.client_request import request_inputs
from flowblending.runtime.serve.triton.worker import answer
from flowblending.system.console import Console
from tests.conftest import Build
from tests.support.required import unavailable
from tests.support.triton_server import TritonServer, Unavailable, install, serve

pytestmark = [pytest.mark.slow, pytest.mark.embedding]

EXPORT = "flowblending.runtime.serve.triton.cli"
CLIENT = "flowblending.runtime.serve.triton.client_cli"
RUN = "flowblending.runtime.cli"


@pytest.fixture(scope="module")
def ltx(build: Build) -> Bundle:
    return build("ltx-condition")


@pytest.fixture(scope="module")
def pipeline(ltx: Bundle) -> Iterator[Pipeline]:
    made = Pipeline(bundle=ltx, device=open_device("cpu", ltx.manifest), machine=MachineSettings(threads=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a video and a mask of another size and shape than the bundles' videos, and what is none of these."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    (folder / "clip").mkdir()
    (folder / "mask").mkdir()
    names = ["cat.png", "end.png", *(f"clip/{index}.png" for index in range(12))]
    for name in names:
        Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(folder / name)
    for index in range(12):
        grey = np.repeat(255 * (np.arange(90)[None] > 5 * index), 50, axis=0).astype(np.uint8)
        Image.fromarray(grey).save(folder / "mask" / f"{index}.png")
    (folder / "text.png").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (folder / "truncated.png").write_bytes((folder / "cat.png").read_bytes()[:900])
    (folder / "bomb.png").write_bytes(bomb())
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    return folder


def bomb() -> bytes:
    """A PNG whose header promises more pixels than anybody decodes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def program(module: str, *arguments: object, folder: Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton") / "models"


@pytest.fixture(scope="module")
def server(ltx: Bundle, repository: Path) -> Iterator[TritonServer]:
    if importlib.util.find_spec("tritonclient") is None:
        unavailable("tritonclient is not installed.")
    try:
        environment = install()
    except Unavailable as error:
        unavailable(str(error))
    program(EXPORT, ltx.folder, "--name=ltx", *ONE_THREAD, "--out", repository, folder=repository.parent)
    with serve(environment, repository, repository.parent) as running:
        running.load("ltx")
        yield running


ONE_THREAD = ("--threads", 1)
"""Sums are rounded otherwise with another number, and a Triton server may have other cores than this process."""
SHORT = ("--prompt", "一只猫 walks", "--steps", 3, "--seed", 5)
ASKED: dict[str, tuple[object, ...]] = {
    "images": ("--image", "cat.png", "--image", "end.png@16:0.8", "--fit", "letterbox", "--guidance", 3.0),
    "clip": ("--image", "clip@0:0.9", "--size", "auto"),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_client_gets_what_fb_run_makes_of_the_same_files(
    server: TritonServer, ltx: Bundle, files: Path, tmp_path: Path, case: str
) -> None:
    same(server, "ltx", ltx, files, tmp_path, ASKED[case])


@pytest.mark.long
def test_a_control_and_a_mask_are_taken_too(
    server: TritonServer, repository: Path, build: Build, files: Path, tmp_path: Path
) -> None:
    vace = build("wan-vace")
    program(EXPORT, vace.folder, "--name=vace", *ONE_THREAD, "--out", repository, folder=tmp_path)
    server.load("vace")
    asked = ("--video", "clip", "--mask", "mask", "--control-scale", "0.8", "--guidance", 1)
    same(server, "vace", vace, files, tmp_path, asked)


def same(
    server: TritonServer, model: str, bundle: Bundle, files: Path, tmp_path: Path, asked: tuple[object, ...]
) -> None:
    """A client's latents and MP4 are fb-run's to the bit."""
    ours, theirs = ((*SHORT, *asked, "--out", tmp_path / name) for name in ("ours.mp4", "theirs.mp4"))
    also = ("--save-latents", tmp_path / "ours.npy", "--device", "cpu")
    program(RUN, bundle.folder, *ours, *also, *ONE_THREAD, folder=files)
    extra = ("--save-latents", tmp_path / "theirs.npy", "--url", server.url, "--model", model)
    program(CLIENT, *theirs, *extra, folder=files)
    np.testing.assert_array_equal(np.load(tmp_path / "theirs.npy"), np.load(tmp_path / "ours.npy"))
    assert (tmp_path / "theirs.mp4").read_bytes() == (tmp_path / "ours.mp4").read_bytes()


def test_a_prompt_file_names_images_beside_it(server: TritonServer, ltx: Bundle, files: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "x", "steps": 2, "image": ["cat.png", "end.png@8"]},
        {"prompt": "x", "steps": 2, "image": "none.png"},
        {"prompt": "y", "steps": 2},
    ]
    (files / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", CLIENT, "--url", server.url, "--model", "ltx", "--prompts", "prompts.jsonl"]
    for states in (["made", "failed", "made"], ["skipped", "failed", "skipped"]):
        result = subprocess.run(
            [*command, "--out", str(tmp_path), "--json"], capture_output=True, text=True, check=False, cwd=files
        )
        assert result.returncode == 1, result.stderr
        assert [line["state"] for line in json.loads(result.stdout)["lines"]] == states
    assert "line 2 failed: There is no image or video none.png" in result.stderr
    video = json.loads(result.stdout)["lines"][0]["video"]
    program(
        RUN, ltx.folder, "--prompt", "x", "--steps", 2, "--image", "cat.png", "--image", "end.png@8", *ONE_THREAD,
        "--out", tmp_path / "ours.mp4", folder=files,
    )  # fmt: skip
    assert (tmp_path / video).read_bytes() == (tmp_path / "ours.mp4").read_bytes()


def test_json_carries_images_too(server: TritonServer, files: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode((files / 'cat.png').read_bytes()).decode()}"
    body = {"prompt": "x", "steps": 2, "image": [url], "image_name": ["cat.png"], "image_at": ["8:0.5"]}
    result = json.loads(server.post("models/ltx/generate", body))
    assert json.loads(result["report"])["image"] == "cat.png@8:0.5"
    assert base64.b64decode(result["video"])[4:8] == b"ftyp"


@pytest.mark.long
def test_first_and_last_frames_of_wan_are_taken_too(build: Build, files: Path) -> None:
    bundle = build("wan-image")
    images = (str(files / "cat.png"), f"{files / 'end.png'}@8")
    made = Pipeline(bundle=bundle, device=open_device("cpu", bundle.manifest), machine=MachineSettings(threads=1))
    told: list[dict[str, Any]] = []
    inputs = {"prompt": np.array([b"x"], np.object_), **request_inputs({"steps": 2, "image": images}, ["latents"])}
    answer(made, inputs, lambda outputs, **_: told.append(dict(outputs)), lambda: False)
    expected = generate(made, Job(prompt="x", steps=2, image=images), None, Console(quiet=True)).latents
    np.testing.assert_array_equal(told[-1]["latents"], expected)
    with pytest.raises(UsageError, match="make a video from its first frame, and none was given"):
        answer(made, {"prompt": np.array([b"x"], np.object_)}, lambda *_, **__: None, lambda: False)
    made.close()


REFUSED: dict[str, dict[str, Any]] = {
    "no image": {"image": ("text.png",)},
    "truncated": {"image": ("truncated.png",)},
    "bomb": {"image": ("bomb.png",)},
    "one pixel": {"image": ("one.png",)},
    "beyond the end": {"image": ("cat.png@400",)},
    "between latents": {"image": ("cat.png@5",)},
    "too many": {"image": ("cat.png@8",) * 5},
    "no strength": {"image": ("cat.png@8:0.0",)},
    "a video": {"image": ("cat.png",), "video": "clip", "strength": 0.5},
    "a mask": {"mask": "mask"},
    "a scale": {"control_scale": "0.5"},
    "a bad size": {"image": ("text.png",), "size": "auto"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_fb_runs(pipeline: Pipeline, files: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(FlowBlendingError) as ours:
        VideoRun(pipeline, Job(prompt="x", steps=2, **REFUSED[case]))
    with pytest.raises(type(ours.value)) as theirs:
        inputs = {"prompt": np.array([b"x"], np.object_), **request_inputs({"steps": 2, **REFUSED[case]}, ["latents"])}
        answer(pipeline, inputs, lambda *_, **__: None, lambda: False)
    assert str(theirs.value) == str(ours.value)


def test_what_else_a_request_may_not_say(pipeline: Pipeline, files: Path) -> None:
    cat = (files / "cat.png").read_bytes()

    def asked(**inputs: list[bytes]) -> dict[str, Any]:
        return {name: np.array(values, np.object_) for name, values in inputs.items()}

    for inputs, said in (
        (asked(prompt=[b"x"], image_at=[b"8"]), "image_at has 1 values, but image has 0 files"),
        (asked(prompt=[b"x"], image=[cat, cat], image_name=[b"a"]), "image_name has 1 values, but image has 2 files"),
        (asked(prompt=[b"x"], image=[cat], image_at=[b"first"]), "An image was given for 'first'"),
        (asked(prompt=[b"x"], image=[cat], image_name=[b"\xff"]), "image_name is no UTF-8"),
    ):
        with pytest.raises(UsageError, match=said):
            answer(pipeline, inputs, lambda *_, **__: None, lambda: False)


def test_warnings_and_metadata_tell_the_clients_names(pipeline: Pipeline, files: Path) -> None:
    told: list[dict[str, Any]] = []
    image = np.array([(files / "cat.png").read_bytes()], np.object_)
    inputs = {"prompt": np.array([b"x"], np.object_), "steps": np.array([1], np.int32), "image": image}
    inputs |= {"image_name": np.array([b"/home/me/my cat.png"], np.object_), "result": np.array([b"mp4"], np.object_)}
    answer(pipeline, inputs, lambda outputs, **_: told.append(dict(outputs)), lambda: False)
    report = json.loads(told[-1]["report"][0])
    assert report["image"] == "my_cat.png"
    assert any(line.startswith("my_cat.png is 90x50, and the video ") for line in report["warnings"])
    import av

    with av.open(io.BytesIO(told[-1]["video"][0]), "r") as video:
        assert json.loads(video.metadata["comment"])["image"] == "my_cat.png"
