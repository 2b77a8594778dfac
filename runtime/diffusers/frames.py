"""What a call returns: frames in one of diffusers' forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.diffusers.latents import as_torch
from flowblending.runtime.media.read_ahead import Frames
from flowblending.system.extras import install

LATENT: Final = "latent"


@dataclass(frozen=True)
class VideoOutput:
    """Videos as diffusers' pipelines return them; ``output[0]`` and ``output["frames"]`` are its frames too.

    Attributes:
        frames: by ``output_type``: ``np`` float32 [B, F, height, width, 3] in [0, 1], ``pt`` a tensor
            [B, F, 3, height, width] likewise, ``pil`` a list of images for each video, ``latent`` a tensor of the
            final latents.
    """

    frames: Any

    def __getitem__(self, key: int | str) -> Any:
        return self.to_tuple()[key] if isinstance(key, int) else {"frames": self.frames}[key]

    def to_tuple(self) -> tuple[Any]:
        """The frames alone."""
        return (self.frames,)


def _arrays(videos: Sequence[Frames]) -> npt.NDArray[np.float32]:
    return np.stack([_unit(each).transpose(1, 2, 3, 0) for each in videos])


def _tensors(videos: Sequence[Frames]) -> Any:
    return as_torch(np.stack([_unit(each).transpose(1, 0, 2, 3) for each in videos]))


def _images(videos: Sequence[Frames]) -> list[list[Any]]:
    from PIL import Image

    return [[Image.fromarray(picture) for picture in to_uint8(each)] for each in videos]


def _unit(frames: Frames) -> Frames:
    """From [-1, 1] to [0, 1] (diffusers' image_processor.py, denormalize)."""
    return (frames * np.float32(0.5) + np.float32(0.5)).clip(0.0, 1.0)


_FORMS: Final[Mapping[str, Callable[[Sequence[Frames]], Any]]] = {"np": _arrays, "pt": _tensors, "pil": _images}


def check_output_type(output_type: object) -> None:
    """Find out before the work whether it can be returned in a form.

    Raises:
        UsageError: there is no such form, or its library is not installed.
    """
    if output_type not in (*_FORMS, LATENT):
        raise UsageError(f"output_type is {output_type!r}, but np, pt, pil or latent was expected; give one of these.")
    if output_type in ("pt", LATENT):
        as_torch(np.zeros(1))
    if output_type == "pil":
        try:
            import PIL.Image  # noqa: F401 - whether it is there
        except ImportError:
            raise UsageError(
                f"output_type='pil' was asked for, but Pillow is not installed; {install('video')}, or take "
                "output_type='np'."
            ) from None


def as_output_type(videos: Sequence[Frames], output_type: str) -> Any:
    """Videos of one size, float32 [3, F, height, width] in [-1, 1] or a little beyond, in one of the forms."""
    return _FORMS[output_type](videos)
