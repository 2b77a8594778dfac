"""The benchmark's idea of what a preview should be is the order of pixels that the map has."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.preview import explained, seen
from tests.support.manifests import PIPELINE


def test_a_preview_should_be_the_means_of_squares_and_of_the_frames_of_a_latent_frame() -> None:
    cells = np.random.default_rng(0).uniform(-1, 1, (3, 9, 4, 6)).astype(np.float32)
    frames = cells.repeat(8, axis=2).repeat(8, axis=3)
    found = seen(frames, dataclasses.replace(PIPELINE, temporal_factor=4, spatial_factor=16))
    means = np.stack([cells[:, 0], cells[:, 1:5].mean(axis=1), cells[:, 5:].mean(axis=1)])
    np.testing.assert_allclose(found, (means.transpose(0, 2, 3, 1) + 1) * 127.5, rtol=1e-5)
    assert explained(found.reshape(-1, 3), found.reshape(-1, 3)) == 1
    assert abs(explained(np.tile(found.mean(axis=(0, 1, 2)), (72, 1)), found.reshape(-1, 3))) < 1e-9
