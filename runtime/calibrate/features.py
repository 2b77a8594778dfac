"""What two results are compared by: their latents, or what a function of the user's makes of their frames.

A similarity compares a result with the all-large one of the same noise; a distance compares the results of all prompts
with those of all-large sampling from other noise, as sets. No weights are downloaded: DINO, CLIP or another network
comes in as ``module:function``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError

Features = npt.NDArray[np.float64]
"""[samples, dimensions]."""
Video = npt.NDArray[np.uint8]
"""[frames, height, width, 3]."""
Latents = npt.NDArray[np.float32]
"""[1, C, F, H, W], normalised as the transformers see them."""

LATENT = "latent"
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How features are taken of a result.

    Attributes:
        name: ``latent``, or the ``module:function`` that was named.
        of_latents: for ``latent``.
        of_frames: for a function of the user's.
    """

    name: str
    of_latents: Callable[[Latents], Features] | None = None
    of_frames: Callable[[Video], object] | None = None

    def features(self, latents: Latents, frames: Callable[[], Video]) -> Features:
        """Features [samples, dimensions] of a result.

        Args:
            latents: of the result.
            frames: decodes them.

        Raises:
            FlowBlendingError: the user's function fails, or gives something else.
        """
        if self.of_latents is not None:
            return self.of_latents(latents)
        assert self.of_frames is not None
        try:
            found = np.asarray(self.of_frames(frames()), np.float64)
        except FlowBlendingError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise FlowBlendingError(
                f"The feature function {self.name} failed ({type(error).__name__}: {error}); mend it."
            ) from error
        if found.ndim not in (1, 2) or found.size == 0 or not np.isfinite(found).all():
            raise FlowBlendingError(
                f"The feature function {self.name} gave an array of shape {list(found.shape)} with "
                f"{np.count_nonzero(~np.isfinite(found))} non-finite numbers, but finite features [dimensions] or "
                "[samples, dimensions] were expected; mend it."
            )
        return found.reshape(-1, found.shape[-1])


def similarity_measure(text: str) -> Measure:
    """``latent``, whose features are the latents themselves, or ``module:function``.

    Raises:
        UsageError: there is no such function.
    """
    if text == LATENT:
        return Measure(name=LATENT, of_latents=lambda latents: latents.astype(np.float64).reshape(1, -1))
    return Measure(name=text, of_frames=load_function(text))


def distance_measure(text: str) -> Measure:
    """``latent``, see `latent_statistics`, or ``module:function``.

    Raises:
        UsageError: there is no such function.
    """
    if text == LATENT:
        return Measure(name=LATENT, of_latents=latent_statistics)
    return Measure(name=text, of_frames=load_function(text))


def load_function(text: str) -> Callable[[Video], object]:
    """The function that ``module:function`` names; the current folder is searched too.

    Raises:
        UsageError: there is none.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name.isidentifier()):
        raise UsageError(f"The features {text!r} are unknown; give {LATENT} or MODULE:FUNCTION.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: object = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's code raises while it is imported
        raise UsageError(
            f"The feature function {text} cannot be imported ({type(error).__name__}: {error}); give MODULE:FUNCTION "
            "of a module in this folder or an installed one."
        ) from None
    if not callable(found):
        raise UsageError(f"{text} is no function; give one that takes frames uint8 [F, H, W, 3] and returns features.")
    return found


def similarity(a: Features, b: Features) -> float:
    """The cosine of the samples' features, averaged over the samples; 1 for equal ones."""
    if a.shape != b.shape:
        raise FlowBlendingError(
            f"The features of two results have the shapes {list(a.shape)} and {list(b.shape)}, but videos of one "
            "length must give features of one shape; mend the feature function."
        )
    products = np.einsum("nd,nd->n", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(products / np.maximum(lengths, _TINY)))


def latent_statistics(latents: Latents) -> Features:
    """Per latent frame and channel: mean, standard deviation, and root mean square difference of neighbours.

    The last tells how sharp the frame is, which is what the last steps decide. [F, 3 C].
    """
    frames = latents[0].astype(np.float64).transpose(1, 0, 2, 3)
    down, across = np.diff(frames, axis=2) ** 2, np.diff(frames, axis=3) ** 2
    count = max(down[0, 0].size + across[0, 0].size, 1)
    rough = np.sqrt((down.sum(axis=(2, 3)) + across.sum(axis=(2, 3))) / count)
    return np.concatenate([frames.mean(axis=(2, 3)), frames.std(axis=(2, 3)), rough], axis=1)


def frechet(a: Sequence[Features], b: Sequence[Features]) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features, in the features' unit squared.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), arXiv 1706.08500, eq. 6. Covariances of D dimensions say nothing
    when there are few samples: below 2 D of them only the variances are taken, and the trace becomes the sum of
    (s_a - s_b)^2.

    Args:
        a: the features of each result.
        b: likewise.
    """
    x, y = np.concatenate(a), np.concatenate(b)
    mean = float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2))
    if min(len(x), len(y)) < 2 * x.shape[1]:
        return mean + float(np.sum((x.std(axis=0) - y.std(axis=0)) ** 2))
    one, other = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (x, y))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0.0)).sum()
    return max(0.0, mean + float(np.trace(one) + np.trace(other) - 2.0 * shared))


def frechet_noise(a: Sequence[Features], b: Sequence[Features], *, draws: int = 50) -> float:
    """The standard deviation of `frechet` over draws of the prompts with replacement (Efron's bootstrap), seeded."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        chosen = generator.integers(len(a), size=len(a))
        found.append(frechet([a[i] for i in chosen], [b[i] for i in chosen]))
    return float(np.std(found, ddof=1))
