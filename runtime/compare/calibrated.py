"""What a bundle's calibration says of the divergence of its two models, for the page."""

from __future__ import annotations

from flowblending.contracts.evidence import ScheduleEvidence, read_evidence
from flowblending.contracts.program import COND
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.calibrate.divergence import COSINE, GUIDED, RELATIVE_L2
from flowblending.runtime.compare.report import CalibrationDivergence, ChartLine

MEASURES = {COSINE: "cosine distance", RELATIVE_L2: "relative L2 distance"}


def divergence_of(bundle: Bundle) -> CalibrationDivergence | None:
    """What the evidence of the bundle's calibrated schedule holds; None for a bundle that has none.

    Args:
        bundle: verified by the caller, and so its evidence is whole.
    """
    calibration = bundle.manifest.calibration
    if calibration is None or calibration.schedule is None:
        return None
    name = calibration.schedule.evidence
    evidence = read_evidence(bundle.folder / name)
    assert isinstance(evidence, ScheduleEvidence)
    # The all-large trajectory is measured first.
    followed = evidence.divergence
    branch = GUIDED if GUIDED in next(iter(followed.values())).mean else COND
    lines = {
        title: tuple(
            ChartLine(
                about=f"along {runs}",
                mean=tuple(found.mean[branch][measure]),
                spread=tuple(found.spread[branch][measure]),
            )
            for runs, found in followed.items()
        )
        for measure, title in MEASURES.items()
    }
    prompts = len(evidence.prompts)
    after = "after guidance, " if branch == GUIDED else ""
    return CalibrationDivergence(
        about=f"How far the small model's velocity is from the large one's at the same latents, {after}the mean over "
        f"{prompts} prompt{'s' if prompts > 1 else ''} with its standard deviation. Shaded: {evidence.schedule}, "
        f"the schedule that fb-calibrate chose ({name}).",
        first=evidence.letters[0],
        stages=evidence.schedule,
        lines=lines,
    )
