"""Images and videos as people have them: whatever their format, they are read as what was drawn, or refused."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from diffusers.utils import load_image, load_video
from PIL import Image, ImageOps

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.media.frame_times import FrameTimes
from flowblending.runtime.media.image_file import opened_image, upright
from flowblending.runtime.media.read_clip import read_clip, read_still, shown_size
from tests.support.clips import MATRICES, TURNED, Pictures, set_matrix, write_clip
from tests.support.clips import pictures as as_bytes
from tests.support.scenes import film, one

SIZE = (64, 48)


@pytest.fixture(scope="module")
def clip() -> Pictures:
    frames = as_bytes(film(one(), (6, 48, 64)))
    frames[:, :12, :20] = (250, 240, 20)  # no symmetry of the frame keeps it
    frames[:, 0, 0, 0] = 10 * np.arange(6)  # no two frames are alike: encoders leave out those that are
    return frames


def distance(a: Pictures, b: Pictures) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def as_read(path: Path) -> Pictures:
    with opened_image(path) as image:
        assert image is not None
        return upright(path.name, image)[0]


@pytest.mark.parametrize(
    ("suffix", "mode", "near"),
    [
        ("png", "RGB", 0),
        ("png", "RGBA", 0),
        ("png", "L", 0),
        ("png", "LA", 0),
        ("png", "1", 0),
        ("png", "P", 0),
        ("jpg", "RGB", 3),
        ("jpg", "L", 2),
        ("jpg", "CMYK", 2),
        ("webp", "RGB", 3),
        ("webp", "RGBA", 3),
        ("gif", "P", 0),
        ("tif", "RGB", 0),
        ("tif", "CMYK", 0),
        ("bmp", "RGB", 0),
        ("avif", "RGB", 4),
        ("heic", "RGB", 4),
    ],
)
def test_every_format_is_what_diffusers_loads(
    tmp_path: Path, clip: Pictures, suffix: str, mode: str, near: float
) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    drawn = Image.fromarray(clip[0]).convert(mode)
    path = tmp_path / f"a.{suffix}"
    drawn.save(path, quality=95)
    read = read_still(path, SIZE)
    assert read.frames.shape == (1, 48, 64, 3)
    assert (read.width, read.height, read.still, read.notes) == (64, 48, True, ())
    assert np.array_equal(read.frames[0], np.asarray(load_image(str(path))))
    assert distance(read.frames[0], np.asarray(drawn.convert("RGB"))) <= near
    # By its content, whatever it is called.
    other = path.rename(tmp_path / "a.mp4")
    assert np.array_equal(read_still(other, SIZE).frames, read.frames)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_turns_it(tmp_path: Path, clip: Pictures, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(clip[0]).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(as_read(path), expected)
    assert shown_size(path) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("value", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_exif_that_cannot_be_read_is_upright(tmp_path: Path, clip: Pictures, value: bytes) -> None:
    Image.fromarray(clip[0]).save(tmp_path / "a.jpg", exif=value)
    assert as_read(tmp_path / "a.jpg").shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_not_clipped(tmp_path: Path, suffix: str) -> None:
    """As Pillow's own conversion, which is diffusers', does."""
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(ramp).save(path)
    assert np.array_equal(as_read(path), np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert np.asarray(load_image(str(path))).mean() > 250


def png_of_16_bits(path: Path, colours: np.ndarray) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = colours.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_colours_of_16_bits(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    png_of_16_bits(tmp_path / "a.png", colours)
    assert np.array_equal(as_read(tmp_path / "a.png"), (colours >> 8).astype(np.uint8))


def test_what_is_transparent_is_black(tmp_path: Path, clip: Pictures) -> None:
    """And not what was left under it, which may be anything."""
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[24:] = 0
    Image.fromarray(np.concatenate([clip[0], alpha], axis=2)).save(tmp_path / "a.png")
    read = read_still(tmp_path / "a.png", SIZE)
    assert np.array_equal(read.frames[0, :24], clip[0, :24])
    assert not read.frames[0, 24:].any()
    (note,) = read.notes
    assert note == f"{tmp_path}/a.png has transparent parts, which are taken as black."


def test_a_mask_is_its_brightness(tmp_path: Path, clip: Pictures) -> None:
    Image.fromarray(clip[0]).save(tmp_path / "a.png")
    read = read_still(tmp_path / "a.png", SIZE, grey=True)
    assert np.array_equal(read.frames[0], np.asarray(Image.fromarray(clip[0]).convert("L")))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
def test_an_animated_image_is_a_video_and_no_image(tmp_path: Path, clip: Pictures, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    images = [Image.fromarray(each) for each in clip]
    images[0].save(path, save_all=True, append_images=images[1:], duration=120, quality=95)
    read = read_clip(path, SIZE)
    assert (read.count, read.still, read.more) == (6, False, False)
    assert read.frame_rate == pytest.approx(1 / 0.12)
    assert distance(read.frames, clip) < (12 if suffix == "gif" else 5)
    if suffix == "gif":
        assert np.array_equal(read.frames, np.stack([each.convert("RGB") for each in load_video(str(path))]))
    with pytest.raises(UsageError, match=rf"a\.{suffix} holds 6 frames, but one image was expected; give one of them"):
        read_still(path, SIZE)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "near"),
    [
        ("mp4", "libx264", "yuv420p", 5),
        ("mov", "prores_ks", "yuv422p10le", 5),
        ("webm", "libvpx-vp9", "yuv420p", 5),
        ("mkv", "ffv1", "bgra", 0.5),
    ],
)
def test_a_video_is_its_frames(
    tmp_path: Path, clip: Pictures, suffix: str, codec: str, pixels: str, near: float
) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", clip, codec=codec, pixels=pixels)
    read = read_clip(path, SIZE)
    assert (read.count, read.frame_rate, read.more) == (6, 8, False)
    assert distance(read.frames, clip) < near
    assert shown_size(path) == SIZE
    first = read_clip(path, SIZE, most=4)
    assert (first.count, first.more) == (4, True)
    assert np.array_equal(first.frames, read.frames[:4])
    with pytest.raises(UsageError, match="is no image that can be read, but one was expected; give a PNG, JPEG"):
        read_still(path, SIZE)


@pytest.mark.parametrize("name", MATRICES)
def test_a_video_of_a_phone_is_upright(tmp_path: Path, clip: Pictures, name: str) -> None:
    path = write_clip(tmp_path / "a.mov", clip)
    set_matrix(path, *MATRICES[name])
    expected = TURNED[name](clip)
    read = read_clip(path, (expected.shape[2], expected.shape[1]))
    assert (read.width, read.height) == shown_size(path) == (expected.shape[2], expected.shape[1])
    assert distance(read.frames, expected) < 5


def test_transparent_video_is_on_black(tmp_path: Path, clip: Pictures) -> None:
    half = np.concatenate([clip, np.full((6, 48, 64, 1), 255, np.uint8)], axis=3)
    path = write_clip(tmp_path / "opaque.mkv", half, codec="ffv1", pixels="bgra")
    assert read_clip(path, SIZE).notes == ()
    half[:, 24:, :, 3] = 0
    read = read_clip(write_clip(tmp_path / "a.mkv", half, codec="ffv1", pixels="bgra"), SIZE)
    assert not read.frames[:, 25:].any()
    assert "transparent" in read.notes[0]


def test_high_dynamic_range_is_told(tmp_path: Path, clip: Pictures) -> None:
    options = {"x265-params": "log-level=none:transfer=18:colorprim=9:colormatrix=9"}
    path = write_clip(tmp_path / "a.mp4", clip, codec="libx265", pixels="yuv420p10le", options=options)
    assert "high dynamic range" in read_clip(path, SIZE).notes[0]


def test_a_folder_is_its_images_in_the_order_of_their_numbers(tmp_path: Path, clip: Pictures) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, each in enumerate(clip):
        Image.fromarray(each).save(folder / f"frame_{9 + index}.png")
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    read = read_clip(folder, SIZE)
    assert np.array_equal(read.frames, clip)
    assert (read.frame_rate, read.still, shown_size(folder)) == (None, False, SIZE)
    first = read_clip(folder, SIZE, most=2)
    assert (first.count, first.more) == (2, True)
    with pytest.raises(UsageError, match=r"frames has no frame rate, .* leave --resample-fps out"):
        read_clip(folder, SIZE, resample=8)
    with pytest.raises(UsageError, match="frames is a folder, but the file of one image was expected"):
        read_still(folder, SIZE)
    Image.fromarray(clip[0, :40]).save(folder / "frame_15.png")
    with pytest.raises(UsageError, match=r"of several sizes, frame_9\.png 64x48 and frame_15\.png 64x40; give frames"):
        read_clip(folder, SIZE)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif"])
@pytest.mark.parametrize("rate", [4, 8, 16, 24, 7.5])
def test_resampling_takes_what_a_player_shows(tmp_path: Path, clip: Pictures, suffix: str, rate: float) -> None:
    """Whole milliseconds and hundredths of seconds in the file change nothing of it."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "gif":
        images = [Image.fromarray(each) for each in clip]
        images[0].save(path, save_all=True, append_images=images[1:], duration=[120, 130] * 3)
    else:
        write_clip(path, clip)
    read, whole = read_clip(path, SIZE, resample=rate), read_clip(path, SIZE)
    ticks = [index / rate for index in range(int(np.ceil(len(clip) / 8 * rate - 1e-6)))]
    shown = FrameTimes(starts=[index / 8 for index in range(6)], length=6 / 8).shown([each + 1e-9 for each in ticks])
    assert read.frame_rate == rate
    assert read.count == len(shown)
    assert np.array_equal(read.frames, whole.frames[shown])


def test_resampling_thirds(tmp_path: Path, clip: Pictures) -> None:
    """A container that counts milliseconds rounds times of 30 frames per second; every other frame is taken still."""
    path = write_clip(tmp_path / "a.mkv", clip, rate=30)
    assert np.array_equal(read_clip(path, SIZE, resample=15).frames, read_clip(path, SIZE).frames[::2])
    same = read_clip(write_clip(tmp_path / "b.mp4", clip, rate=Fraction(30000, 1001)), SIZE, resample=30000 / 1001)
    assert same.count == 6


def damaged_files(folder: Path) -> dict[str, str]:
    """By name, what is said of it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "avif"):
        image.save(folder / f"whole.{suffix}")
        content = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(content[: len(content) // 2])
        (folder / f"whole.{suffix}").unlink()
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "print.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("F", (64, 48)).save(folder / "depth.tif")
    image.save(folder / "pages.tif", save_all=True, append_images=[image])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return {
        **{f"truncated.{each}": "is a damaged or truncated image" for each in ("png", "jpg", "webp", "tif", "bmp")},
        "truncated.avif": "is a damaged or truncated image|is no image that can be read",
        "text.png": "is no image that can be read, but one was expected; give a PNG",
        "empty.jpg": "is no image that can be read",
        "page.svg": "is no image that can be read",
        "print.eps": "is no image that can be read",
        "dot.png": "is 1x1 pixels, but at least 8 a side were expected; give it larger",
        "depth.tif": "holds numbers of 32 bits",
        "pages.tif": "holds 2 pages, but one picture was expected",
        "folder.png": "is a folder, but the file of one image was expected",
        "pipe.png": "is no plain file",
        "none.png": "There is no image .*; give the name of a file that is there",
        "x" * 300: "There is no image ",
    }


def test_what_is_no_image_is_a_sentence(tmp_path: Path) -> None:
    for name, message in damaged_files(tmp_path).items():
        with pytest.raises(UsageError, match=message) as caught:
            read_still(tmp_path / name, SIZE)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_video_is_a_sentence(tmp_path: Path, clip: Pictures) -> None:
    whole = write_clip(tmp_path / "whole.mp4", clip)
    (tmp_path / "truncated.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no images").mkdir()
    (tmp_path / "no images" / "a.txt").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    tiny = write_clip(tmp_path / "tiny.mkv", clip[:, :2, :2], codec="ffv1", pixels="bgra")
    cases = {
        "truncated.mp4": "cannot be read as a video",
        "text.mp4": "cannot be read as a video",
        "none.mp4": "There is no image or video .*; give the name of a file that is there",
        "empty": r"folder .*empty holds no images \(\.png, \.jpg",
        "no images": "holds no images",
        "broken": r"broken/a\.png is no image that can be read",
        tiny.name: "is 2x2 pixels, but at least 8",
    }
    for name, message in cases.items():
        with pytest.raises(FlowBlendingError, match=message) as caught:
            read_clip(tmp_path / name, SIZE)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_cut_off_says_how_many_frames_are_left(tmp_path: Path, clip: Pictures) -> None:
    """One whose index stands before its frames, as on the web, is opened all the same."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1", "bf": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for each in np.repeat(clip, 4, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_clip(path, SIZE).notes == ()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    read = read_clip(path, SIZE)
    assert 0 < read.count < 24
    assert read.notes == (f"{path} says it has 24 frames, but {read.count} can be decoded.",)
    assert read_clip(path, SIZE, most=read.count - 1).notes == ()


@pytest.mark.parametrize("size", [(60000, 60000), (20000, 100), (16384, 16384), (12000, 12000)])
@pytest.mark.parametrize("suffix", ["png", "gif", "bmp"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    """The pixels that it promises are never made: the file holds none of them."""
    path = tmp_path / f"bomb.{suffix}"
    Image.new("P", (16, 16)).save(path)
    content = bytearray(path.read_bytes())
    if suffix == "png":
        content[16:24] = struct.pack(">II", *size)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif suffix == "gif":
        content[6:10] = struct.pack("<HH", *size)
    else:
        content[18:26] = struct.pack("<ii", *size)
    path.write_bytes(content)
    for read in (read_still, read_clip):
        with pytest.raises(UsageError, match=r"bomb\.\w+ (is \d+x\d+ pixels, but at most|holds more pixels than)"):
            read(path, SIZE)
    with pytest.raises(UsageError):
        shown_size(path)


def test_a_large_photograph_is_read(tmp_path: Path) -> None:
    """Pillow warns of one such; nobody else does."""
    path = tmp_path / "a.png"
    Image.new("L", (11000, 9000), 200).save(path)
    read = read_still(path, SIZE)
    assert (read.width, read.height) == (11000, 9000)
    assert (read.frames == 200).all()


def test_heic_without_the_plug_in_says_what_to_install(
    tmp_path: Path, clip: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    Image.fromarray(clip[0]).save(tmp_path / "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(
        UsageError, match=r"a\.heic is a HEIC image, which needs pillow-heif; run pip install '\.\[heic\]'"
    ):
        read_still(tmp_path / "a.heic", SIZE)


def test_without_pillow_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FlowBlendingError, match=r"Reading images needs Pillow, .* pip install '\.\[video\]'"):
        read_still(tmp_path / "a.png", SIZE)
