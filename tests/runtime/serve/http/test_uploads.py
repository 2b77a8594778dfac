"""Images that are uploaded for videos to begin with, by OpenAI's own client."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from PIL import Image

from flowblending.contracts.conditions import Source
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.serve.http.errors import ApiError
from flowblending.runtime.serve.http.files import DataFolder
from flowblending.runtime.serve.http.service import Limits, Service
from flowblending.runtime.serve.uploads import Upload, shown_name
from tests.conftest import Build
from tests.support.video_server import VideoServer, serving, wait_until

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"steps": 2, "seed": 3}
LONG: dict[str, Any] = {"steps": 1000, "schedule": "LLL"}


@pytest.fixture(scope="module")
def ltx(build: Build) -> Bundle:
    return build("ltx-condition", conditions=(Source.IMAGE,))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "data"


@pytest.fixture(scope="module")
def images(ltx: Bundle, wan: Bundle, data: Path) -> Iterator[VideoServer]:
    with serving(ltx.folder, wan.folder, "--name", "ltx", "--name", "wan", data=data) as found:
        yield found


def picture(width: int = 90, height: int = 50, *, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises more pixels than anybody decodes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated() -> bytes:
    file = io.BytesIO()
    first, *others = [Image.new("L", (32, 32), grey) for grey in (0, 90, 200)]
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


def kept(data: Path) -> set[str]:
    return {path.stem for path in (data / "videos").glob("*.upload")}


@pytest.mark.parametrize("size", ["96x64", "auto"])
def test_a_video_is_fb_runs_with_the_image_byte_for_byte(
    images: VideoServer, ltx: Bundle, data: Path, tmp_path: Path, size: str
) -> None:
    client = images.client()
    (tmp_path / "cat.png").write_bytes(picture())
    video = client.videos.create_and_poll(
        prompt="x",
        input_reference=tmp_path / "cat.png",
        poll_interval_ms=20,
        extra_body={"model": "ltx", "size": size, **SHORT},
    )
    assert video.status == "completed", video.error
    told = video.model_extra or {}
    assert (told["input_reference"], video.size) == ("cat.png", "96x64")
    assert kept(data) == {video.id}
    command = [sys.executable, "-m", "flowblending.runtime.cli", str(ltx.folder), "--prompt", "x", "--image", "cat.png"]
    options = ["--steps", "2", "--seed", "3", "--size", size, "--threads", "1", "--out", "out.mp4"]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=tmp_path)
    content = client.videos.download_content(video.id).read()
    assert content == (tmp_path / "out.mp4").read_bytes()
    plain = client.videos.create_and_poll(
        prompt="x", poll_interval_ms=20, extra_body={"model": "ltx", "size": "96x64", **SHORT}
    )
    assert client.videos.download_content(plain.id).read() != content
    assert "input_reference" in (plain.model_extra or {})
    for each in (video, plain):
        client.videos.delete(each.id)
    wait_until(lambda: not list((data / "videos").iterdir()), "the deletion of all files")


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cat.png is no image that can be read"),
    "text": (b"#EXTM3U\nfile:///etc/passwd\n", "cat.png is no image that can be read"),
    "truncated": (picture()[:900], "cat.png is a damaged or truncated image"),
    "bomb": (bomb(), "cat.png"),
    "one pixel": (picture(1, 1), "cat.png is 1x1 pixels, but at least 8 a side"),
    "animated": (animated(), "cat.png holds 3 frames, but one image was expected"),
}


@pytest.mark.parametrize("size", ["96x64", "auto"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_told_in_one_sentence(images: VideoServer, data: Path, case: str, size: str) -> None:
    content, said = WRONG[case]
    client = images.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(
            prompt="x", input_reference=("cat.png", content), extra_body={"model": "ltx", "size": size}
        )
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["param"]) == ("invalid_request_error", "input_reference")
    assert body["message"].startswith(said)
    assert "\n" not in body["message"]
    assert str(data) not in body["message"]
    assert not client.videos.list().data
    assert not list((data / "videos").iterdir())


def test_only_uploads_are_taken_and_only_where_the_model_takes_them(images: VideoServer, data: Path) -> None:
    client = images.client()
    with pytest.raises(openai.BadRequestError, match=r"this bundle takes text alone .* --conditions image") as caught:
        client.videos.create(prompt="x", input_reference=("cat.png", picture()), extra_body={"model": "wan"})
    assert caught.value.param == "input_reference"
    for field in ("input_reference", "input_reference[image_url]", "input_reference[file_id]"):
        form = {"content-type": "application/x-www-form-urlencoded"}
        body = f"prompt=x&{field}=http://elsewhere.example/cat.png".encode()
        status, answer = images.ask("/v1/videos", method="POST", body=body, headers=form)
        assert (status, answer["error"]["param"]) == (400, "input_reference")
        assert "an image in the request was expected; upload its file" in answer["error"]["message"]
    for field, value in {
        "image": "/etc/passwd",
        "video": "/etc/passwd",
        "mask": "/etc/passwd",
        "input_reference": "/etc/passwd",
    }.items():
        for given in (value, [value], {"image_url": value}):
            status, answer = images.post({"prompt": "x", field: given})
            assert (status, answer["error"]["param"]) == (400, field)
            assert "upload" in answer["error"]["message"]
    with pytest.raises(openai.BadRequestError, match=r"(?i)easycache"):
        client.videos.create(prompt="x", input_reference=picture(), extra_body={"cache": "easycache:0.1"})
    with pytest.raises(openai.APIStatusError, match="or send a smaller image") as large:
        client.videos.create(prompt="x", input_reference=("cat.bmp", picture(2400, 2400, kind="BMP")))
    assert large.value.status_code == 413
    assert not list((data / "videos").iterdir())
    taken = {each.id: (each.model_extra or {})["input_reference"] for each in client.models.list()}
    assert taken == {"ltx": True, "wan": False}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../../etc/cron.d/cat.png", "cat.png"),
        ("..\\..\\cat.png", "cat.png"),
        ("/", "image"),
        ("cat.png@16:0.5", "cat.png_16_0.5"),
        ("a\r\nb\0.png", "a_b_.png"),
        ("x" * 5000 + ".png", "x" * 96 + ".png"),
        ("Katze ü.png", "Katze_ü.png"),
        (None, "image"),
    ],
)
def test_names_lead_nowhere(given: str | None, name: str) -> None:
    assert shown_name(given) == name


def test_a_name_that_leads_elsewhere_is_only_shown(images: VideoServer, data: Path) -> None:
    before = {path.name for path in data.parent.rglob("*")}
    client = images.client()
    reference = ("../../../../escaped/../cat.png", picture(kind="JPEG"), "image/jpeg")
    video = client.videos.create_and_poll(
        prompt="x", input_reference=reference, poll_interval_ms=20, extra_body={"steps": 1}
    )
    assert video.status == "completed", video.error
    assert (video.model_extra or {})["input_reference"] == "cat.png"
    new = {path.name for path in data.parent.rglob("*")} - before
    assert {name for name in new if video.id not in name} <= {"jobs.sqlite-wal", "jobs.sqlite-shm"}
    document = images.ask("/openapi.json")[1]
    jsonschema.validate(
        images.ask(f"/v1/videos/{video.id}")[1],
        {"$ref": "#/components/schemas/Video", "components": document["components"]},
    )
    client.videos.delete(video.id)


def test_an_image_that_cannot_be_kept_is_the_services_fault(tmp_path: Path) -> None:
    none: Any = None
    service = Service(
        models={},
        store=none,
        data=DataFolder(tmp_path / "gone"),
        live=none,
        dispatcher=none,
        keys=none,
        metrics=none,
        log=none,
        limits=Limits(waiting=1),
    )
    with pytest.raises(ApiError, match=r"cannot keep the image \(No such file or directory\)") as caught:
        service.ask({"prompt": "x", "input_reference": Upload(name="cat.png", content=picture())}, "")
    assert caught.value.status == 503


def test_an_image_outlives_kills_and_goes_with_its_video(ltx: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(ltx.folder, data=data) as server:
        client = server.client()
        ids = [client.videos.create(prompt="x", input_reference=picture(), extra_body=LONG).id]
        server.event("job_started")
        ids += [
            client.videos.create(prompt="x", input_reference=picture(), extra_body=each).id
            for each in (SHORT, {"steps": 3})
        ]
        os.kill(server.worker(), signal.SIGKILL)  # the first is tried again
        server.event("job_started", 2)
        assert kept(data) == set(ids)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        (data / "videos" / "video_none.upload").write_bytes(b"left by a kill")
    with serving(ltx.folder, "--keep-hours", 1 / 3600, data=data) as server:
        client = server.client()
        assert kept(data) == set(ids)
        server.event("job_started")
        client.videos.delete(ids[0])  # in the making
        client.videos.delete(ids[2])  # while it waits
        wait_until(lambda: server.events("job_completed") != [], "the second")
        assert server.event("job_completed")["job"] == ids[1]
        assert server.event("job_expired")["job"] == ids[1]
        wait_until(lambda: not list((data / "videos").iterdir()), "the deletion of all files")
