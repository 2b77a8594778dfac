"""What the method promises of its schedules, and whether measurements keep it.

Differences are paired: both schedules make the clip of the same prompt from the same noise, so that what differs from
prompt to prompt falls out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from benchmarks.schedules.samples import Samples, mean

ADHERENCE_GAP = 0.05
"""LLL shows at least this much more of its prompts' attributes than SSS."""
FRECHET_RATIO = 1.25
"""SSS is at least this many times as far from drawn clips as LLL."""
ADHERENCE_LOSS = 0.02
"""LSL shows at most this much less of its prompts' attributes than LLL."""
PSNR_GAP = 0.5
"""LSL is nearer to LLL than every other schedule by at least this many dB."""
COSINE_GAP = 0.005
"""The same for the cosine of the latents."""
ERRORS = 2.0
"""A gap must also be this many times its standard error."""
STRUCTURE_SHARE = 0.5
"""Of the way in SSIM to LLL from SSS (0) to LSL (1), SLL comes at most this far."""

NEEDED = ("LLL", "LSL", "LSS", "SLL", "SSS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A promise, the numbers, and whether it is kept."""

    text: str
    numbers: str
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.text} ({self.numbers})"


def check(samples: Mapping[str, Samples], frechet: Mapping[str, float]) -> list[Claim]:
    """Every claim; `NEEDED` schedules must be there."""
    return [
        _gap(samples, "attributes", "LLL", "SSS", least=ADHERENCE_GAP, text="LLL is well above SSS in adherence"),
        _frechet(frechet),
        _loss(samples),
        *(_nearer(samples, "psnr", other, PSNR_GAP, "PSNR") for other in ("LSS", "SLL", "SSS")),
        *(_nearer(samples, "cosine", other, COSINE_GAP, "latent cosine") for other in ("LSS", "SLL", "SSS")),
        _structure(samples),
    ]


def _nearer(samples: Mapping[str, Samples], measure: str, other: str, least: float, name: str) -> Claim:
    return _gap(samples, measure, "LSL", other, least=least, text=f"LSL is nearer to LLL than {other} in {name}")


def _gap(samples: Mapping[str, Samples], measure: str, better: str, worse: str, *, least: float, text: str) -> Claim:
    first, second = samples[better][measure], samples[worse][measure]
    gap = mean(first - second)
    digits = {"psnr": ".2f", "cosine": ".4f"}.get(measure, ".1%")
    return Claim(
        text=text,
        numbers=f"{first.mean():{digits}} against {second.mean():{digits}}, apart by {gap.value:{digits}} "
        f"± {gap.error:{digits}}; at least {least:{digits}} and {ERRORS:g} standard errors expected",
        holds=gap.value >= max(least, ERRORS * gap.error),
    )


def _frechet(frechet: Mapping[str, float]) -> Claim:
    ratio = frechet["SSS"] / frechet["LLL"] if frechet["LLL"] > 0 else math.inf
    return Claim(
        text="LLL is well above SSS in Fréchet distance",
        numbers=f"LLL {frechet['LLL']:.2f}, SSS {frechet['SSS']:.2f}, {ratio:.2f} times as far; "
        f"at least {FRECHET_RATIO:g} times expected",
        holds=ratio >= FRECHET_RATIO,
    )


def _loss(samples: Mapping[str, Samples]) -> Claim:
    full, blended = samples["LLL"]["attributes"], samples["LSL"]["attributes"]
    loss = mean(full - blended)
    return Claim(
        text="LSL is within 2 % of LLL in adherence",
        numbers=f"{full.mean():.1%} and {blended.mean():.1%}, LSL lower by {loss.value:.1%} ± {loss.error:.1%}; "
        f"at most {ADHERENCE_LOSS:.1%} expected",
        holds=loss.value <= ADHERENCE_LOSS,
    )


def _structure(samples: Mapping[str, Samples]) -> Claim:
    blended, late, small = (float(samples[name]["ssim"].mean()) for name in ("LSL", "SLL", "SSS"))
    share = (late - small) / (blended - small) if blended > small else math.inf
    return Claim(
        text="SLL is about as bad as SSS in structure",
        numbers=f"SSIM to LLL: SSS {small:.3f}, SLL {late:.3f}, LSL {blended:.3f}; SLL comes {share:.0%} of the way, "
        f"at most {STRUCTURE_SHARE:.0%} expected",
        holds=share <= STRUCTURE_SHARE,
    )
