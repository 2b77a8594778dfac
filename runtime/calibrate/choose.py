"""Chooses the boundaries from what was measured of every prompt. Pure functions of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowblending.runtime.calibrate.boundaries import early_boundary, late_boundary, prompts_needed
from flowblending.runtime.calibrate.features import frechet, frechet_spreads
from flowblending.runtime.calibrate.findings import DistanceTest, SimilarityTest
from flowblending.runtime.calibrate.measure import Early, Late

_LEAST = 2
"""Prompts that have a spread."""


def choose_early(measured: Sequence[Early], measure: str, threshold: float) -> SimilarityTest:
    """The early boundary by the mean over prompts.

    Args:
        measure: the similarity's name.
        threshold: of the mean; see `early_boundary`.
    """
    values = {count: [each.similarities[count] for each in measured] for count in measured[0].similarities}
    means = {count: float(np.mean(each)) for count, each in values.items()}
    return SimilarityTest(measure=measure, threshold=threshold, values=values, chosen=early_boundary(means, threshold))


def choose_late(measured: Sequence[Early], late: Sequence[Late], measure: str, family: int) -> DistanceTest:
    """The late boundary by the distance of all prompts' results, or the family's where that decides nothing.

    Args:
        measure: the distance's name.
        family: large steps at the end of the family's own schedule, as many as the early boundary leaves.
    """
    reference, large = [each.reference for each in measured], [each.large for each in measured]
    counts = sorted(late[0].features)
    values = {count: frechet([each.features[count] for each in late], reference) for count in counts}
    all_large = frechet(large, reference)
    noise, spread = frechet_spreads(large, [each.features[0] for each in late], reference)
    chosen = None if len(late) < _LEAST else late_boundary(values, all_large=all_large, spread=spread)
    return DistanceTest(
        measure=measure,
        values=values,
        all_large=all_large,
        noise=noise,
        spread=spread,
        similarities={count: [each.similarities[count] for each in late] for count in counts},
        chosen=family if chosen is None else chosen,
        decided=chosen is not None,
        prompts_needed=None if chosen is not None else prompts_needed(len(late), values[0] - all_large, spread),
    )
