"""The claims about schedules on made-up numbers: those that keep them, and each that misses one."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from benchmarks.schedules.claims import NEEDED, check
from benchmarks.schedules.samples import ATTRIBUTES, Samples, mean

COUNT = 16


def samples(level: float, *, psnr: float, ssim: float, cosine: float, seed: int = 0) -> Samples:
    """Values that vary from prompt to prompt, in the same way for every schedule, around the means given."""
    wave = 0.02 * np.where(np.arange(COUNT) % 2, 1.0, -1.0)
    noise = 0.001 * np.random.default_rng(seed).standard_normal(COUNT)
    steady = {name: np.full(COUNT, level) for name in ("all_right", *ATTRIBUTES)}
    likeness = {"psnr": psnr + 50 * (wave + noise), "ssim": ssim + wave, "cosine": cosine + (wave + noise) / 10}
    times = {"loop": np.full(COUNT, 1.0), "engines": np.full(COUNT, 0.99), "total": np.full(COUNT, 1.1)}
    return {"attributes": level + wave + noise, **steady, **likeness, "roughness": np.full(COUNT, 0.01), **times}


def kept() -> tuple[dict[str, Samples], dict[str, float]]:
    """Samples and Fréchet distances that keep every claim."""
    made = {
        "LLL": samples(0.95, psnr=math.inf, ssim=1, cosine=1, seed=1),
        "LSL": samples(0.94, psnr=28, ssim=0.9, cosine=0.98, seed=2),
        "LSS": samples(0.85, psnr=25, ssim=0.8, cosine=0.95, seed=3),
        "SLL": samples(0.8, psnr=15, ssim=0.5, cosine=0.7, seed=4),
        "SSS": samples(0.7, psnr=14, ssim=0.45, cosine=0.68, seed=5),
    }
    return made, {"LLL": 2.0, "LSL": 2.2, "LSS": 3.0, "SLL": 4.0, "SSS": 5.0}


def with_mean(of: Samples, measure_name: str, value: float) -> Samples:
    return {**of, measure_name: of[measure_name] - of[measure_name].mean() + value}


def test_every_claim_holds_on_numbers_that_keep_them() -> None:
    claims = check(*kept())
    assert len(claims) == 10
    assert [claim.text for claim in claims if not claim.holds] == []
    assert re.match(r"95\.\d% and 94\.\d%, LSL lower by 1\.0% ± 0\.0%", claims[2].numbers)


@pytest.mark.parametrize(
    ("schedule", "measure_name", "value", "missed"),
    [
        ("SSS", "attributes", 0.93, ["LLL is well above SSS in adherence"]),
        ("LSL", "attributes", 0.92, ["LSL is within 2 % of LLL in adherence"]),
        ("LSS", "psnr", 27.9, ["LSL is nearer to LLL than LSS in PSNR"]),
        ("SLL", "psnr", 30.0, ["LSL is nearer to LLL than SLL in PSNR"]),
        ("SSS", "cosine", 0.978, ["LSL is nearer to LLL than SSS in latent cosine"]),
        ("SLL", "ssim", 0.8, ["SLL is about as bad as SSS in structure"]),
        ("LSL", "ssim", 0.4, ["SLL is about as bad as SSS in structure"]),
        ("LSL", "cosine", 0.6, [f"LSL is nearer to LLL than {other} in latent cosine" for other in NEEDED[2:]]),
    ],
)
def test_a_claim_that_is_missed_is_named_alone(
    schedule: str, measure_name: str, value: float, missed: list[str]
) -> None:
    made, frechet = kept()
    made[schedule] = with_mean(made[schedule], measure_name, value)
    assert [claim.text for claim in check(made, frechet) if not claim.holds] == missed


def test_frechet_distances_that_are_too_near_are_a_missed_claim() -> None:
    made, frechet = kept()
    (missed,) = [claim for claim in check(made, {**frechet, "SSS": 2.4}) if not claim.holds]
    assert missed.text == "LLL is well above SSS in Fréchet distance"
    assert "LLL 2.00, SSS 2.40, 1.20 times as far; at least 1.25 times expected" in str(missed)
    assert str(missed).startswith("DOES NOT HOLD")


def test_a_gap_within_its_standard_error_is_a_missed_claim() -> None:
    made, frechet = kept()
    # Eight points on average, but up and down by half of everything from prompt to prompt.
    uneven = np.where(np.arange(COUNT) % 2, 0.4, -0.56)
    made["SSS"] = {**made["SSS"], "attributes": made["LLL"]["attributes"] + uneven}
    assert [claim.text for claim in check(made, frechet) if not claim.holds] == ["LLL is well above SSS in adherence"]


def test_means_have_the_standard_error_of_the_values_that_are_there() -> None:
    figure = mean(np.asarray([1.0, math.nan, 2.0, 3.0]))
    assert (figure.value, figure.count) == (2.0, 3)
    assert figure.error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(mean(np.asarray([1.0])).error)
    assert math.isnan(mean(np.asarray([math.nan])).value)
    assert mean(np.asarray([math.inf, 1.0])).value == math.inf
