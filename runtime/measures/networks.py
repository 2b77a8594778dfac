"""Networks that look at frames, from folders and files of the user's: nothing is ever downloaded.

CLIP and DINO are folders that transformers reads. Inception, I3D and LPIPS' VGG are TorchScript files, which torch runs
by itself; each is the one file that published figures are taken with:

* FID: ``inception-2015-12-05.pt`` (NVlabs/stylegan2-ada-pytorch, metrics/frechet_inception_distance.py);
* FVD: ``i3d_torchscript.pt`` (universome/stylegan-v, src/metrics/frechet_video_distance.py);
* LPIPS: ``vgg16.pt`` (NVlabs/stylegan2-ada-pytorch, metrics/perceptual_path_length.py).

torch is imported only when one of them is asked for.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.measures.function import MeasureError
from flowblending.system.extras import install

Frames = npt.NDArray[np.uint8]
"""A video, [frames, height, width, 3]."""
Features = npt.NDArray[np.float64]
"""[samples, dimensions]."""
Network = Callable[[Frames], Features]
"""Raises MeasureError where it cannot look at what it is shown."""

LOOKS = 16
"""Frames of a video that are looked at, evenly spaced, the first and the last among them; I3D sees all of them."""

CLIP, DINO, INCEPTION, I3D = "clip", "dino", "inception", "i3d"


class Clip:
    """CLIP's embeddings, of length 1.

    Args:
        folder: as ``CLIPModel.save_pretrained`` and its processor's write it.

    Raises:
        UsageError: there is no such model there, or transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model, self._images, self._tokenizer = _load(folder, text=True)
        if not (hasattr(self._model, "get_image_features") and hasattr(self._model, "get_text_features")):
            raise UsageError(
                f"{folder} holds a {type(self._model).__name__}, but a CLIP model was expected; give another folder."
            )

    def __call__(self, frames: Frames) -> Features:
        """Of `LOOKS` frames."""
        with _running("CLIP model", self._folder):
            pixels = self._images(images=list(_looks(frames)), return_tensors="pt")
            return _unit(_pooled(self._model.get_image_features(**pixels)))

    def text(self, prompt: str) -> Features:
        """Of a prompt, [1, D]; one that is too long is cut."""
        with _running("CLIP model", self._folder):
            words = self._tokenizer([prompt], return_tensors="pt", padding=True, truncation=True)
            return _unit(_pooled(self._model.get_text_features(**words)))


class Dino:
    """The class tokens of a DINO model, or of another vision transformer that has one, of length 1.

    Args:
        folder: as the model's and its image processor's ``save_pretrained`` write it.

    Raises:
        UsageError: there is no such model there, or transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model, self._images, _ = _load(folder, text=False)

    def __call__(self, frames: Frames) -> Features:
        """Of `LOOKS` frames."""
        with _running("DINO model", self._folder):
            pixels = self._images(images=list(_looks(frames)), return_tensors="pt")
            return _unit(self._model(**pixels).last_hidden_state[:, 0])


class Script:
    """A TorchScript file that takes frames in 0..255.

    Args:
        file: as ``torch.jit.save`` writes it.
        what: it is called, for the errors.
        options: of its call.
        video: whether it takes the whole video, [1, 3, F, H, W], and not `LOOKS` images, one by one, [1, 3, H, W].

    Raises:
        UsageError: there is no such file, or torch is not installed.
    """

    def __init__(self, file: Path, *, what: str, options: dict[str, bool], video: bool = False) -> None:
        self._file, self._what, self._options, self._video = file, what, options, video
        self._module = _load_script(file)

    def __call__(self, frames: Frames) -> Features:
        """One row for every image, or for the video."""
        with _running(self._what, self._file):
            parts = [frames.transpose(3, 0, 1, 2)] if self._video else _looks(frames).transpose(0, 3, 1, 2)
            return np.concatenate([self._see(part).double().numpy() for part in parts])

    def _see(self, part: Frames) -> Any:
        """Features of an image or a video, channels first, as a tensor [1, D]."""
        import torch

        shown = torch.from_numpy(np.ascontiguousarray(part)).float()[None]
        return self._module(shown, **self._options).reshape(1, -1)


class Lpips(Script):
    """LPIPS: the squared distance of what a TorchScript file makes of two images.

    Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
    2018, eq. 1.

    Args:
        file: see `Script`.
    """

    def __init__(self, file: Path) -> None:
        options = {"resize_images": False, "return_lpips": True}
        super().__init__(file, what="LPIPS network", options=options)

    def distance(self, a: Frames, b: Frames) -> float:
        """The mean over `LOOKS` frames of each, 0 when equal. Of a frame of 832x480, features take 200 MB."""
        import torch

        with _running(self._what, self._file):
            pairs = zip(*(_looks(frames).transpose(0, 3, 1, 2) for frames in (a, b)), strict=True)
            errors = [(self._see(x) - self._see(y)).square_().sum(dtype=torch.float64) for x, y in pairs]
            return float(torch.stack(errors).mean())


def open_network(kind: str, place: Path) -> Network:
    """A network by its kind.

    Args:
        kind: `CLIP`, `DINO`, `INCEPTION` or `I3D`.
        place: its folder or file.

    Raises:
        UsageError: it cannot be loaded.
    """
    match kind:
        case "clip":
            return Clip(place)
        case "dino":
            return Dino(place)
        case "inception":
            return Script(place, what="Inception network", options={"return_features": True})
        case "i3d":
            options = {"rescale": True, "resize": True, "return_features": True}
            return Script(place, what="I3D network", options=options, video=True)
    raise ValueError(f"{kind} is no kind of network")


def _load(folder: Path, *, text: bool) -> tuple[Any, Any, Any]:
    """Model, image processor and, if asked for, tokenizer."""
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is no folder of a model (it has no config.json); give one that transformers' save_pretrained "
            "has written."
        )
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise _not_installed("torch and transformers", error) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if text else None
    except Exception as error:  # transformers raises what its many parts raise
        raise UsageError(f"Cannot load the model in {folder} ({_line(error, 0)}); give a complete folder.") from None
    return model, images, tokenizer


def _load_script(file: Path) -> Any:
    if not file.is_file():
        raise UsageError(f"There is no file {file}; give the TorchScript file of the network.")
    try:
        import torch
    except ImportError as error:
        raise _not_installed("torch", error) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # that TorchScript is no longer developed
            load: Any = torch.jit.load
            return load(str(file), map_location="cpu").eval()
    except Exception as error:
        raise UsageError(f"{file} is no TorchScript file ({_line(error, -1)}); give the network's own file.") from None


def _not_installed(what: str, error: ImportError) -> UsageError:
    return UsageError(f"Networks need {what} ({error}); {install('build')}, or leave them out.")


def _line(error: Exception, which: int) -> str:
    """A line of what went wrong: TorchScript tells a whole stack first, and others explain at length afterwards."""
    return (str(error).strip().splitlines() or [type(error).__name__])[which].strip()


@contextlib.contextmanager
def _running(what: str, place: Path) -> Iterator[None]:
    """Without gradients, and with errors that name the network."""
    import torch

    try:
        with torch.no_grad():
            yield
    except Exception as error:
        raise MeasureError(
            f"The {what} in {place} failed ({_line(error, -1)}); give another, or leave it out."
        ) from error


def _looks(frames: Frames) -> Frames:
    chosen = np.linspace(0, len(frames) - 1, min(LOOKS, len(frames))).round().astype(int)
    looks: Frames = frames[chosen]
    return looks


def _pooled(output: Any) -> Any:
    """The embedding, which transformers 5 returns within a model output."""
    return getattr(output, "pooler_output", output)


def _unit(vectors: Any) -> Features:
    values = np.asarray(vectors.numpy(), np.float64)
    normed: Features = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normed
