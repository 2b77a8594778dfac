"""Videos of other programs, written by PyAV, with what their files may say of how they are to be shown."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]

MATRICES: dict[str, tuple[int, int, int, int]] = {
    "as it is": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}
"""a, b, c, d of ISO/IEC 14496-12, 6.2.2; turned clockwise."""

TURNED = {
    "as it is": lambda clip: clip,
    "90": lambda clip: np.rot90(clip, -1, (1, 2)),
    "180": lambda clip: np.rot90(clip, 2, (1, 2)),
    "270": lambda clip: np.rot90(clip, 1, (1, 2)),
    "mirrored": lambda clip: clip[:, :, ::-1],
    "upside down": lambda clip: clip[:, ::-1],
    "transposed": lambda clip: clip.swapaxes(1, 2),
    "transversed": lambda clip: np.rot90(clip, 2, (1, 2)).swapaxes(1, 2),
}
"""What numpy makes of frames [F, H, W, 3] by the same names."""

UNTURNED = {"90": "270", "270": "90"}
"""What undoes what; the others undo themselves."""


def pictures(clip: npt.NDArray[np.floating]) -> Pictures:
    """Numbers in 0..1 as bytes."""
    made: Pictures = np.rint(255 * clip).astype(np.uint8)
    return made


def write_clip(
    path: Path,
    frames: Pictures,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: Fraction | int = 8,
    aspect: Fraction | None = None,
    times: Sequence[int] | None = None,
    file_format: str | None = None,
    options: dict[str, str] | None = None,
    sound: float = 0,
) -> Path:
    """A video.

    Args:
        frames: uint8 [F, H, W, 3], or [F, H, W, 4] with opacity.
        aspect: of a pixel.
        times: of the frames, in milliseconds; None is by the rate.
        sound: seconds of silence beside it.
    """
    options = {"crf": "8"} if codec == "libx264" and options is None else options or {}
    with av.open(str(path), "w", format=file_format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            _silence(container, sound)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[2] == 4 else "rgb24")
            picture = picture.reformat(format=pixels)
            if times is not None:
                picture.pts, picture.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def _silence(container: av.container.OutputContainer, seconds: float) -> None:
    stream = container.add_stream("aac", rate=8000)
    assert isinstance(stream, av.AudioStream)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, round(8000 * seconds)), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 8000
    fifo = av.AudioFifo()
    fifo.write(frame)
    for part in fifo.read_many(1024):
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Put a display matrix into an MP4 file, in its first track's header (ISO/IEC 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    place = start + (52 if content[start] == 1 else 40)
    entries = (*(round(x * 65536) for x in (a, b)), 0, *(round(x * 65536) for x in (c, d)), 0, 0, 0, 1 << 30)
    content[place : place + 36] = struct.pack(">9i", *entries)
    path.write_bytes(content)


def decoded(path: Path) -> npt.NDArray[np.float64]:
    """Every frame as it is stored, [F, H, W, 3] in 0..1."""
    with av.open(str(path)) as container:
        frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.float64) for frame in container.decode(video=0)]
    return np.stack(frames) / 255
