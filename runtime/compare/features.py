"""CLIP and DINO as scorers, by transformers, from a folder of the user's: nothing is ever downloaded.

The one file of the runtime that imports torch, and only when one of them is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.runtime.compare.scoring import Column, Frames, ScoringError

LOOKS = 16
"""Frames of a video that are looked at, evenly spaced, the first and the last among them."""

_Vectors = npt.NDArray[np.float64]

_ABOUT = {
    "prompt": f"CLIP: mean cosine of the prompt's embedding with those of {LOOKS} frames (CLIPScore of Hessel et al. "
    "2021, without its factor 2.5).",
    "reference": f"mean cosine of the embeddings of {LOOKS} frames with those of the reference's same frames.",
}


class Clip:
    """Likeness of frames to the prompt, and to the reference's frames, by a CLIP model.

    Args:
        folder: as ``CLIPModel.save_pretrained`` and its processor's write it.

    Raises:
        UsageError: there is no such model there, or transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._model, self._images, self._tokenizer = _load(folder, option="--clip", text=True)
        if not (hasattr(self._model, "get_image_features") and hasattr(self._model, "get_text_features")):
            raise UsageError(f"{folder} holds a {type(self._model).__name__}, but --clip takes a CLIP model's folder.")
        self._of_reference = _Last(self._embed)

    @property
    def key(self) -> str:
        """By the folder."""
        return f"clip {self._folder}"

    def columns(self, names: list[str]) -> list[Column]:
        """Cosines."""
        return [_column("CLIP", name) for name in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:
        """``prompt`` and, unless it is the reference itself, ``reference``."""
        with _complaining("CLIP model", self._folder):
            seen = self._embed(frames)
            text = self._tokenizer([prompt], return_tensors="pt", padding=True, truncation=True)
            said = _unit(_pooled(self._model.get_text_features(**text)))
            scores = {"prompt": float(np.mean(seen @ said[0]))}
            if reference is not None:
                scores["reference"] = _alike(seen, self._of_reference(reference))
        return scores

    def _embed(self, frames: Frames) -> _Vectors:
        pixels = self._images(images=_looks(frames), return_tensors="pt")
        return _unit(_pooled(self._model.get_image_features(**pixels)))


class Dino:
    """Likeness of frames to the reference's frames by a DINO model, or another vision transformer with a class token.

    Args:
        folder: as the model's and its image processor's ``save_pretrained`` write it.

    Raises:
        UsageError: there is no such model there, or transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._model, self._images, _ = _load(folder, option="--dino", text=False)
        self._of_reference = _Last(self._embed)

    @property
    def key(self) -> str:
        """By the folder."""
        return f"dino {self._folder}"

    def columns(self, names: list[str]) -> list[Column]:
        """Cosines."""
        return [_column("DINO", name) for name in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:  # noqa: ARG002
        """``reference``; nothing for the reference itself."""
        if reference is None:
            return {}
        with _complaining("DINO model", self._folder):
            return {"reference": _alike(self._embed(frames), self._of_reference(reference))}

    def _embed(self, frames: Frames) -> _Vectors:
        pixels = self._images(images=_looks(frames), return_tensors="pt")
        return _unit(self._model(**pixels).last_hidden_state[:, 0])


class _Last:
    """A function of frames that remembers its last result: the reference is the same for all runs of a prompt."""

    def __init__(self, embed: Callable[[Frames], _Vectors]) -> None:
        self._embed = embed
        self._frames: Frames | None = None
        self._vectors: _Vectors | None = None

    def __call__(self, frames: Frames) -> _Vectors:
        if self._vectors is None or self._frames is not frames:
            self._frames, self._vectors = frames, self._embed(frames)
        return self._vectors


def _load(folder: Path, *, option: str, text: bool) -> tuple[Any, Any, Any]:
    """Model, image processor and, if asked for, tokenizer."""
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is no folder of a model (it has no config.json); give {option} one that transformers' "
            "save_pretrained has written."
        )
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError(
            f"{option} needs torch and transformers ({error}); install flowblending[build], or leave it out."
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if text else None
    except Exception as error:  # transformers raises what its many parts raise
        why = str(error).strip().split("\n")[0]
        raise UsageError(f"Cannot load the model in {folder} ({why}); give {option} a complete folder.") from None
    return model, images, tokenizer


@contextlib.contextmanager
def _complaining(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = str(error).strip().split("\n")[0]
        raise ScoringError(f"The {what} in {folder} failed ({why}); give another folder, or leave it out.") from error


def _looks(frames: Frames) -> list[Frames]:
    chosen = np.linspace(0, len(frames) - 1, min(LOOKS, len(frames))).round().astype(int)
    return [frames[index] for index in chosen]


def _pooled(output: Any) -> Any:
    """The embedding, which transformers 5 returns within a model output."""
    return getattr(output, "pooler_output", output)


def _unit(vectors: Any) -> _Vectors:
    values = np.asarray(vectors.numpy(), np.float64)
    normed: _Vectors = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normed


def _alike(a: _Vectors, b: _Vectors) -> float:
    return float(np.mean(np.sum(a * b, axis=1)))


def _column(model: str, name: str) -> Column:
    about = _ABOUT[name]
    if name == "prompt":
        return Column(heading=f"{model} to {name}", about=about)
    return Column(heading=f"{model} to {name}", about=f"{model}: {about}", relative=True)
