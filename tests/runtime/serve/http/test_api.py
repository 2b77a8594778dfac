"""The API as OpenAI's own client and plain requests see it."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import openai
import pytest
from PIL import Image

from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.options import served_options
from tests.support.documents import blocks
from tests.support.video_server import VideoServer, sent_events, wait_until

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"steps": 4, "seed": 7, "guidance": 3.5, "batched_guidance": False, "cache": "taylor:1"}
LONG: dict[str, Any] = {"steps": 1000, "schedule": "LLL"}
"""Seconds of sampling."""
SECRET = "a cat that nobody should read about"


def test_a_video_is_fb_runs_byte_for_byte(server: VideoServer, wan: Bundle, tmp_path: Path) -> None:
    client = server.client()
    # The client sends a form, in which every value is a text.
    video = client.videos.create_and_poll(
        prompt=SECRET, poll_interval_ms=20, extra_body={"model": "wan", "size": "32x48", "seconds": "1", **SHORT}
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.model, video.size, video.seconds, video.prompt) == ("wan", "32x48", "0.5625", SECRET)
    assert video.completed_at is not None
    assert video.expires_at == video.completed_at + 24 * 3600
    told = video.model_extra
    assert told is not None
    assert told["options"] == {**SHORT, "size": "32x48", "frames": 9}
    assert {"text_encoder", "large", "small", "vae", "video", "total"} <= told["timings"].keys()

    out = tmp_path / "fb-run.mp4"
    flags = ["--steps", "4", "--seed", "7", "--guidance", "3.5", "--no-batched-guidance", "--cache", "taylor:1"]
    command = [sys.executable, "-m", "flowblending.runtime.cli", str(wan.folder), "--prompt", SECRET, *flags]
    subprocess.run([*command, "--threads", "1", "--out", str(out)], check=True, capture_output=True)
    content = client.videos.download_content(video.id).read()
    assert content == out.read_bytes()
    # The same prompt again: its embedding is remembered, and the video is the same.
    again = client.videos.create_and_poll(prompt=SECRET, poll_interval_ms=20, extra_body=SHORT)
    assert client.videos.download_content(again.id).read() == content
    assert 'flowblending_texts_total{how="remembered",model="wan"}' in server.ask("/metrics")[1].decode()

    picture = client.videos.download_content(video.id, variant="thumbnail").read()
    assert picture.startswith(b"\x89PNG") and picture[16:24] == (32).to_bytes(4) + (48).to_bytes(4)
    status, part = server.ask(f"/v1/videos/{video.id}/content", headers={"Range": "bytes=5-24"})
    assert (status, part) == (206, content[5:25])
    assert server.ask(f"/v1/videos/{video.id}/content", headers={"Range": f"bytes={10**9}-"})[0] == 416
    with pytest.raises(openai.BadRequestError, match="variant is 'spritesheet'"):
        client.videos.download_content(video.id, variant="spritesheet")

    for each in (video, again):
        assert client.videos.delete(each.id).model_dump() == {
            "id": each.id,
            "deleted": True,
            "object": "video.deleted",
        }
        with pytest.raises(openai.NotFoundError, match="There is no video"):
            client.videos.retrieve(each.id)
    assert SECRET not in "".join(server.text)


def test_lists_are_read_page_by_page(server: VideoServer) -> None:
    client = server.client()
    ids = []
    for seed in range(3):
        options = {"steps": 1, "seed": seed}
        ids.append(client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body=options).id)
    assert [each.id for each in client.videos.list(limit=2, order="asc")] == ids
    assert [each.id for each in client.videos.list(limit=2)] == ids[::-1]
    assert [each.id for each in client.videos.list(after=ids[1]).data] == ids[:1]
    with pytest.raises(openai.BadRequestError, match="limit is '0', but greater than or equal to 1 was expected"):
        client.videos.list(limit=0)
    for id in ids:
        client.videos.delete(id)
    assert not client.videos.list().data


def test_small_pictures_are_told_to_whoever_asks(server: VideoServer) -> None:
    client = server.client()
    assert server.ask("/v1/models/wan")[1]["preview"] is True
    id = client.videos.create(prompt="x", extra_body={"steps": 300}).id
    plain = sent_events(server, id)
    assert next(plain)[0] == "progress"
    shown = [video for name, video in sent_events(server, id, "?preview=true") if name == "progress"]
    pictures = [(video["preview_step"], video["preview"]) for video in shown if "preview" in video]
    steps = [step for step, _ in pictures]
    assert len(steps) > 10
    assert steps == sorted(set(steps))
    for _, url in (pictures[0], pictures[-1]):
        kind, _, data = url.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (4, 6)  # a pixel for 8x8 of 32x48
    # Who does not ask is not told, and nothing stays behind.
    assert not any("preview" in video for _, video in plain)
    assert "preview" not in server.ask(f"/v1/videos/{id}")[1]
    client.videos.delete(id)


def test_every_step_is_told_as_it_happens(server: VideoServer) -> None:
    client = server.client()
    id = client.videos.create(prompt="x", extra_body={"steps": 200}).id
    told = list(sent_events(server, id))
    assert [name for name, _ in told[:-1]] == ["progress"] * (len(told) - 1)
    last = told[-1]
    assert (last[0], last[1]["status"], last[1]["progress"]) == ("completed", "completed", 100)
    sampling = [video for _, video in told if video["stage"] == "sampling" and video["step"]]
    assert len(sampling) > 10
    steps = [video["step"] for video in sampling]
    assert steps == sorted(set(steps))
    percents = [video["progress"] for _, video in told]
    assert percents == sorted(percents)
    plan = sampling[0]["plan"]
    assert len(plan) == 200
    assert {video["transformer"] for video in sampling} == {"large", "small"}
    assert all(video["transformer"] == plan[video["step"] - 1] for video in sampling)
    assert all(video["seconds_left"] >= 0 for video in sampling)
    client.videos.delete(id)


def test_waiting_for_the_file_itself(server: VideoServer) -> None:
    status, content = server.post({"prompt": "x", "steps": 2}, "/v1/videos/sync")
    assert status == 200
    assert content[4:8] == b"ftyp"
    (video,) = server.client().videos.list().data
    server.client().videos.delete(video.id)


def test_a_client_that_goes_gives_its_video_up(server: VideoServer) -> None:
    before = len(server.events("job_cancelled"))
    body = json.dumps({"prompt": "x", **LONG}).encode()
    host, port = server.address.removeprefix("http://").split(":")
    started = len(server.events("job_started"))
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/videos/sync HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.event("job_started", started + 1)
    server.event("job_cancelled", before + 1)
    assert not server.client().videos.list().data


def test_deleting_stops_what_is_made_and_what_waits(server: VideoServer) -> None:
    client = server.client()
    started, cancelled = len(server.events("job_started")), len(server.events("job_cancelled"))
    running, waiting = (client.videos.create(prompt="x", extra_body=LONG) for _ in range(2))
    server.event("job_started", started + 1)
    wait_until(lambda: client.videos.retrieve(running.id).status == "in_progress", "the start")
    seen = client.videos.retrieve(waiting.id)
    assert seen.status == "queued"
    assert (seen.model_extra or {})["queue_position"] == 0
    with pytest.raises(openai.BadRequestError, match="is in_progress; wait"):
        client.videos.download_content(running.id)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # several at once: one of them deletes
        answers = list(pool.map(lambda _: server.ask(f"/v1/videos/{running.id}", method="DELETE")[0], range(8)))
    assert sorted(answers) == [200] + [404] * 7
    client.videos.delete(waiting.id)
    server.event("job_cancelled", cancelled + 1)
    assert not client.videos.list().data
    # The worker is the same one, and goes on.
    assert client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 1}).status == "completed"
    assert len(server.events("worker_ready")) == 1
    client.videos.delete(client.videos.list().data[0].id)


def test_a_full_queue_says_when_to_come_again(server: VideoServer) -> None:
    client = server.client()
    started = len(server.events("job_started"))
    first = client.videos.create(prompt="x", extra_body=LONG)
    server.event("job_started", started + 1)
    for priority in (1, 9, 5):
        client.videos.create(prompt=f"{priority}", extra_body={"steps": 1, "priority": priority})
    with pytest.raises(openai.RateLimitError, match="3 videos wait already") as caught:
        client.videos.create(prompt="x")
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "10"
    late = client.videos.list().data[0]
    client.videos.delete(late.id)
    hurried = client.videos.create(prompt="x", extra_body={"start_within": 0.1})
    wait_until(lambda: client.videos.retrieve(hurried.id).status == "failed", "the deadline")
    error = client.videos.retrieve(hurried.id).error
    assert error is not None
    assert error.code == "deadline_exceeded"
    client.videos.delete(first.id)
    server.event("job_started", started + 3)
    wait_until(lambda: all(each.completed_at or each.error for each in client.videos.list()), "the end")
    done = sorted((each for each in client.videos.list() if not each.error), key=lambda each: each.completed_at or 0)
    order = [event["job"] for event in server.events("job_started")[started:]]
    assert [client.videos.retrieve(id).prompt for id in order[1:]] == ["9", "1"]
    for each in [*done, hurried]:
        client.videos.delete(each.id)


WRONG = {
    "no prompt": ({}, "The request has no prompt"),
    "empty prompt": ({"prompt": " "}, "The prompt is empty"),
    "long prompt": ({"prompt": "x" * 40000}, "prompt is longer than 32768 characters"),
    "prompt": ({"prompt": ["a", "b"]}, "prompt is ['a', 'b'], but a text was expected"),
    "surrogates": ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
    "steps": ({"prompt": "x", "steps": 0}, "steps is 0, but a whole number of steps, at least 1, was expected"),
    "steps too many": ({"prompt": "x", "steps": 5000}, "5000 steps were asked for, but the models tell 1000"),
    "seed": ({"prompt": "x", "seed": -1}, "seed is -1"),
    "guidance": ({"prompt": "x", "guidance": "much"}, "guidance is 'much', but a finite number was expected"),
    "schedule": ({"prompt": "x", "schedule": "QQQ"}, "The schedule QQQ has the letter Q"),
    "solver": ({"prompt": "x", "solver": "heun"}, "heun"),
    "cache": ({"prompt": "x", "cache": "nothing:1"}, "nothing"),
    "size": ({"prompt": "x", "size": "7x7"}, "7x7"),
    "frames": ({"prompt": "x", "frames": 10}, "10"),
    "seconds": ({"prompt": "x", "seconds": "12"}, "12 seconds were asked for, but this model makes videos of 0.5625"),
    "both": ({"prompt": "x", "seconds": 1, "frames": 9}, "seconds and frames were both given"),
    "priority": ({"prompt": "x", "priority": 10}, "priority is 10, but a whole number from 0 to 9 was expected"),
    "deadline": ({"prompt": "x", "start_within": -1}, "start_within is -1"),
    "another's name": ({"prompt": "x", "num_inference_steps": 3}, "'num_inference_steps'; steps"),
    "an image": (
        {"prompt": "x", "input_reference": {"image_url": "data:,"}},
        "but a file in the request was expected",
    ),
    "a file's name": (
        {"prompt": "x", "image": "/etc/passwd"},
        "image is '/etc/passwd', but a file in the request was expected",
    ),
    "no object": ([1], "The body is [1], but a JSON object was expected"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_told_in_one_sentence(server: VideoServer, case: str) -> None:
    fields, said = WRONG[case]
    status, answer = server.post(fields)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert said in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert not server.client().videos.list().data


def test_openais_client_raises_its_own_errors(server: VideoServer) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="The model 'sora-2' is not served here; there is wan") as caught:
        client.videos.create(model="sora-2", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="this bundle takes text alone") as wrong:
        client.videos.create(prompt="x", input_reference=("cat.png", b"\x89PNG", "image/png"))
    assert wrong.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError, match="steps is 'few', but a whole number"):
        client.videos.create(prompt="x", extra_body={"steps": "few"})
    assert [each.id for each in client.models.list()] == ["wan"]
    assert client.models.retrieve("wan").owned_by == "flowblending"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b'{"prompt": ', "application/json", 400, "The body is no JSON object"),
        (b'{"prompt": "x", "prompt": "y"}', "application/json", 400, "a field is there twice"),
        (b"[" * 100000, "application/json", 400, "The body is no JSON object"),
        (b"\xff\xfe{", "application/json", 400, "The body is no JSON object"),
        (b'{"prompt": "x", "guidance": NaN}', "application/json", 400, "guidance is nan"),
        (b"x" * (2**24 + 1), "application/json", 413, "The body is larger than 16777216 bytes"),
        (b"x" * 2**25, "application/json", 413, "The body is larger than 16777216 bytes"),
        (b"<a/>", "text/xml", 415, "'text/xml', but application/json or multipart/form-data"),
        (b"nonsense", "multipart/form-data", 400, "The form cannot be read"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "The"),
        (b"prompt=x&prompt=y", "application/x-www-form-urlencoded", 400, "'prompt' is there twice"),
    ],
)
def test_broken_bodies(server: VideoServer, body: bytes, kind: str, status: int, said: str) -> None:
    got, answer = server.ask("/v1/videos", method="POST", body=body, headers={"content-type": kind})
    assert (got, answer["error"]["type"]) == (status, "invalid_request_error")
    assert said in answer["error"]["message"]


def test_a_body_that_tells_no_length_is_limited_as_well(server: VideoServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60)
    parts = iter([b"x" * 2**16] * 400)
    connection.request("POST", "/v1/videos", parts, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 413
    assert "The body is larger than 16777216 bytes" in json.load(response)["error"]["message"]
    connection.close()


@pytest.mark.parametrize("id", ["..%2f..%2fjobs.sqlite", f"video_{0:032}", "video_%00", "x" * 2000, "%E2%80%AE"])
def test_ids_that_are_none(server: VideoServer, id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("DELETE", "")):
        status, answer = server.ask(f"/v1/videos/{id}{path}", method=method)
        assert (status, answer["error"]["type"]) == (404, "invalid_request_error")


def test_other_pages_and_other_hosts_are_kept_out(server: VideoServer) -> None:
    fields = {"prompt": "x", "steps": 1}
    assert server.post(fields, headers={"origin": "https://elsewhere.example"})[1]["error"]["code"] == "wrong_origin"
    assert server.post(fields, headers={"origin": "null"})[0] == 403
    assert server.post(fields, headers={"host": "elsewhere.example"})[1]["error"]["code"] == "wrong_host"
    assert server.ask("/v1/models", headers={"origin": server.address})[0] == 200


def test_floods_of_headers_and_silence_end_without_harm(server: VideoServer) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as flood, socket.create_connection((host, int(port))):
        flood.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: %b\r\n" % (n, b"y" * 1000) for n in range(200)))
        assert flood.recv(100).startswith(b"HTTP/1.1 4")
    assert server.ask("/health")[0] == 200


def test_operators_see_how_it_goes(server: VideoServer) -> None:
    assert server.ask("/health") == (200, {"status": "ready"})
    assert server.ask("/health/ready")[0] == 200
    assert server.ask("/health/live") == (200, {"status": "live"})
    client = server.client()
    made = client.videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 8, "cache": "taylor:1"})
    response = client.videos.with_raw_response.retrieve(made.id, extra_headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    wait_until(lambda: any(each["request"] == "mine-1" for each in server.events("request")), "the line")
    text = server.ask("/metrics")[1].decode()
    figures = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert figures['flowblending_jobs{status="completed"}'] == 1
    assert figures['flowblending_jobs{status="queued"}'] == 0
    assert figures['flowblending_engine_calls_saved_total{model="wan",transformer="large"}'] > 0
    assert figures['flowblending_stage_seconds_total{model="wan",stage="vae"}'] > 0
    assert figures['flowblending_worker_resident_bytes{worker="worker 1"}'] > 1e7
    assert "mine-1" not in text
    client.videos.delete(made.id)


def test_the_openapi_document_is_true(server: VideoServer) -> None:
    document = server.ask("/openapi.json")[1]
    create = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    schema = create["application/json"]["schema"]
    properties = dict(create["multipart/form-data"]["schema"]["properties"])
    assert {properties.pop(name)["format"] for name in ("input_reference", "video", "mask")} == {"binary"}
    assert {name: properties.pop(name)["items"].get("format") for name in ("image", "image_at", "reference")} == {
        "image": "binary",
        "image_at": None,
        "reference": "binary",
    }
    assert schema["properties"] == properties
    assert {each.name for each in served_options()} <= schema["properties"].keys()
    for fields, _ in WRONG.values():
        for name in fields if isinstance(fields, dict) else ():
            assert name in schema["properties"] or name in ("num_inference_steps", "input_reference", "image")
    examples = {name: about["examples"][0] for name, about in schema["properties"].items()}
    jsonschema.validate(examples, schema)

    def check(name: str, value: object) -> None:
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})

    status, video = server.post({"prompt": "x", "steps": 1})
    assert status == 200
    check("Video", video)
    check("VideoList", server.ask("/v1/videos")[1])
    check("ModelList", server.ask("/v1/models")[1])
    check("Error", server.ask("/v1/videos/none")[1])
    wait_until(lambda: server.ask(f"/v1/videos/{video['id']}")[1]["status"] == "completed", "the end")
    check("Video", server.ask(f"/v1/videos/{video['id']}")[1])
    check("Deleted", server.ask(f"/v1/videos/{video['id']}", method="DELETE")[1])
    assert server.ask("/docs")[0] == 404  # would load scripts from elsewhere


def test_the_page_of_the_documents_runs(server: VideoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [block for block in blocks("python") if "openai" in block.text]
    assert found
    for block in found:
        assert "http://127.0.0.1:8000/" in block.text
        exec(compile(block.text.replace("http://127.0.0.1:8000", server.address), str(block), "exec"), {})
        assert (tmp_path / "cat.mp4").read_bytes()[4:8] == b"ftyp"
        server.client().videos.delete(server.client().videos.list().data[0].id)
