"""The two models that a calibration is about: the bundle's first, and the one that may take some of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """Two letters.

    Attributes:
        first: of the model whose results are to be kept; in messages and evidence, the large one.
        second: of the one that takes steps in its place; there, the small one.
    """

    first: str
    second: str


def pair_of(manifest: Manifest) -> ModelPair:
    """A bundle's first two models.

    Raises:
        UsageError: there is one only.
    """
    first, *others = manifest.models
    if not others:
        raise UsageError(
            f"This bundle has one model, {first.letter} ({first.name}), but fb-calibrate looks for the steps that "
            "another one may take; build it with a second model, or measure the constants of a step cache with --cache."
        )
    return ModelPair(first=first.letter, second=others[0].letter)
