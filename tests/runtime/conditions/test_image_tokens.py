"""Tokens of nothing, for what is shown no image."""

from __future__ import annotations

import numpy as np

from flowblending.contracts.conditions import image_channels_condition, image_tokens_condition, images_taken
from flowblending.runtime.conditions.image_tokens import plain_tokens


def test_tokens_of_nothing() -> None:
    """Of the input's shape, and finite; none for models that do not look through CLIP."""
    channels, tokens = image_channels_condition(20), image_tokens_condition(34, 24, 2)
    found = plain_tokens((channels, tokens))
    assert {name: each.shape for name, each in found.items()} == {"image_tokens": (1, 34, 24)}
    assert 0 < np.abs(found["image_tokens"]).max() <= 1
    assert plain_tokens((channels,)) == {}
    assert (images_taken((channels, tokens)), images_taken((channels,))) == (2, 0)
