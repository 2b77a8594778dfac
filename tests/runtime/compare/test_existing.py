"""fb-compare --videos: existing files are measured as plain numpy says, and what does not fit is one sentence."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.compare import cli
from flowblending.runtime.compare.existing import open_video
from flowblending.runtime.media.video import open_writer
from tests.support.scenes import film, one

Clip = npt.NDArray[np.float32]


def write(path: Path, clip: Clip, rate: float = 8, **about: str) -> Path:
    """A video as fb-run writes it; ``clip`` is [F, H, W, 3] in 0..1."""
    _, height, width, _ = clip.shape
    with open_writer(path, width=width, height=height, frame_rate=rate, metadata=about) as writer:
        writer.write(clip.transpose(3, 0, 1, 2) * 2 - 1)
    return path


def write_other(path: Path, clip: Clip, codec: str) -> Path:
    """A video of another program."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(8))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in np.rint(255 * clip).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> npt.NDArray[np.float64]:
    with av.open(str(path)) as container:
        frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.float64) for frame in container.decode(video=0)]
    return np.stack(frames) / 255


def compare(*arguments: object) -> int:
    return cli.run(cli.parser().parse_args([*map(str, arguments), "--quiet"]))


@pytest.fixture
def clip() -> Clip:
    return film(one(), (9, 48, 64))


def test_the_figures_are_numpys(tmp_path: Path, clip: Clip) -> None:
    noise = np.random.default_rng(0).standard_normal(clip.shape).astype(np.float32)
    a = write(tmp_path / "a.mp4", clip, prompt="a red circle", schedule="L20", seed="1")
    b = write(tmp_path / "b.mp4", np.clip(clip + 0.1 * noise, 0, 1), prompt="a red circle", schedule="S20")
    c = write_other(tmp_path / "c.avi", clip, "mpeg4")
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
    assert open_video(files["c.avi"]).playable
    assert np.abs(decoded(files["c.avi"]) - decoded(c)).mean() < 0.02
    assert any("c.avi was written anew in H.264" in note for note in content["notes"])
    # A second time, over the first; a video of another frame rate plays at the first one's.
    faster = write(tmp_path / "faster.mp4", clip, rate=24)
    assert compare("--videos", a, faster, "--out", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    placed = open_video(tmp_path / "out" / content["prompts"][0]["videos"]["faster.mp4"]["file"])
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
    other = write_other(tmp_path / "c.mp4", clip, "libx264")
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
