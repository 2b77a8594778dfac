"""Video files of others, opened and decoded; every way in which that may fail becomes a sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError
from flowblending.runtime.media.file_checks import check_is_file
from flowblending.system.extras import install
from flowblending.system.printable import printable

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these leave the transparency out, which browsers show."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and the stream that players show; every way in which opening may fail becomes a sentence."""
    try:
        import av
    except ImportError:
        raise FlowBlendingError(f"Reading videos needs PyAV, which is not installed; {install('video')}.") from None
    name = printable(path)
    check_is_file(path, "video")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            # By its content: FFmpeg takes "%" and "*" in names for patterns, and what stands before a colon for
            # a protocol, and cannot take bytes that are no UTF-8. No file may have others opened.
            container = stack.enter_context(
                av.open(_Unnamed(file, path.suffix), metadata_errors="replace", options={"protocol_whitelist": "none"})
            )
        except (av.FFmpegError, OSError) as error:
            raise _unreadable(path, error) from None
        shown = [each for each in container.streams.video if not _is_cover(each)]
        if not shown:
            raise FlowBlendingError(f"{name} holds no video; give a file that does.")
        best = container.streams.best("video")
        stream = best if best in shown else shown[0]
        if stream.codec_context is None:
            raise FlowBlendingError(
                f"{name} is in a codec that the installed PyAV cannot decode; give it in another one, such as H.264."
            )
        yield container, stream


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture that goes with a sound."""
    import av.stream

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


class _Unnamed:
    """An open file of which FFmpeg sees no more of its name than a suffix."""

    def __init__(self, file: Any, suffix: str) -> None:
        self.name = f"video{suffix}" if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix) else "video"
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Every frame that the decoder gives."""
    import av

    count = 0
    try:
        stream.thread_type = "AUTO"
        decoder = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and decoder.name in _WITH_ALPHA:
            decoder = av.CodecContext.create(_WITH_ALPHA[decoder.name], "r")
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                yield frame
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, error, count) from None


def _unreadable(path: Path, error: Exception, count: int = 0) -> FlowBlendingError:
    why = getattr(error, "strerror", None) or printable(str(error))
    what = f"decoded beyond frame {count}" if count else "read as a video"
    return FlowBlendingError(f"{printable(path)} cannot be {what} ({why}); give another file.")
