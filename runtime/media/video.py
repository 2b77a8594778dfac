"""Writing frames as they are decoded: an MP4 file, a numpy array, or a folder of PNG images.

A video appears under its name only when it is whole: until then it is written beside it under a
temporary name, which is removed when anything goes wrong, Ctrl-C included. A thread of its own compresses and writes,
while the caller makes the next frames.
"""

from __future__ import annotations

import contextlib
import json
import platform
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError
from flowblending.system.extras import install
from flowblending.system.feed import Feed
from flowblending.system.output import cannot_write, check_file, check_new_folder
from flowblending.system.whole_file import whole_file, whole_folder

Metadata = Mapping[str, str | int | float]

_MP4: Final = ".mp4"
_NPY: Final = ".npy"
_X264: Final = "libx264"
_BT709: Final = 1
"""The number of ITU-R BT.709 in FFmpeg's lists of matrices, primaries and transfer functions."""
_X264_ON_X86: Final = {"x264-params": "asm=SSE2,SSE2Fast,SSSE3,SSE4.2"}
"""Without its code for AVX-512, which reads memory that nobody has written where the blocks of a row are no multiple of
eight, as at 832x480: the same pictures became another file each time. 1280x720 takes no longer."""
_THREADS: Final = 8
"""Of x264, which makes other files with other numbers: the same video is the same file on a machine with more cores."""
_WAITING: Final = 8
"""Frames that may wait to be written when the next ones come: two chunks of Wan's decoder."""


class VideoWriter:
    """A video being written: a context manager that gives it its name on success and removes it otherwise.

    Made by `open_writer`.
    """

    def __init__(self, path: Path, whole: ExitStack, sink: _Sink, size: tuple[int, int]) -> None:
        self._path = path
        self._whole = whole
        self._sink = sink
        self._size = size
        self._count = 0
        self._feed = Feed(sink.put, _WAITING)

    def write(self, images: npt.NDArray[np.uint8]) -> None:
        """Append frames, uint8 [F, H, W, 3], which are written later and must stay as they are until then.

        Raises:
            FlowBlendingError: earlier ones could not be written.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self._size, 3):
            size = f"{self._size[0]}, {self._size[1]}"
            raise ValueError(f"frames are {images.dtype} of shape {images.shape}, but uint8 [F, {size}, 3] is due")
        try:
            self._feed.put(images)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._count += len(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            try:
                self._abort()
            finally:
                self._whole.__exit__(kind, value, traceback)
            return
        try:
            with self._whole:
                self._finish()
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _finish(self) -> None:
        try:
            if self._count == 0:
                raise ValueError("a video needs at least one frame")
            self._feed.finish()
            self._sink.close()
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        self._feed.stop()
        self._sink.abort()


def open_writer(path: str | Path, *, width: int, height: int, frame_rate: float, metadata: Metadata) -> VideoWriter:
    """Begin a video; what it becomes follows from the path.

    * ``.mp4``: H.264 (x264, CRF 18, yuv420p, BT.709), ``metadata`` as JSON in the tag ``comment`` and its
      ``prompt`` in ``title``.
    * ``.npy``: uint8 [F, H, W, 3]; ``frame_rate`` and ``metadata`` have no place in it.
    * no suffix, or ``/`` at the end: a new folder with ``frame_0001.png``, ... each with ``metadata`` as JSON
      in the text chunk ``Comment``.

    Folders on the way are made. A file of that name is replaced when the new one is whole.

    Args:
        width, height: of the frames, in pixels.
        frame_rate: frames per second.

    Raises:
        UsageError, FlowBlendingError: as `check_output`, or the extra ``video`` is not installed.
    """
    check_output(path, width=width, height=height)
    folder = _is_folder(path)
    path = Path(path)
    sink: _Sink
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                sink = _Pngs(stack.enter_context(whole_folder(path)), metadata)
            else:
                temporary = stack.enter_context(whole_file(path))
                if path.suffix.lower() == _NPY:
                    sink = _Npy(temporary, (height, width))
                else:
                    sink = _Mp4(temporary, (height, width), frame_rate, metadata)
        except OSError as error:
            raise cannot_write(path, error) from None
        whole = stack.pop_all()
    return VideoWriter(path, whole, sink, (height, width))


def check_output(path: str | Path, *, width: int, height: int) -> None:
    """Find what would keep a video from being written, before the work that makes it.

    Raises:
        UsageError: unknown suffix, an odd size for MP4, or something in the way at ``path``.
        FlowBlendingError: the folder cannot be written to, or the encoder is missing.
    """
    check_video_name(path)
    if _is_mp4(path) and (width % 2 or height % 2):
        raise UsageError(
            f"A video of {width}x{height} pixels cannot be MP4 (yuv420p), which needs even sizes; use .npy or a folder."
        )


def check_video_name(path: str | Path) -> None:
    """The same, but for what depends on the video's size.

    Raises:
        UsageError, FlowBlendingError: as `check_output`.
    """
    folder = _is_folder(path)
    path = Path(path)
    name, suffix = path.name, path.suffix.lower()
    if name.lower() in {_MP4, _NPY} or name != name.rstrip(" ."):
        raise UsageError(
            f"Cannot write a video as {name!r}, which is a suffix alone, or ends in a dot or a blank; "
            "name it video.mp4, frames.npy, or without a suffix for a folder of PNG images."
        )
    if not folder and suffix not in {_MP4, _NPY}:
        raise UsageError(
            f"Cannot write a video as {name}: the suffix {suffix} is unknown; "
            "use .mp4, .npy, or no suffix for a folder of PNG images."
        )
    if folder:
        check_new_folder(path)
    else:
        check_file(path, parents=True)
    if _is_mp4(path):
        _load_av()


def why_no_mp4() -> str:
    """What keeps MP4 files from being written here, as a sentence; empty for nothing."""
    try:
        _load_av()
    except FlowBlendingError as error:
        return str(error)
    return ""


def _is_folder(path: str | Path) -> bool:
    return str(path).endswith("/") or not Path(path).suffix


def _is_mp4(path: str | Path) -> bool:
    return not _is_folder(path) and Path(path).suffix.lower() == _MP4


class _Sink(Protocol):
    """Takes uint8 frames [H, W, 3] one by one, from one thread at a time. Failures to write are ``OSError``."""

    def put(self, frame: npt.NDArray[np.uint8]) -> None: ...

    def close(self) -> None:
        """Complete the file."""
        ...

    def abort(self) -> None:
        """Let go of the file, whatever state it is in."""
        ...


class _Npy:
    """A numpy array file, format 1.0; the number of frames is filled in at the end."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._count = 0
        self._file = path.open("wb")
        self._file.write(self._header())

    def put(self, frame: npt.NDArray[np.uint8]) -> None:
        self._file.write(frame.tobytes())
        self._count += 1

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())
        self._file.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _header(self) -> bytes:
        """128 bytes, whatever the number of frames (numpy.lib.format: magic, version, length, dictionary, newline)."""
        shape = (self._count, *self._size, 3)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def png_bytes(frame: npt.NDArray[np.uint8], metadata: Metadata) -> bytes:
    """A frame uint8 [H, W, 3] as an 8-bit RGB image with metadata as JSON (PNG specification, third edition)."""
    height, width, _ = frame.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # filter "Up": each row less the one above it
    pixels = frame.reshape(height, 3 * width)
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        # Keyword, compression flag and method, language, translated keyword, UTF-8 text.
        b"iTXt": b"Comment\0\0\0\0\0" + _json(metadata).encode(),
        b"IDAT": zlib.compress(rows.tobytes(), 3),
        b"IEND": b"",
    }
    written = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *written])


class _Pngs:
    """A folder of images, one per frame."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self._folder = folder
        self._metadata = metadata
        self._count = 0

    def put(self, frame: npt.NDArray[np.uint8]) -> None:
        self._count += 1
        (self._folder / f"frame_{self._count:04d}.png").write_bytes(png_bytes(frame, self._metadata))

    def close(self) -> None:
        """Nothing is open between frames."""

    def abort(self) -> None:
        """Nothing is open between frames."""


def _load_av() -> ModuleType:
    """PyAV, imported here and nowhere else, once it is known to have the encoder."""
    try:
        import av
    except ImportError:
        raise FlowBlendingError(
            "Writing MP4 needs PyAV, which is not installed; "
            f"{install('video')}, or write .npy or a folder of PNG images."
        ) from None
    try:
        av.codec.Codec(_X264, "w")
    except av.codec.codec.UnknownCodecError:
        raise FlowBlendingError(
            f"The installed PyAV has no x264 encoder; for PyAV's own wheels {install('video')}, "
            "or write .npy or a folder of PNG images."
        ) from None
    return av


class _Mp4:
    """H.264 by way of PyAV."""

    def __init__(self, path: Path, size: tuple[int, int], frame_rate: float, metadata: Metadata) -> None:
        av = _load_av()
        # "+faststart" puts the index first, so that a browser plays the file while it loads.
        with _ffmpeg_errors():
            self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata.update(title=str(metadata.get("prompt", "")), comment=_json(metadata))
        rate = Fraction(frame_rate).limit_denominator(1001)
        options = {"crf": "18"} | (_X264_ON_X86 if platform.machine().lower() in ("x86_64", "amd64") else {})
        self._stream = self._container.add_stream(_X264, rate=rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = _THREADS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        self._count = 0

    def put(self, frame: npt.NDArray[np.uint8]) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=_BT709)
        picture.pts = self._count
        self._count += 1
        with _ffmpeg_errors():
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        with _ffmpeg_errors():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def abort(self) -> None:
        # Closing writes what is left of the index, which may fail again; the file is removed in any case.
        with contextlib.suppress(OSError), _ffmpeg_errors():
            self._container.close()


@contextlib.contextmanager
def _ffmpeg_errors() -> Iterator[None]:
    """Turn FFmpeg's errors into ``OSError``, which only some of them are."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from None


def _json(metadata: Metadata) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False)
