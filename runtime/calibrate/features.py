"""What two results are compared by: their latents, or what a function of the user's makes of their frames.

A similarity compares a result with the all-large one of the same noise; a distance compares the results of all prompts
with those of all-large sampling from other noise, as sets. No weights are downloaded: DINO, CLIP and others are read
from a folder or file of the user's, ``dino:DIR``; any other network comes in as ``module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.measures import similarity as arrays
from flowblending.runtime.measures.function import MeasureError, load_function
from flowblending.runtime.measures.networks import CLIP, DINO, I3D, INCEPTION, Features, Frames, open_network

Latents = npt.NDArray[np.float32]
"""[1, C, F, H, W], normalised as the transformers see them."""

LATENT = "latent"
NETWORKS = (CLIP, DINO, INCEPTION, I3D)
"""What may stand before a colon and the folder or file of such a network; a module of that name does not count."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How features are taken of a result.

    Attributes:
        name: ``latent``, or what was named.
        of_latents: for ``latent``.
        of_frames: for a network, or a function of the user's.
    """

    name: str
    of_latents: Callable[[Latents], Features] | None = None
    of_frames: Callable[[Frames], object] | None = None

    def features(self, latents: Latents, frames: Callable[[], Frames]) -> Features:
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
            raise MeasureError(
                f"The feature function {self.name} failed ({type(error).__name__}: {error}); mend it."
            ) from error
        if found.ndim not in (1, 2) or found.size == 0 or not np.isfinite(found).all():
            raise MeasureError(
                f"The feature function {self.name} gave an array of shape {list(found.shape)} with "
                f"{np.count_nonzero(~np.isfinite(found))} non-finite numbers, but finite features [dimensions] or "
                "[samples, dimensions] were expected; mend it."
            )
        return found.reshape(-1, found.shape[-1])


def similarity_measure(text: str) -> Measure:
    """``latent``, whose features are the latents themselves, or what `_of_frames` takes.

    Raises:
        UsageError: there is no such network or function.
    """
    if text == LATENT:
        return Measure(name=LATENT, of_latents=lambda latents: latents.astype(np.float64).reshape(1, -1))
    return _of_frames(text)


def distance_measure(text: str) -> Measure:
    """``latent``, see `latent_statistics`, or what `_of_frames` takes.

    Raises:
        UsageError: there is no such network or function.
    """
    if text == LATENT:
        return Measure(name=LATENT, of_latents=latent_statistics)
    return _of_frames(text)


def _of_frames(text: str) -> Measure:
    """``dino:DIR`` and its like, or ``module:function``."""
    kind, _, place = text.partition(":")
    if not place:
        raise UsageError(
            f"The features {text!r} are unknown; give {LATENT}, clip:DIR, dino:DIR, inception:FILE, i3d:FILE or "
            "MODULE:FUNCTION."
        )
    if kind in NETWORKS:
        return Measure(name=text, of_frames=open_network(kind, Path(place)))
    return Measure(name=text, of_frames=load_function(text, kind="feature function"))


def similarity(a: Features, b: Features) -> float:
    """The cosine of the samples' features, averaged over the samples; 1 for equal ones.

    Raises:
        FlowBlendingError: they have different shapes.
    """
    try:
        return arrays.mean_cosine(a, b)
    except ValueError as error:
        raise FlowBlendingError(
            f"The features of two results do not compare: {error}; videos of one length must give features of one "
            "shape, so mend the feature function."
        ) from None


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
    """Squared Fréchet distance of two sets of features, see `similarity.frechet`, in the features' unit squared.

    Covariances of D dimensions say nothing when there are few samples: below 2 D of them only the variances are taken,
    and the trace becomes the sum of (s_a - s_b)^2.

    Args:
        a: the features of each result.
        b: likewise.
    """
    x, y = np.concatenate(a), np.concatenate(b)
    if min(len(x), len(y)) >= 2 * x.shape[1]:
        return arrays.frechet(x, y)
    return float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.sum((x.std(axis=0) - y.std(axis=0)) ** 2))


def frechet_spreads(
    one: Sequence[Features], other: Sequence[Features], reference: Sequence[Features], *, draws: int = 50
) -> tuple[float, float]:
    """Standard deviations over draws of the prompts with replacement (Efron's bootstrap), seeded; 0 for one prompt.

    Args:
        one: the features of each prompt's result.
        other: likewise, of another schedule from the same noise.
        reference: what the distances of both are to.

    Returns:
        That of ``one``'s distance, and that of how much larger ``other``'s is. Both distances are taken of the same
        draws: what prompts do to either is no difference between them.
    """
    generator = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        chosen = generator.integers(len(one), size=len(one))
        drawn = [reference[i] for i in chosen]
        distances = [frechet([each[i] for i in chosen], drawn) for each in (one, other)]
        found.append((distances[0], distances[1] - distances[0]))
    spreads = np.std(found, axis=0, ddof=1)
    return float(spreads[0]), float(spreads[1])
