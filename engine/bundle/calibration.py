"""Adds what was measured on a bundle to it, so that a run that is killed half-way leaves a bundle that is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import MANIFEST, CalibratedSchedule, Calibration
from flowblending.engine.bundle.bundle import Bundle, describe_file, open_bundle
from flowblending.system.whole_file import replace_file


def add_calibration(
    bundle: Bundle,
    evidence: Mapping[str, object],
    *,
    runs: str | None = None,
    caches: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    shift: float | None = None,
) -> Bundle:
    """Write evidence into a bundle's folder, and what follows from it into the manifest.

    The evidence appears first and is not missed as long as no manifest names it; the manifest is replaced in one call.
    What earlier calibrations found stays, unless this one found it anew.

    Args:
        bundle: as it was opened; its manifest is read again, in case it changed meanwhile.
        evidence: plain data for ``json.dumps``; its number is added.
        runs: the schedule that runs take from now on, such as ``L14 S26 L10``.
        caches: constants of step caches, by the cache's name and by model.
        shift: of the noise levels that all of it was measured at, if it is not the bundle's own.

    Returns:
        The bundle as it is now.

    Raises:
        FlowBlendingError: the folder cannot be written, or is no longer the same bundle.
    """
    current = open_bundle(bundle.folder)
    if current.manifest.id != bundle.manifest.id:
        raise FlowBlendingError(f"The bundle {bundle.folder} was rebuilt meanwhile; calibrate it again.")
    before = current.manifest.calibration
    earlier = () if before is None else before.evidence
    number = len(earlier) + 1
    path = bundle.folder / f"calibration-{number}.json"
    try:
        replace_file(path, (json.dumps({"number": number, **evidence}, indent=1) + "\n").encode())
        calibration = Calibration(
            evidence=(*earlier, describe_file(bundle.folder, path)),
            schedule=(before.schedule if before else None)
            if runs is None
            else CalibratedSchedule(runs=runs, evidence=path.name, shift=shift),
            caches={
                **(before.caches if before else {}),
                **{
                    name: {model: tuple(values) for model, values in models.items()}
                    for name, models in (caches or {}).items()
                },
            },
            shifts={
                name: each
                for name, each in {**(before.shifts if before else {}), **dict.fromkeys(caches or {}, shift)}.items()
                if each is not None
            },
        )
        manifest = current.manifest.model_copy(update={"calibration": calibration})
        replace_file(bundle.folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise FlowBlendingError(
            f"Cannot write to the bundle {bundle.folder} ({error.strerror}); make its folder writable, or copy it."
        ) from None
    return Bundle(folder=bundle.folder, manifest=manifest)
