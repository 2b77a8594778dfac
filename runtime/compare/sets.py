"""Runs as sets of videos: the Fréchet distance of their features from the reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flowblending.runtime.compare.scoring import SetScorer
from flowblending.runtime.measures.similarity import frechet

Features = npt.NDArray[np.floating]
Read = Callable[[str, str, int], Features | None]
"""A set scorer's features by its key, the run's label and the prompt's number; None for a video that is not there."""


def set_distances(
    scorers: Sequence[SetScorer], labels: Sequence[str], prompts: int, read: Read
) -> dict[str, dict[str, float]]:
    """Distances by the run's label and the scorer's key, of the prompts whose videos a run and the reference both have.

    Left out are the reference itself and what has fewer than two samples, whose covariance is unknown.

    Args:
        labels: of the runs, the reference's first.
        prompts: how many there are.
    """
    found: dict[str, dict[str, float]] = {label: {} for label in labels}
    for scorer in scorers:
        reference = _all(scorer.key, labels[0], prompts, read)
        for label in labels[1:]:
            ours = _all(scorer.key, label, prompts, read)
            both = sorted(ours.keys() & reference.keys())
            if not both:
                continue
            a, b = (np.concatenate([each[prompt] for prompt in both]) for each in (ours, reference))
            if len(a) > 1:
                found[label][scorer.key] = frechet(a, b)
    return found


def _all(key: str, label: str, prompts: int, read: Read) -> Mapping[int, Features]:
    features = {prompt: read(key, label, prompt) for prompt in range(prompts)}
    return {prompt: each for prompt, each in features.items() if each is not None}
