"""Files of requests: kept under names of the server's own, told by their clients', and bounded."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.options import Job
from flowblending.runtime.serve import uploads
from flowblending.runtime.serve.triton.client_cli import main
from flowblending.runtime.serve.triton.client_request import request_inputs
from flowblending.runtime.serve.uploads import Upload, content_of, keep, read_at, shown_name

PNG = b"\x89PNG\r\n\x1a\n..."


def packed(*names: str, content: bytes = PNG) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def test_files_lie_under_names_of_the_servers_own_and_are_told_by_their_clients(tmp_path: Path) -> None:
    given = {
        "image": [
            Upload(name="cat.png", content=b"1"),
            Upload(name="no suffix", content=b"2", at="@120:0.8"),
            *(Upload(name="cat.png", content=b"3") for _ in range(9)),
        ],
        "video": [Upload(name="street.mp4", content=b"4")],
        "mask": [Upload(name="masks.zip", content=packed("a/2.png", "a/10.png", "a/notes.txt", "__MACOSX/a/._2.png"))],
    }
    kept = keep(given, tmp_path)
    job = Job(prompt="x", **kept.fields)
    assert job.image[:2] == (str(tmp_path / "image-0.png"), f"{tmp_path / 'image-1'}@120:0.8")
    assert (Path(job.image[0]).read_bytes(), Path(job.image[10]).read_bytes()) == (b"1", b"3")
    assert (job.video, job.mask) == (str(tmp_path / "video-0.mp4"), str(tmp_path / "mask-0"))
    assert sorted(path.name for path in (tmp_path / "mask-0").iterdir()) == ["10.png", "2.png"]
    named = kept.named(job)
    assert named.image[:2] == ("cat.png", "no suffix@120:0.8")
    assert (named.video, named.mask, named.prompt) == ("street.mp4", "masks", "x")
    with pytest.raises(UsageError, match=r"^masks/2\.png is bad, and cat\.png$"), kept.told():
        raise UsageError(f"{job.mask}/2.png is bad, and {job.image[0]}")
    assert sorted(path.name for path in tmp_path.iterdir())[-2:] == ["mask-0", "video-0.mp4"]


def test_names_lead_nowhere(tmp_path: Path) -> None:
    names = {"../../etc/passwd": "passwd", "C:\\a b.png": "a_b.png", "end.png@3": "end.png_3", "..": "image"}
    assert {name: shown_name(name) for name in names} == names
    assert shown_name(None, "video") == "video"
    inside = [Upload(name="x.zip", content=packed("../../evil.png", "/evil2.png"))]
    keep({"video": inside}, tmp_path)
    assert sorted(path.name for path in (tmp_path / "video-0").iterdir()) == ["evil.png", "evil2.png"]


def test_places_are_those_of_the_command_line() -> None:
    texts = ("", "120", "120:0.8", ":0.8", " 8 ", "@8")
    assert [read_at(each) for each in texts] == ["", "@120", "@120:0.8", ":0.8", "@8", "@8"]
    for wrong in ("x", "1234567", "8:", "8:x", "-1", "8@9", "../x"):
        with pytest.raises(UsageError, match=r"An image was given for .*; give 120, or 120:0\.8\."):
            read_at(wrong)


def test_json_has_files_as_urls_of_their_data() -> None:
    assert content_of(b"data:image/png;base64," + base64.b64encode(PNG)) == PNG
    assert content_of(PNG) is PNG
    with pytest.raises(UsageError, match="Base64 that is none"):
        content_of(b"data:;base64,a")


def test_what_is_too_much_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    many = [Upload(name="a.png", content=b"")] * 17
    bomb = packed(*(f"{each}.png" for each in range(3)), content=bytes(400))
    assert len(bomb) < 1000
    cases: list[tuple[list[Upload], str]] = [
        ([Upload(name="a", content=bytes(600)), Upload(name="b", content=bytes(401))], "have 1001 bytes, but at most"),
        (many, "17 files were given, but at most 16"),
        ([Upload(name="a.zip", content=bomb)], "have 1200 bytes, but at most 1000"),
        ([Upload(name="a.zip", content=packed("notes.txt"))], r"a\.zip holds 0 images"),
        ([Upload(name="a.zip", content=packed("a/1.png", "b/1.png"))], "2 images, 1 of different names"),
        ([Upload(name="a.zip", content=packed("1.png")[:40])], r"a\.zip is a ZIP file that cannot be read"),
    ]
    for number, (given, said) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UsageError, match=said):
            keep({"image": given}, folder)
        assert not list(folder.iterdir())


def test_a_client_sends_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name in ("10.png", "2.png", "notes.txt"):
        (tmp_path / "frames" / name).write_bytes(PNG + name.encode())
    (tmp_path / "a cat.png").write_bytes(PNG)
    images = (f"{tmp_path / 'a cat.png'}@16:0.8", str(tmp_path / "a cat.png"))
    inputs = request_inputs({"image": images, "video": str(tmp_path / "frames"), "fit": "letterbox"}, ["mp4"])
    assert inputs["image"].tolist() == [PNG, PNG]
    assert inputs["image_name"].tolist() == [b"a_cat.png", b"a_cat.png"]
    assert inputs["image_at"].tolist() == [b"@16:0.8", b""]
    assert (inputs["video_name"].tolist(), inputs["fit"].tolist()) == ([b"frames"], [b"letterbox"])
    faces = request_inputs({"reference": (str(tmp_path / "a cat.png"),)}, ["mp4"])
    assert (faces["reference"].tolist(), faces["reference_name"].tolist()) == ([PNG], [b"a_cat.png"])
    assert "reference_at" not in faces
    kept = keep({"video": [Upload(name="frames", content=inputs["video"].item())]}, tmp_path)
    assert sorted(path.read_bytes() for path in Path(kept.fields["video"]).iterdir()) == [
        PNG + b"10.png",
        PNG + b"2.png",
    ]


def test_a_client_refuses_files_before_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 20)
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "empty").mkdir()
    (tmp_path / "large.png").write_bytes(bytes(21))
    cases = {
        "none.png": "There is no image or video ",
        "empty": "holds no images",
        "large.png": "have 21 bytes, but at most 20",
        "a.png:0.0": "was given, but PATH, PATH@FRAME",
    }
    for name, said in cases.items():
        with pytest.raises(FlowBlendingError, match=said):
            request_inputs({"image": (str(tmp_path / name),)}, ["mp4"])
    with pytest.raises(UsageError, match="have 22 bytes"):
        request_inputs({"image": (str(tmp_path / "a.png"),) * 2}, ["mp4"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Give either --prompt TEXT or --prompts FILE"),
        (("--prompt", "x", "--prompts", "in.txt"), "Give either --prompt TEXT or --prompts FILE"),
        (("--prompts", "in.txt", "--noise", "n.npy"), "--noise and --save-latents are for a single --prompt"),
        (("--prompts", "in.txt", "--out", "x.mp4"), "names one video, but --prompts makes a folder"),
        (("--prompts", "none.txt"), "Cannot read the prompt file none.txt"),
    ],
)
def test_prompt_files_of_a_client(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("x\n")
    with pytest.raises(SystemExit):
        main(["--url", "127.0.0.1:9", "--model", "wan", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_where_no_server_answers_no_further_line_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tritonclient")
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("x\ny\nz\n")
    with pytest.raises(SystemExit) as ended:
        main(["--url", "127.0.0.1:9", "--model", "wan", "--prompts", "in.txt", "--out", "videos", "--json"])
    assert ended.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["failed"], told["not_tried"]) == (1, 2)
    assert [path.name for path in Path("videos").iterdir()] == ["index.json"]
