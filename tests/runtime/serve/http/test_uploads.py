"""Images that are uploaded for videos to begin with, by OpenAI's own client."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from PIL import Image

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
    return build("ltx-condition")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "data"


@pytest.fixture(scope="module")
def images(ltx: Bundle, wan: Bundle, data: Path) -> Iterator[VideoServer]:
    with serving(ltx.folder, wan.folder, "--name", "ltx", "--name", "wan", data=data) as found:
        yield found


def picture(width: int = 90, height: int = 50, *, kind: str = "PNG") -> bytes:
    return encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)), kind
    )


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
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


def form(images: VideoServer, files: list[tuple[str, tuple[str, bytes]]], **fields: object) -> dict[str, Any]:
    """A video that a form asks for, and its last state."""
    boundary, parts = "between", list[bytes]()
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    for name, (filename, content) in files:
        head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        parts.append(head.encode() + content)
    body = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts) + f"--{boundary}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    _, answer = images.ask("/v1/videos", method="POST", body=body, headers=headers)
    if answer.get("error"):
        return dict(answer["error"])
    wait_until(lambda: images.ask(f"/v1/videos/{answer['id']}")[1]["status"] in ("completed", "failed"), "its end")
    return dict(images.ask(f"/v1/videos/{answer['id']}")[1])


def zipped(count: int) -> bytes:
    """Frames as a client packs them, in a folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(count):
            archive.writestr(f"clip/{index}.png", picture(80, 60))
    return file.getvalue()


ASKED: dict[str, tuple[list[tuple[str, tuple[str, bytes]]], dict[str, object], list[str], dict[str, object]]] = {
    "images": (
        [("image", ("cat.png", picture())), ("image", ("end.png", picture(60, 60)))],
        {"image_at": ["", "16:0.8"], "fit": "letterbox"},
        ["--image", "cat.png", "--image", "end.png@16:0.8", "--fit", "letterbox"],
        {"image": ["cat.png", "end.png@16:0.8"]},
    ),
    "a reference and an image": (
        [("image", ("end.png", picture(60, 60))), ("input_reference", ("cat.png", picture()))],
        {"image_at": "8", "size": "auto"},
        ["--image", "cat.png", "--image", "end.png@8", "--size", "auto"],
        {"image": ["cat.png", "end.png@8"]},
    ),
    "a video": (
        [("video", ("clip.zip", zipped(17)))],
        {"strength": 0.5},
        ["--video", "clip", "--strength", "0.5"],
        {"video": "clip"},
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_several_files_are_fb_runs_too(images: VideoServer, ltx: Bundle, data: Path, tmp_path: Path, case: str) -> None:
    files, fields, options, told = ASKED[case]
    id = made_as_fb_run_makes_it(images, ltx, files, {"model": "ltx", **fields}, options, told, tmp_path)
    assert kept(data) == {id}
    images.client().videos.delete(id)
    wait_until(lambda: not list((data / "videos").iterdir()), "the deletion of all files")


@pytest.mark.long
def test_a_control_its_mask_and_references_are_fb_runs_too(build: Build, tmp_path: Path) -> None:
    vace = build("wan-vace")
    masks = io.BytesIO()
    with zipfile.ZipFile(masks, "w") as archive:
        for index in range(9):
            picture = Image.new("L", (80, 60), 0)
            picture.paste(255, (8 * index, 0, 80, 60))
            archive.writestr(f"mask/{index}.png", encoded(picture))
    files = [("video", ("clip.zip", zipped(9))), ("mask", ("mask.zip", masks.getvalue()))]
    options = ["--video", "clip", "--mask", "mask", "--control-scale", "0.8"]
    with serving(vace.folder, data=tmp_path / "data") as server:
        whole = made_as_fb_run_makes_it(server, vace, files[:1], {}, options[:2], {"video": "clip"}, tmp_path)
        told = {"video": "clip", "mask": "mask"}
        masked = made_as_fb_run_makes_it(server, vace, files, {"control_scale": 0.8}, options, told, tmp_path)
        videos = server.client().videos
        assert videos.download_content(whole).read() != videos.download_content(masked).read()


def made_as_fb_run_makes_it(
    server: VideoServer,
    bundle: Bundle,
    files: list[tuple[str, tuple[str, bytes]]],
    fields: Mapping[str, object],
    options: Sequence[str],
    told: Mapping[str, object],
    folder: Path,
) -> str:
    """A video that a form asks for, the same byte for byte as fb-run's with ``options``: its id."""
    video = form(server, files, prompt="x", **SHORT, **fields)
    assert video["status"] == "completed", video
    assert video["files"] == told
    for _, (name, content) in files:
        (folder / name).write_bytes(content)
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name) as archive:
                archive.extractall(folder)
    command = [sys.executable, "-m", "flowblending.runtime.cli", str(bundle.folder), "--prompt", "x", *options]
    rest = ["--steps", "2", "--seed", "3", "--threads", "1", "--out", "out.mp4"]
    subprocess.run([*command, *rest], check=True, capture_output=True, cwd=folder)
    assert server.client().videos.download_content(video["id"]).read() == (folder / "out.mp4").read_bytes()
    return str(video["id"])


def test_what_is_wrong_of_several_files(images: VideoServer, data: Path) -> None:
    cat = ("image", ("cat.png", picture()))
    cases: list[tuple[list[tuple[str, tuple[str, bytes]]], dict[str, object], str | None, str]] = [
        ([cat, cat], {"image_at": "8"}, "image_at", "image_at has 1 values, but there are 2 images"),
        ([cat], {"image_at": "soon"}, "image_at", "An image was given for 'soon'"),
        ([cat], {"image_at": "5"}, "image", "cat.png is given for frame 5, but latents of ltx begin at every 8th"),
        ([cat], {"image_at": "400"}, "image", "cat.png is given for frame 400, but the video has"),
        ([("video", ("a.mp4", b"#EXTM3U\nfile:///etc/passwd\n"))], {"strength": 0.5}, "video", "a.mp4 cannot be read"),
        ([("mask", ("a.png", picture()))], {}, "mask", "A mask was given, but this bundle takes image and video"),
        ([("video", ("a.zip", b"PK\x03\x04"))], {"strength": 0.5}, "video", "a.zip is a ZIP file that cannot be read"),
        ([("video", ("a.png", picture()))] * 2, {"strength": 0.5}, None, "The field 'video' is there twice"),
    ]
    for files, fields, param, said in cases:
        error = form(images, files, prompt="x", model="ltx", **fields)
        assert (error["param"], error["message"].startswith(said)) == (param, True), error
        assert str(data) not in error["message"]
    assert not list((data / "videos").iterdir())


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
        assert (
            "a file in the request was expected, and the service reads no other; upload it"
            in answer["error"]["message"]
        )
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
    with pytest.raises(openai.APIStatusError, match="or send smaller files") as large:
        client.videos.create(prompt="x", input_reference=("cat.bmp", b"BM" + bytes(2**26 + 2**20)))
    assert large.value.status_code == 413
    assert not list((data / "videos").iterdir())
    with pytest.raises(openai.BadRequestError, match="have 67108865 bytes, but at most 67108864 are taken"):
        client.videos.create(prompt="x", input_reference=("cat.bmp", b"BM" + bytes(2**26 - 1)))
    told = {each.id: each.model_extra or {} for each in client.models.list()}
    taken = {name: (each["input_reference"], each["takes"]) for name, each in told.items()}
    assert taken == {"ltx": (True, ["image", "video"]), "wan": (False, [])}
    assert not list((data / "videos").iterdir())


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
    before = {str(path) for path in data.parent.rglob("*")}
    client = images.client()
    reference = ("../../../../escaped/../cat.png", picture(kind="JPEG"), "image/jpeg")
    video = client.videos.create_and_poll(
        prompt="x", input_reference=reference, poll_interval_ms=20, extra_body={"steps": 1}
    )
    assert video.status == "completed", video.error
    assert (video.model_extra or {})["input_reference"] == "cat.png"
    new = {str(path) for path in data.parent.rglob("*")} - before
    others = {Path(name).name for name in new if video.id not in name}
    assert others <= {"jobs.sqlite-wal", "jobs.sqlite-shm"}
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
    with pytest.raises(ApiError, match=r"cannot keep the files \(No such file or directory\)") as caught:
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
        (data / "videos" / "video_none.upload").mkdir()
        (data / "videos" / "video_none.upload" / "image-0.png").write_bytes(b"left by a kill")
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
