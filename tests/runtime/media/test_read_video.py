"""Videos read as a player shows them: turned, in square pixels, counted, on black, whatever their names are."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.media.read_video import VideoFile, pictures, read_video
from tests.support.clips import MATRICES, TURNED, Pictures, decoded, set_matrix, write_clip
from tests.support.clips import pictures as as_bytes
from tests.support.scenes import film, one


@pytest.fixture(scope="module")
def clip() -> Pictures:
    frames = as_bytes(film(one(), (6, 48, 64)))
    frames[:, :12, :20] = (250, 240, 20)  # no symmetry of the frame keeps it
    return frames


def shown(path: Path) -> tuple[VideoFile, Pictures]:
    video = read_video(path)
    frames = np.stack(list(pictures(video)))
    assert frames.shape == (video.count, video.height, video.width, 3)
    return video, frames


def distance(a: Pictures, b: npt.NDArray[Any]) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_display_matrix_turns_what_was_drawn(tmp_path: Path, clip: Pictures, name: str, suffix: str) -> None:
    path = write_clip(tmp_path / f"turned.{suffix}", clip)
    set_matrix(path, *MATRICES[name])
    _, frames = shown(path)
    assert distance(frames, TURNED[name](clip)) < 4


def test_a_matrix_of_another_angle_is_a_sentence(tmp_path: Path, clip: Pictures) -> None:
    path = write_clip(tmp_path / "a.mp4", clip)
    set_matrix(path, 0.8, 0.6, -0.6, 0.8)
    with pytest.raises(FlowBlendingError, match=r"a\.mp4 cannot be read .*another angle.*; turn it upright\."):
        read_video(path)


@pytest.mark.parametrize(
    ("aspect", "suffix", "size"),
    [
        (Fraction(4, 3), "mp4", (48, 85)),
        (Fraction(2), "mkv", (48, 128)),
        (Fraction(1, 2), "mp4", (96, 64)),
        (Fraction(1), "mp4", (48, 64)),
    ],
)
def test_pixels_are_square(
    tmp_path: Path, clip: Pictures, aspect: Fraction, suffix: str, size: tuple[int, int]
) -> None:
    video, frames = shown(write_clip(tmp_path / f"a.{suffix}", clip, aspect=aspect))
    assert (video.aspect, frames.shape[1:3]) == (aspect, size)
    # The corner's patch is 12 of 48 rows high and 20 of 64 columns wide.
    yellow = frames[0, ..., 2].astype(int) < frames[0, ..., 0].astype(int) - 128
    assert yellow[: size[0] // 4 - 1, : size[1] * 20 // 64 - 2].all()
    assert not yellow[: size[0] // 4 - 1, size[1] * 20 // 64 + 2 : size[1] // 3 + 2].any()


def test_a_turned_video_of_oblong_pixels(tmp_path: Path, clip: Pictures) -> None:
    path = write_clip(tmp_path / "a.mp4", clip, aspect=Fraction(2))
    set_matrix(path, *MATRICES["90"])
    video, frames = shown(path)
    assert (video.width, video.height) == (48, 128)
    wide = np.repeat(clip, 2, axis=2)
    assert distance(frames, TURNED["90"](wide)) < 4


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "near"),
    [
        ("mkv", "ffv1", "yuv444p", 1),
        ("mkv", "ffv1", "yuv444p10le", 1),
        ("mkv", "ffv1", "yuv422p", 2),
        ("mkv", "ffv1", "yuva420p", 3),
        ("mkv", "ffv1", "gbrp12le", 0.5),
        ("mkv", "ffv1", "bgra", 0.5),
        ("avi", "rawvideo", "bgr24", 0.5),
        ("mkv", "libx265", "yuv444p10le", 5),
        ("avi", "mjpeg", "yuvj420p", 5),
        ("mov", "prores_ks", "yuv422p10le", 5),
        ("webm", "libvpx", "yuv420p", 5),
        ("gif", "gif", "rgb8", 25),
        ("apng", "apng", "rgba", 0.5),
    ],
)
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_every_pixel_format_shows_what_was_drawn(
    tmp_path: Path, clip: Pictures, suffix: str, codec: str, pixels: str, near: float, size: tuple[int, int]
) -> None:
    drawn = clip[:, : size[0], : size[1]]
    _, frames = shown(write_clip(tmp_path / f"a.{suffix}", drawn, codec=codec, pixels=pixels))
    assert frames.shape == drawn.shape
    assert distance(frames, drawn) < near


@pytest.mark.parametrize(("transfer", "high"), [(1, False), (2, False), (16, True), (18, True)])
def test_high_dynamic_range_is_known(tmp_path: Path, clip: Pictures, transfer: int, high: bool) -> None:
    options = {"x265-params": f"log-level=none:transfer={transfer}:colorprim=9:colormatrix=9"}
    path = write_clip(tmp_path / "a.mp4", clip, codec="libx265", pixels="yuv420p10le", options=options)
    assert read_video(path).high_range is high


def test_grey_videos_are_grey(tmp_path: Path, clip: Pictures) -> None:
    _, frames = shown(write_clip(tmp_path / "a.mkv", clip, codec="ffv1", pixels="gray"))
    luma = clip @ np.array([0.299, 0.587, 0.114])
    assert np.ptp(frames, axis=3).max() == 0
    assert np.abs(frames[..., 0] - luma).mean() < 1.5


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        ("webm", "libvpx-vp9", "yuva420p"),
        ("apng", "apng", "rgba"),
        ("mkv", "ffv1", "bgra"),
    ],
)
def test_transparent_videos_lie_on_black(tmp_path: Path, clip: Pictures, suffix: str, codec: str, pixels: str) -> None:
    opacity = np.full((*clip.shape[:3], 1), 255, np.uint8)
    opacity[:, 24:] = 0
    path = write_clip(tmp_path / f"a.{suffix}", np.concatenate([clip, opacity], axis=3), codec=codec, pixels=pixels)
    video, frames = shown(path)
    assert video.transparent
    assert distance(frames, np.where(opacity > 0, clip, 0)) < 5
    assert frames[:, 26:].max() <= 2


def test_large_videos_that_name_no_colours_are_bt709(tmp_path: Path) -> None:
    red = np.zeros((1, 720, 64, 3), np.uint8)
    red[..., 0] = 200
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv444p"
        frame = av.VideoFrame.from_ndarray(red[0], format="rgb24").reformat(format="yuv444p", dst_colorspace="ITU709")
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert distance(shown(path)[1], red) < 2


@pytest.mark.parametrize("lost", [1, 3, 7])
def test_frames_that_an_edit_list_leaves_out_are_not_there(tmp_path: Path, clip: Pictures, lost: int) -> None:
    long = np.tile(clip, (2, 1, 1, 1))
    path = write_clip(tmp_path / "a.mp4", long)
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12  # version, flags and number of entries come first
    duration, start, rate = struct.unpack_from(">IiI", content, place)
    ticks = 16384 // 8  # a frame, by the clock that movenc gives 8 frames per second
    struct.pack_into(">IiI", content, place, duration * (12 - lost) // 12, start + lost * ticks, rate)
    path.write_bytes(content)
    video, frames = shown(path)
    assert (video.count, video.promised) == (12 - lost, 12)
    assert distance(frames, long[lost:]) < 4


def test_frames_are_counted_and_not_believed(tmp_path: Path, clip: Pictures) -> None:
    long = np.tile(clip, (6, 1, 1, 1))
    mp4 = write_clip(tmp_path / "a.mp4", long, options={"crf": "8", "bf": "0"})
    assert (read_video(mp4).count, read_video(mp4).promised) == (36, 36)
    matroska = read_video(write_clip(tmp_path / "a.mkv", long))
    assert (matroska.count, matroska.promised, matroska.frame_rate) == (36, 0, 8)
    # An index that stands first promises what the cut-off end of the file held.
    whole = tmp_path / "whole.mp4"
    with av.open(str(mp4)) as source, av.open(str(whole), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    video, frames = shown(cut)
    assert video.promised == 36
    assert 10 < video.count < 30
    assert distance(frames[:-1], long[: video.count - 1]) < 4


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a b.mp4",
            "#.mp4",
            "what?.mp4",
            "100%.mp4",
            "%03d.mp4",
            "%2e.mp4",
            "*.mp4",
            "[x].mp4",
            "file:x.mp4",
            "a\nb.mp4",
        ),
        *("'\".mp4", "<i>.mp4", "\\.mp4", "-.mp4", "видео 影片.mp4", "no suffix", "a.", "a.PNG", "x" * 251 + ".mp4"),
        *(os.fsdecode(b"\xff\xfe.mp4"), "concat:a|b.mp4", "http:x.mp4", "a.%03d"),
    ],
)
def test_any_name_is_read(tmp_path: Path, clip: Pictures, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "plain.mp4", clip).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for each in (path, Path(name)):
        assert distance(shown(each)[1], clip) < 4


@pytest.mark.parametrize("name", ["%d.png", "a%03d.png", "*.png", "a.png"])
def test_images_are_videos_of_one_frame(tmp_path: Path, clip: Pictures, name: str) -> None:
    plain = write_clip(tmp_path / "plain.png", clip[:1], codec="png", pixels="rgb24", file_format="image2")
    video, frames = shown(plain.rename(tmp_path / name))
    assert video.count == 1
    np.testing.assert_array_equal(frames, clip[:1])


def test_what_is_no_video_is_one_sentence(tmp_path: Path, clip: Pictures) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile {tmp_path}/whole.mp4\n")
    whole = write_clip(tmp_path / "whole.mp4", clip)
    (tmp_path / "no index.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "unknown.avi").write_bytes(
        write_clip(tmp_path / "known.avi", clip, codec="mpeg4").read_bytes().replace(b"FMP4", b"X?X?")
    )
    os.mkfifo(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    cases = {
        "none.mp4": "There is no video .*; give the name of a file that is there",
        "folder.mp4": "is a folder, but the file of one video was expected",
        "pipe.mp4": "is no plain file, but the file of one video was expected",
        "x" * 300: "There is no video ",
        "text.mp4": "cannot be read as a video",
        "empty.mp4": "cannot be read as a video",
        "list.m3u8": "cannot be read as a video|holds no video",
        "list.txt": "cannot be read as a video|holds no video",
        "no index.mp4": "cannot be read as a video",
        "sound.wav": "holds no video",
        "unknown.avi": "is in a codec that the installed PyAV cannot decode; give it in another one",
    }
    for name, message in cases.items():
        with pytest.raises(FlowBlendingError, match=message) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_video_beside_sound_is_the_video(tmp_path: Path, clip: Pictures) -> None:
    video, frames = shown(write_clip(tmp_path / "a.mp4", clip, sound=2))
    assert distance(frames, clip) < 4
    assert video.times.length == pytest.approx(6 / 8)
    assert video.length == pytest.approx(2, abs=0.2)


def test_metadata_of_others_is_read_whatever_it_is(tmp_path: Path, clip: Pictures) -> None:
    path = tmp_path / "a.mp4"
    for comment, about in (
        ('{"prompt": "a\\ud800 cat", "seed": 1}', {"prompt": "a\\ud800 cat", "seed": "1"}),
        ('["a"]', {}),
        ("made with love", {}),
    ):
        with av.open(str(path), "w") as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("libx264", rate=8)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = clip.shape[1:3]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(clip[0], format="rgb24")))
            container.mux(stream.encode(None))
        assert read_video(path).about == about
    path.write_bytes(path.read_bytes().replace(b"made with love", b"fait \xe0 la main"))
    assert read_video(path).about == {}


def test_a_video_that_changes_its_size_is_a_sentence(tmp_path: Path, clip: Pictures) -> None:
    first = write_clip(tmp_path / "a.h264", clip, options={"crf": "8"})
    second = write_clip(tmp_path / "b.h264", clip[:, :32], options={"crf": "8"})
    both = tmp_path / "both.h264"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(
        FlowBlendingError, match="changes its size at frame 7, from 64x48 to 64x32; give a video of one"
    ):
        read_video(both)


def test_files_without_times_are_even(tmp_path: Path, clip: Pictures) -> None:
    video, frames = shown(write_clip(tmp_path / "a.h264", clip))
    assert (video.count, video.times.constant) == (6, True)
    assert distance(frames, decoded(video.path) * 255) < 1
