"""Video files: read back with PyAV, numpy and Pillow, and what is left on disk when writing fails."""

import errno
import json
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.media import video
from flowblending.runtime.media.video import VideoWriter, check_output, open_writer

METADATA: dict[str, str | int | float] = {
    "prompt": '一只猫 🐱 & a "dog"',
    "seed": 2**40,
    "schedule": "L2 S1 L1",
    "bundle": "0123456789abcdef",
}
WIDTH, HEIGHT, COUNT = 48, 32, 9
Images = npt.NDArray[np.uint8]


def clip() -> Images:
    """Smooth moving colours: uint8 [F, H, W, 3]."""
    f, y, x, c = np.meshgrid(np.arange(COUNT), np.arange(HEIGHT), np.arange(WIDTH), np.arange(3), indexing="ij")
    return np.rint(127.5 + 127.5 * np.sin(x / 40 + f / 9 + c) * np.cos(y / 30 + c)).astype(np.uint8)


def write(path: Path | str, frames: Images, frame_rate: float = 16.0) -> None:
    """One frame first, then four at a time, as a decoder gives them."""
    with opened(path, frame_rate) as writer:
        writer.write(frames[:1])
        for start in range(1, COUNT, 4):
            writer.write(frames[start : start + 4])


def opened(path: Path | str, frame_rate: float = 16.0) -> VideoWriter:
    return open_writer(path, width=WIDTH, height=HEIGHT, frame_rate=frame_rate, metadata=METADATA)


def test_conversion_equals_diffusers() -> None:
    # Every rounding case: a fine ramp over [-1.2, 1.2].
    frames = np.linspace(-1.2, 1.2, 3 * 5 * 64 * 64, dtype=np.float32).reshape(3, 5, 64, 64)
    images = VideoProcessor().postprocess_video(torch.from_numpy(frames)[None], output_type="pil")[0]
    np.testing.assert_array_equal(to_uint8(frames), np.stack([np.asarray(image) for image in images]))


@pytest.mark.parametrize("frame_rate", [16.0, 25.0, 23.976])
def test_mp4(tmp_path: Path, frame_rate: float) -> None:
    path = tmp_path / "made" / "on the way" / "video.mp4"
    frames = clip()
    write(path, frames, frame_rate)
    assert [each.name for each in path.parent.iterdir()] == ["video.mp4"]
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        assert container.metadata["title"] == METADATA["prompt"]
        assert json.loads(container.metadata["comment"]) == METADATA
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (WIDTH, HEIGHT, COUNT)
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(frame_rate, rel=1e-5)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    # Chroma is halved and compression lossy: within a few levels of 255 on average, and no colour shifted.
    difference = decoded.astype(int) - frames
    assert np.abs(difference).mean() < 3
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 2


def test_an_mp4_is_the_same_file_with_any_number_of_cores(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        pytest.skip("This machine has one core.")
    frames = np.random.default_rng(0).integers(0, 256, (1, 320, 480, 3)).astype(np.uint8)
    contents = set()
    for some in (cores, {min(cores)}):
        os.sched_setaffinity(0, some)
        try:
            with open_writer(tmp_path / "a.mp4", width=480, height=320, frame_rate=16.0, metadata=METADATA) as writer:
                for step in range(12):
                    writer.write(np.roll(frames, 3 * step, axis=2))
        finally:
            os.sched_setaffinity(0, cores)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 64), (208, 120)])
def test_an_mp4_is_the_same_file_each_time(tmp_path: Path, width: int, height: int) -> None:
    """Of pictures that take all that x264 can do, with other things in memory each time."""
    random = np.random.default_rng(0)
    first = random.integers(0, 256, (height, width, 3))
    frames = [np.clip(np.roll(first, 2 * step, 1) + random.normal(0, 8, first.shape), 0, 255) for step in range(17)]
    clip = np.array(frames).astype(np.uint8)
    contents = set()
    for _ in range(12):
        rubbish = [random.bytes(int(random.integers(1000, 300_000))) for _ in range(8)]
        del rubbish[::2]
        with open_writer(tmp_path / "a.mp4", width=width, height=height, frame_rate=16.0, metadata=METADATA) as writer:
            writer.write(clip)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1


def test_npy(tmp_path: Path) -> None:
    frames = clip()
    write(tmp_path / "video.npy", frames)
    np.testing.assert_array_equal(np.load(tmp_path / "video.npy"), frames)


@pytest.mark.parametrize("name", ["frames", "frames.v2/"])
def test_pngs(tmp_path: Path, name: str) -> None:
    frames = clip()
    write(f"{tmp_path}/{name}", frames)
    images = sorted((tmp_path / name).iterdir())
    assert [each.name for each in images] == [f"frame_{index:04d}.png" for index in range(1, COUNT + 1)]
    for path, expected in zip(images, frames, strict=True):
        image = Image.open(path)
        image.verify()
        assert json.loads(image.info["Comment"]) == METADATA
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


@pytest.mark.parametrize("name", ["video.mp4", "video.npy", "frames/"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, FlowBlendingError])
def test_nothing_is_left_after_a_failure(tmp_path: Path, name: str, failure: type[BaseException]) -> None:
    with pytest.raises(failure), opened(f"{tmp_path}/{name}") as writer:
        writer.write(clip())
        raise failure
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_where_giving_up_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VideoWriter, "_abort", Mock(side_effect=RuntimeError("no more threads")))
    with pytest.raises(RuntimeError, match="no more threads"), opened(tmp_path / "video.npy"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_failure_keeps_the_older_video(tmp_path: Path) -> None:
    path = tmp_path / "video.npy"
    write(path, clip())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="frames are uint8 of shape"), opened(path) as writer:
        writer.write(clip())
        writer.write(np.zeros((1, HEIGHT, WIDTH + 1, 3), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    write(path, 255 - clip())
    np.testing.assert_array_equal(np.load(path), 255 - clip())


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let writing beyond ``size`` bytes fail, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["video.mp4", "video.npy", "frames/"])
def test_full_disk(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8)
    with files_limited_to(3000), pytest.raises(FlowBlendingError, match=r"Cannot write .*File too large"):
        write(f"{tmp_path}/{name}", noise)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["video.mp4", "video.npy", "frames/"])
@pytest.mark.parametrize("late", [False, True])
def test_what_fails_in_the_thread_that_writes_is_the_callers_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, late: bool
) -> None:
    """A disk that breaks at the first frame, told while frames are still put; or at the last, when the video ends."""
    before = threading.active_count()
    taken: list[threading.Thread] = []
    failed = threading.Event()

    def put(*_: object) -> None:
        taken.append(threading.current_thread())
        if not late or len(taken) == COUNT:
            failed.set()
            raise OSError(errno.EPIPE, "Broken pipe")

    for sink in (video._Mp4, video._Npy, video._Pngs):
        monkeypatch.setattr(sink, "put", put)
    clips = 0
    with pytest.raises(FlowBlendingError, match=r"Cannot write .*Broken pipe"), opened(f"{tmp_path}/{name}") as writer:
        writer.write(clip())
        clips += 1
        assert late or failed.wait(10)
        if not late:
            writer.write(clip())
            clips += 1
    assert clips == 1
    assert len(taken) == (COUNT if late else 1)
    assert taken[0] is not threading.current_thread()
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


def test_wrong_targets(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "frame_0001.png").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    cases = {
        "video.avi": "suffix .avi is unknown",
        "frames": "exists already",
        "file": "is a file, but the name of a new folder was expected",
        "folder.mp4": "is a folder",
        "file/video.mp4": "file is no folder",
        "video.mp4.": "ends in a dot",
        "video.mp4 ": "ends in a dot or a blank",
        ".MP4": "is a suffix alone",
        "x" * 252 + ".mp4": "File name too long",
    }
    for name, message in cases.items():
        with pytest.raises(FlowBlendingError, match=message):
            check_output(tmp_path / name, width=WIDTH, height=HEIGHT)
    with pytest.raises(UsageError, match="needs even sizes"):
        check_output(tmp_path / "video.mp4", width=33, height=HEIGHT)
    check_output(tmp_path / "video.npy", width=33, height=HEIGHT)
    with pytest.raises(FlowBlendingError, match="is a process's open file"):
        opened("/proc/none/video.mp4")


@pytest.mark.parametrize(
    "stem", ["x" * 251, "中" * 83, "file:a", "http:a", "#a?b%03d&", "li\nne", "a'\"b\\", "-", "a:b"]
)
def test_any_name_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str) -> None:
    """None is a protocol, a pattern of numbers or an option of FFmpeg's; from the folder that the program runs in."""
    monkeypatch.chdir(tmp_path)
    for suffix in (".mp4", ".MP4", ".npy", ".Npy"):
        check_output(f"{stem}{suffix}", width=WIDTH, height=HEIGHT)
        write(f"{stem}{suffix}", clip())
        assert [path.name for path in Path().iterdir()] == [f"{stem}{suffix}"]
        if suffix.lower() == ".npy":
            assert np.load(f"{stem}{suffix}").shape == (COUNT, HEIGHT, WIDTH, 3)
        else:
            with av.open(str(tmp_path / f"{stem}{suffix}")) as container:
                assert sum(1 for _ in container.decode(video=0)) == COUNT
        Path(f"{stem}{suffix}").unlink()


def test_mp4_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FlowBlendingError, match=r"run pip install '\.\[video\]' in a checkout"):
        opened(tmp_path / "video.mp4")
    write(tmp_path / "video.npy", clip())
    write(tmp_path / "frames", clip())
    assert len(list(tmp_path.iterdir())) == 2


def test_mp4_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyAV of a distribution that leaves GPL parts out.
    monkeypatch.setattr(video, "_X264", "libx264-that-is-not-there")
    with pytest.raises(FlowBlendingError, match=r"has no x264 encoder"):
        opened(tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


def test_misuse_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"), opened(tmp_path / "video.npy"):
        pass
    for wrong in (np.zeros((1, HEIGHT, WIDTH + 1, 3), np.uint8), np.zeros((1, HEIGHT, WIDTH, 3), np.float32)):
        with pytest.raises(ValueError, match="is due"), opened(tmp_path / "video.npy") as writer:
            writer.write(wrong)  # type: ignore[arg-type] # what is tested
    assert not list(tmp_path.iterdir())
