"""How the ranges of one calibration for fp8 compare with those of another, of the same weights.

python -m benchmarks.fp8_ranges small/fp8_calibration.json full/fp8_calibration.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending.contracts.fp8_calibration import Fp8Calibration


def ratios(one: Fp8Calibration, other: Fp8Calibration, model: str) -> npt.NDArray[np.float64]:
    """Each layer's percentile in one by that in the other, without the margins; infinite where that is zero."""
    ours, theirs = one.models[model].layers, other.models[model].layers
    with np.errstate(divide="ignore"):
        return np.array([ours[name].percentile for name in theirs]) / [each.percentile for each in theirs.values()]


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description="Compare the ranges of two calibrations for fp8.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    arguments = parser.parse_args()
    one, other = Fp8Calibration.read(arguments.one), Fp8Calibration.read(arguments.other)
    for name in other.models:
        found = ratios(one, other, name)
        print(
            f"{name}: {one.size}, {one.frames} frames by {other.size}, {other.frames} frames: "
            f"{found.min():.2f} to {found.max():.2f}, median {np.median(found):.2f}, {len(found)} layers"
        )


if __name__ == "__main__":
    main()
