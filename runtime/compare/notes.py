"""Sentences under the table: what was not measured, and what one has to know of what was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flowblending.contracts.manifest import Geometry, Manifest
from flowblending.contracts.models import default_schedule
from flowblending.runtime.compare.existing import ExistingVideo
from flowblending.runtime.compare.report import CalibrationDivergence
from flowblending.runtime.compare.runs import Variant
from flowblending.runtime.compare.sample import TRAIL
from flowblending.runtime.compare.scoring import Asked
from flowblending.runtime.media.display import UPRIGHT
from flowblending.runtime.options import AUTO

_UNMEASURED = {
    "judge": ("Prompt adherence", "--judge MODULE:FUNCTION"),
    "clip": ("CLIP", "--clip DIR"),
    "dino": ("DINO", "--dino DIR"),
    "lpips": ("LPIPS", "--lpips FILE"),
    "fid": ("FID", "--fid FILE"),
    "fvd": ("FVD", "--fvd FILE"),
}


def unmeasured(asked: Asked, *, single: bool = False) -> list[str]:
    """What was not measured, and how it could have been; of single videos there is no FVD."""
    kinds = {key.split()[0] for key in asked.keys}
    absent = [(name, option) for kind, (name, option) in _UNMEASURED.items() if kind not in kinds]
    if single:
        absent = [each for each in absent if each != _UNMEASURED["fvd"]]
    if not absent:
        return []
    return [
        f"Not measured: {', '.join(name for name, _ in absent)}. Nothing is ever downloaded; to measure them, name "
        f"what is on your disk: {', '.join(option for _, option in absent)}."
    ]


def calibration_notes(
    manifest: Manifest, variants: Sequence[Variant], divergence: CalibrationDivergence | None
) -> list[str]:
    """Whether the models' divergence is known, and what the schedule auto stands for."""
    notes = []
    if divergence is None:
        notes.append(
            "The divergence of the two models' velocities is not shown: fb-calibrate BUNDLE --prompts FILE measures it."
        )
    if any(variant.schedule == AUTO for variant in variants):
        calibration = manifest.calibration
        chosen = None if calibration is None else calibration.schedule
        usual = f"{default_schedule(manifest.models)}, since the bundle is not calibrated"
        found = usual if chosen is None else f"{chosen.runs}, by {chosen.evidence}"
        notes.append(f"The schedule auto is what fb-run takes unless told otherwise: {found}.")
    return notes


BUSY = 0.8
"""Of a processor: what runs on the CPU gets less only where something else runs too, or waits for a disk."""


def busy_note(seconds: Sequence[Mapping[str, float]], machine: str) -> list[str]:
    """Whether times are to be believed: on a CPU, a run that computes gets at least one processor for itself.

    Args:
        seconds: of every run, see `Figures`.
        machine: that they were measured on, ``cpu`` or ``cpu, 2 threads``.
    """
    processor, wall = (sum(each.get(name, 0.0) for each in seconds) for name in ("processor", "wall"))
    if not machine.startswith("cpu") or processor >= BUSY * wall:
        return []
    return [
        "The times are not reliable: something else kept the machine busy, so that the runs got "
        f"{processor / wall:.0%} of one processor. FLOPs and likeness do not depend on it."
    ]


def trail_note(geometry: Geometry) -> list[str]:
    """What the cosines by step are of."""
    size = math.prod(geometry.latent_shape)
    if size <= TRAIL:
        return []
    return [f"The cosines by step are of {TRAIL} of the latents' {size} numbers, the same ones for all runs."]


def existing_notes(videos: Sequence[ExistingVideo]) -> list[str]:
    """How videos were read whose files do not hold what a player shows, and which copies are not the originals."""
    notes = [f"{video.label} {remark}." for video in videos for remark in _remarks(video)]
    anew = [video.label for video in videos if not video.fits]
    if anew:
        notes.append(
            f"For the page, {' and '.join(anew)} {'were' if len(anew) > 1 else 'was'} written anew in H.264 at "
            f"{videos[0].frame_rate:g} frames per second; the figures are the originals'."
        )
    return notes


def _remarks(video: ExistingVideo) -> list[str]:
    file, remarks = video.file, []
    if (turn := file.orientation) != UPRIGHT:
        how = [f"turned by {turn.degrees} degrees clockwise"] if turn.degrees else []
        how = ["mirrored", *how] if turn.mirrored else how
        remarks.append(f"was {' and '.join(how)}, as its file says")
    if file.aspect != 1:
        shape = f"{file.aspect.numerator}:{file.aspect.denominator}"
        remarks.append(f"has pixels of {shape}, and was stretched to {file.width}×{file.height}")
    if file.transparent:
        remarks.append("may be transparent, and was put on black")
    if file.high_range:
        remarks.append("is of high dynamic range, and was measured as it is coded, without a player's tone mapping")
    if file.promised > file.count:
        remarks.append(f"promises {file.promised} frames, of which {file.count} can be decoded and are shown")
    if file.damaged:
        remarks.append(f"has {file.damaged} damaged frames, which players may show otherwise")
    if video.resampled:
        remarks.append(f"was compared as it is shown {video.frame_rate:g} times per second, since frame rates vary")
    if file.width % 2 or file.height % 2:
        remarks.append("has an odd size; unless its copy on the page is the original, that is a pixel larger")
    return remarks
