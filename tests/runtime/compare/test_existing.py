"""fb-compare --videos: existing files are measured as plain numpy says, and what does not fit is one sentence."""

from __future__ import annotations

import json
import shutil
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.compare import cli
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.media.read_video import pictures as frames_shown
from flowblending.runtime.media.read_video import read_video
from flowblending.runtime.media.video import open_writer
from tests.support.clips import MATRICES, TURNED, UNTURNED, decoded, pictures, set_matrix, write_clip
from tests.support.scenes import film, one

Clip = npt.NDArray[np.float32]


def write(path: Path, clip: Clip, rate: float = 8, **about: str) -> Path:
    """A video as fb-run writes it; ``clip`` is [F, H, W, 3] in 0..1."""
    _, height, width, _ = clip.shape
    with open_writer(path, width=width, height=height, frame_rate=rate, metadata=about) as writer:
        writer.write(to_uint8(clip.transpose(3, 0, 1, 2) * 2 - 1))
    return path


def compare(*arguments: object) -> int:
    return cli.run(cli.parser().parse_args([*map(str, arguments), "--quiet"]))


@pytest.fixture
def clip() -> Clip:
    return film(one(), (9, 48, 64))


def test_the_figures_are_numpys(tmp_path: Path, clip: Clip) -> None:
    noise = np.random.default_rng(0).standard_normal(clip.shape).astype(np.float32)
    a = write(tmp_path / "a.mp4", clip, prompt="a red circle", schedule="L20", seed="1")
    b = write(tmp_path / "b.mp4", np.clip(clip + 0.1 * noise, 0, 1), prompt="a red circle", schedule="S20")
    c = write_clip(tmp_path / "c.avi", pictures(clip), codec="mpeg4")
    assert compare("--videos", a, b, c, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(run["label"], run["stages"]) for run in content["runs"]] == [
        ("a.mp4", "L20"),
        ("b.mp4", "S20"),
        ("c.avi", ""),
    ]
    figures = {label: made["figures"] for label, made in content["prompts"][0]["videos"].items()}
    for path in (b, c):
        error = np.mean((decoded(path) - decoded(a)) ** 2)
        assert figures[path.name]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-6)
        roughness = np.mean(np.abs(np.diff(decoded(path), 2, axis=0)))
        assert figures[path.name]["smoothness"] == pytest.approx(roughness, abs=1e-9)
    assert figures["a.mp4"].keys() == {"smoothness"}
    assert figures["b.mp4"]["ssim"] < figures["c.avi"]["ssim"]
    # What browsers play is copied; the other is written anew, and said to be.
    files = {label: tmp_path / "out" / made["file"] for label, made in content["prompts"][0]["videos"].items()}
    assert files["b.mp4"].read_bytes() == b.read_bytes()
    placed = read_video(files["c.avi"])
    assert (placed.codec, placed.pixels, placed.container.split(",")[0]) == ("h264", "yuv420p", "mov")
    assert np.abs(decoded(files["c.avi"]) - decoded(c)).mean() < 0.02
    assert any("c.avi was written anew in H.264" in note for note in content["notes"])
    # A second time, over the first; a video of another frame rate plays at the first one's.
    faster = write(tmp_path / "faster.mp4", clip, rate=24)
    assert compare("--videos", a, faster, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    placed = read_video(tmp_path / "out" / content["prompts"][0]["videos"]["faster.mp4"]["file"])
    assert (placed.frame_rate, placed.count) == (8, len(clip))
    assert any("faster.mp4 was written anew in H.264 at 8 frames per second" in note for note in content["notes"])


def test_a_judge_knows_the_prompt_from_the_file(tmp_path: Path, clip: Clip) -> None:
    prompt = "a red circle that moves right on a gray background"
    a = write(tmp_path / "a.mp4", clip, prompt=prompt)
    b = write(tmp_path / "b.mp4", clip[:, :, ::-1], prompt=prompt)
    judge = ("--judge", "benchmarks.shapes.adherence:judge_clip")
    assert compare("--videos", a, b, *judge, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    key = "judge benchmarks.shapes.adherence:judge_clip/attributes right"
    shares = [content["prompts"][0]["videos"][name]["figures"][key] for name in ("a.mp4", "b.mp4")]
    # Mirrored, the circle moves left: one of five attributes is wrong.
    assert shares == pytest.approx([1, 0.8])
    other = write_clip(tmp_path / "c.mp4", pictures(clip))
    with pytest.raises(UsageError, match=r"c\.mp4 does not say what its prompt was"):
        compare("--videos", a, other, *judge, "--out", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_videos_that_do_not_fit(tmp_path: Path, clip: Clip) -> None:
    a = write(tmp_path / "a.mp4", clip)
    short = write(tmp_path / "short.mp4", clip[:5])
    small = write(tmp_path / "small.mp4", clip[:, :32])
    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    cases: list[tuple[list[Path], type[FlowBlendingError], str]] = [
        ([a], UsageError, "1 video was given, but a comparison needs at least 2"),
        ([a, a], UsageError, "One video was given twice"),
        ([a, small], UsageError, r"small.mp4 is 64x32, but .*a.mp4 is 64x48; give videos of one size"),
        ([a, short], UsageError, r"short.mp4 has 5 frames, but .*a.mp4 has 9; give videos of one length"),
        ([short, a], UsageError, r"a.mp4 has 9 frames, but .*short.mp4 has 5"),
        ([a, tmp_path / "none.mp4"], FlowBlendingError, r"There is no video .*none.mp4"),
        ([a, tmp_path / "text.mp4"], FlowBlendingError, r"text.mp4 cannot be read as a video"),
    ]
    for videos, kind, message in cases:
        with pytest.raises(kind, match=message):
            compare("--videos", *videos, "--out", out)
        assert not out.exists()


def test_a_video_that_breaks_off_is_a_sentence(tmp_path: Path, clip: Clip) -> None:
    a = write(tmp_path / "a.mp4", clip)
    content = bytearray(write(tmp_path / "b.mp4", np.repeat(clip, 4, axis=0)).read_bytes())
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(FlowBlendingError, match=r"cut.mp4"):
        compare("--videos", a, cut, "--out", tmp_path / "out")


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def figures_of(out: Path) -> dict[str, dict[str, Any]]:
    return {label: made["figures"] for label, made in report(out)["prompts"][0]["videos"].items()}


def copies_of(out: Path) -> dict[str, Path]:
    return {label: out / made["file"] for label, made in report(out)["prompts"][0]["videos"].items()}


@pytest.mark.parametrize("name", MATRICES)
def test_a_video_that_a_player_turns_is_measured_as_it_is_shown(tmp_path: Path, clip: Clip, name: str) -> None:
    frames = pictures(clip)
    a = write_clip(tmp_path / "a.mp4", frames)
    stored = TURNED[UNTURNED.get(name, name)](frames)
    b = write_clip(tmp_path / "b.mp4", np.ascontiguousarray(stored))
    set_matrix(b, *MATRICES[name])
    assert compare("--videos", a, b, "--out", tmp_path / "out") == 0
    error = np.mean((TURNED[name](decoded(b)) - decoded(a)) ** 2)
    psnr = figures_of(tmp_path / "out")["b.mp4"]["psnr"]
    assert psnr == (None if error == 0 else pytest.approx(-10 * np.log10(error), abs=1e-6))
    assert psnr is None or psnr > 30
    # The page's copy is shown upright too, by the same matrix or without one.
    copy = read_video(copies_of(tmp_path / "out")["b.mp4"])
    assert (copy.width, copy.height) == (64, 48)
    assert np.abs(np.stack(list(frames_shown(copy))) - frames.astype(float)).mean() < 6
    assert copy.orientation.mirrored is False
    notes = report(tmp_path / "out")["notes"]
    assert any("b.mp4 was" in note and "as its file says" in note for note in notes) == (name != "as it is")


def test_sizes_are_those_that_are_shown(tmp_path: Path, clip: Clip) -> None:
    frames = pictures(clip)
    a = write_clip(tmp_path / "a.mp4", frames)
    oblong = write_clip(tmp_path / "oblong.mp4", frames[:, :, ::2], aspect=Fraction(2))
    assert compare("--videos", a, oblong, "--out", tmp_path / "out") == 0
    assert figures_of(tmp_path / "out")["oblong.mp4"]["psnr"] > 20
    assert any(
        "oblong.mp4 has pixels of 2:1, and was stretched to 64×48" in x for x in report(tmp_path / "out")["notes"]
    )
    copy = read_video(copies_of(tmp_path / "out")["oblong.mp4"])
    assert (copy.width, copy.height, copy.aspect) == (64, 48, Fraction(1))
    wide = write_clip(tmp_path / "wide.mp4", frames, aspect=Fraction(4, 3))
    turned = write_clip(tmp_path / "turned.mp4", frames)
    set_matrix(turned, *MATRICES["270"])
    for path, message in (
        (wide, r"wide\.mp4 is 85x48 as it is shown, of pixels 4:3, but .*a\.mp4 is 64x48; give videos of one size"),
        (turned, r"turned\.mp4 is 48x64 as it is shown, turned by 270 degrees, but .*a\.mp4 is 64x48"),
    ):
        with pytest.raises(UsageError, match=message):
            compare("--videos", a, path, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_failing_video_costs_the_others_nothing(
    tmp_path: Path, clip: Clip, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.mp4", clip)
    b = write(tmp_path / "b.mp4", np.clip(clip + 0.1, 0, 1))
    short = write(tmp_path / "short.mp4", clip[:5])
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    noise = np.random.default_rng(0).random(clip.shape, np.float32)
    whole = write(tmp_path / "c.mp4", noise).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    missing = tmp_path / "missing.mp4"
    out = tmp_path / "out"
    assert compare("--videos", a, short, text, b, cut, missing, "--out", out) == 1
    assert figures_of(out).keys() == {"a.mp4", "b.mp4"}
    error = np.mean((decoded(b) - decoded(a)) ** 2)
    assert figures_of(out)["b.mp4"]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-6)
    told = " ".join(capsys.readouterr().err.split())
    page = (out / "index.html").read_text()
    for name in ("short.mp4", "text.mp4", "cut.mp4", "missing.mp4"):
        assert f"{name}" in told
        assert [note for note in report(out)["notes"] if note.startswith("A video is left out") and name in note]
        assert name in page
    assert "9 that it promises" in told or "cannot be decoded beyond frame" in told  # by FFmpeg's version
    with pytest.raises(FlowBlendingError, match=r"No video is left to compare with a\.mp4: .*short\.mp4.*text\.mp4"):
        compare("--videos", a, short, text, "--out", tmp_path / "none")
    with pytest.raises(FlowBlendingError, match=r"text\.mp4 cannot be read"):
        compare("--videos", text, a, b, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_fails_late_costs_the_others_nothing(tmp_path: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(_video: npt.NDArray[np.uint8], prompt: str) -> float:
        if prompt == "bad":
            raise RuntimeError("no such animal")
        return 0.5

    monkeypatch.setitem(sys.modules, "late_judge", types.SimpleNamespace(judge=judge))
    a, b, c = (
        write(tmp_path / f"{name}.mp4", np.clip(clip + shift, 0, 1), prompt=prompt)
        for name, shift, prompt in (("a", 0, "good"), ("b", 0.1, "bad"), ("c", 0.2, "good"))
    )
    out = tmp_path / "out"
    assert compare("--videos", a, b, c, "--judge", "late_judge:judge", "--out", out) == 1
    assert figures_of(out).keys() == {"a.mp4", "c.mp4"}
    assert any("b.mp4" in note and "no such animal" in note for note in report(out)["notes"])
    with pytest.raises(FlowBlendingError, match="no such animal"):
        compare("--videos", b, a, c, "--judge", "late_judge:judge", "--out", tmp_path / "out2")


@pytest.mark.parametrize("first", ["even", "uneven"])
def test_variable_frame_rates_are_compared_by_time(tmp_path: Path, first: str) -> None:
    frames = pictures(film(one(), (16, 48, 64)))
    kept = [0, 1, 2, 5, 6, 9, 10, 11, 15]
    even = write_clip(tmp_path / "even.mkv", frames, codec="ffv1", pixels="bgra", rate=10)
    uneven = write_clip(
        tmp_path / "uneven.mkv",
        frames[kept],
        codec="ffv1",
        pixels="bgra",
        rate=10,
        times=[100 * index for index in kept],
    )
    held = frames[[max(each for each in kept if each <= index) for index in range(16)]]
    out = tmp_path / "out"
    order = [even, uneven] if first == "even" else [uneven, even]
    assert compare("--videos", *order, "--out", out) == 0
    error = np.mean((held / 255 - frames / 255) ** 2)
    assert figures_of(out)[order[1].name]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-6)
    assert any("uneven.mkv was compared as it is shown 10 times per second" in x for x in report(out)["notes"])
    for path, shown in ((even, frames), (uneven, held)):
        copy = read_video(copies_of(out)[path.name])
        assert (copy.count, copy.frame_rate) == (16, 10)
        assert np.abs(np.stack(list(frames_shown(copy))) - shown.astype(float)).mean() < 4
    longer = write_clip(
        tmp_path / "longer.mkv", frames[kept], codec="ffv1", pixels="bgra", rate=10, times=[200 * x for x in kept]
    )
    with pytest.raises(UsageError, match=r"longer\.mkv takes 3\.\d+ s, but .*even\.mkv takes 1\.6\d* s.*by time"):
        compare("--videos", even, longer, "--out", out)


def test_a_clock_that_went_wrong_is_a_sentence(tmp_path: Path, clip: Clip) -> None:
    times = [0, 20, 40, 10**9]
    a = write_clip(tmp_path / "a.mkv", pictures(clip)[:4], codec="ffv1", pixels="bgra", times=times)
    b = write(tmp_path / "b.mp4", clip)
    with pytest.raises(UsageError, match=r"a\.mkv shows its 4 frames at uneven times over 10+\d\d s, .*"):
        compare("--videos", a, b, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match=r"a\.mkv takes 10+\d*\.\d+ s, but .*b\.mp4 takes 1\.125 s"):
        compare("--videos", b, a, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        ("mkv", "ffv1", "yuv444p"),
        ("mkv", "ffv1", "yuv420p10le"),
        ("mkv", "ffv1", "gray"),
        ("mkv", "ffv1", "bgra"),
        ("mp4", "libx264", "yuv444p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
@pytest.mark.parametrize("size", [(47, 63), (48, 63), (1, 1), (13, 6)])
def test_odd_sizes_and_formats_get_a_page(
    tmp_path: Path, clip: Clip, suffix: str, codec: str, pixels: str, size: tuple[int, int]
) -> None:
    frames = pictures(clip)[:, : size[0], : size[1]]
    a = write_clip(tmp_path / f"a.{suffix}", frames, codec=codec, pixels=pixels, options={})
    b = Path(shutil.copyfile(a, tmp_path / f"b.{suffix}"))
    out = tmp_path / "out"
    assert compare("--videos", a, b, "--out", out) == 0
    assert figures_of(out)[b.name]["psnr"] is None  # equal
    copy = read_video(copies_of(out)[b.name])
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    original = copies_of(out)[b.name].read_bytes() == b.read_bytes()
    assert (copy.height, copy.width) == (size if original else even)
    assert copy.pixels == "yuv420p"
    assert (copy.count, copy.codec in {"h264", "vp9"}) == (9, True)
    assert any("odd size" in note for note in report(out)["notes"])


def test_sound_longer_than_the_video_is_left_out_of_the_copy(tmp_path: Path, clip: Clip) -> None:
    a = write_clip(tmp_path / "a.mp4", pictures(clip))
    b = write_clip(tmp_path / "b.mp4", pictures(clip), sound=4)
    out = tmp_path / "out"
    assert compare("--videos", a, b, "--out", out) == 0
    copies = copies_of(out)
    assert copies["a.mp4"].read_bytes() == a.read_bytes()
    assert read_video(b).length > 3
    assert read_video(copies["b.mp4"]).length == pytest.approx(9 / 8, abs=0.02)


def test_a_copy_never_replaces_what_is_compared(tmp_path: Path, clip: Clip) -> None:
    out = tmp_path / "out"
    a = write(tmp_path / "a.mp4", clip)
    b = write(tmp_path / "b.mp4", clip)
    assert compare("--videos", a, b, "--out", out) == 0
    mine = out / "videos" / "1-a.mp4"
    with pytest.raises(UsageError, match="would replace a video that is compared; give another --out"):
        compare("--videos", a, mine, "--out", out)
    assert mine.read_bytes() == a.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give a bundle and --prompts FILE, or --videos"),
        (("bundle",), "Give a bundle and --prompts FILE, or --videos"),
        (("bundle", "--videos", "a", "b"), "Give either a bundle or --videos"),
        (("--videos", "a", "b", "--steps", "5"), "--steps is for runs of a bundle"),
        (("--videos", "a", "b", "--fps", "5"), "--fps is for runs of a bundle"),
        (("--videos", "a", "b", "--vbench", "x"), "--vbench is for runs of a bundle"),
    ],
)
def test_options_that_contradict_one_another(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(*arguments)
