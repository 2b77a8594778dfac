"""Adds what was measured on a bundle to it, so that a run that is killed half-way leaves a bundle that is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import EVIDENCE, MANIFEST, BundleFile, CalibratedSchedule, Calibration, Manifest
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
    What earlier calibrations found stays, unless this one found it anew; evidence that nothing rests on any more goes.
    The same evidence again adds nothing.

    Args:
        bundle: as it was opened; its manifest is read again, in case it changed meanwhile.
        evidence: plain data for ``json.dumps``; its number is added.
        runs: the schedule that runs take from now on, such as ``L14 S26 L10`` or ``L@0.9 S@0.53 L``.
        caches: constants of step caches, by the cache's name and by model.
        shift: of the noise levels that all of it was measured at, if it is not the bundle's own.

    Returns:
        The bundle as it is now.

    Raises:
        FlowBlendingError: the folder cannot be written, or is no longer the same bundle.
    """
    current = _current(bundle)
    before = current.manifest.calibration
    earlier = () if before is None else before.evidence
    number = 1 + max((_number(file.path) for file in earlier), default=0)
    try:
        file = _known(bundle.folder, earlier, evidence)
        if file is None:
            path = bundle.folder / f"calibration-{number}.json"
            replace_file(path, (json.dumps({"number": number, **evidence}, indent=1) + "\n").encode())
            file = describe_file(bundle.folder, path)
        constants = {
            name: {model: tuple(values) for model, values in models.items()} for name, models in (caches or {}).items()
        }
        shifts = {**(before.shifts if before else {}), **dict.fromkeys(constants, shift)}
        calibration = Calibration(
            evidence=(*(each for each in earlier if each != file), file),
            schedule=(before.schedule if before else None)
            if runs is None
            else CalibratedSchedule(runs=runs, evidence=file.path, shift=shift),
            caches={**(before.caches if before else {}), **constants},
            shifts={name: each for name, each in shifts.items() if each is not None},
        )
        kept = tuple(_in_force(bundle.folder, calibration))
        return _write(current, calibration.model_copy(update={"evidence": kept}))
    except OSError as error:
        raise _unwritable(bundle.folder, error) from None


def remove_calibration(bundle: Bundle) -> Bundle:
    """Take back everything that fb-calibrate put into a bundle: schedule, constants and evidence.

    Returns:
        The bundle as it was built.

    Raises:
        FlowBlendingError: the folder cannot be written, or is no longer the same bundle.
    """
    try:
        return _write(_current(bundle), None)
    except OSError as error:
        raise _unwritable(bundle.folder, error) from None


def _current(bundle: Bundle) -> Bundle:
    current = open_bundle(bundle.folder)
    if current.manifest.id != bundle.manifest.id:
        raise FlowBlendingError(f"The bundle {bundle.folder} was rebuilt meanwhile; calibrate it again.")
    return current


def _write(bundle: Bundle, calibration: Calibration | None) -> Bundle:
    """Replace the manifest, if it changes, and remove the evidence that it does not name."""
    manifest: Manifest = bundle.manifest.model_copy(update={"calibration": calibration})
    if manifest != bundle.manifest:
        replace_file(bundle.folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    named = set() if calibration is None else {file.path for file in calibration.evidence}
    highest = max(map(_number, named), default=None)
    for path in bundle.folder.iterdir():
        # Higher numbers are another process's, which names them next.
        if (
            EVIDENCE.fullmatch(path.name)
            and path.name not in named
            and (highest is None or _number(path.name) <= highest)
        ):
            path.unlink(missing_ok=True)
    return Bundle(folder=bundle.folder, manifest=manifest)


def _known(folder: Path, earlier: Iterable[BundleFile], evidence: Mapping[str, object]) -> BundleFile | None:
    """The file that holds this evidence already, its number aside."""
    wanted = json.loads(json.dumps(evidence))
    for file in earlier:
        content = _read(folder, file)
        if content is not None and {name: each for name, each in content.items() if name != "number"} == wanted:
            return file if describe_file(folder, folder / file.path) == file else None
    return None


def _in_force(folder: Path, calibration: Calibration) -> Iterable[BundleFile]:
    """The evidence of the schedule, the newest of every cache's constants, and what was added last."""
    newest = {name: file for file in calibration.evidence for name in _caches(folder, file)}
    for file in calibration.evidence:
        of_schedule = calibration.schedule is not None and calibration.schedule.evidence == file.path
        if of_schedule or file in newest.values() or file is calibration.evidence[-1]:
            yield file


def _caches(folder: Path, file: BundleFile) -> Iterable[str]:
    """The caches whose constants a file is evidence of."""
    content = _read(folder, file)
    caches = None if content is None else content.get("caches")
    return caches if isinstance(caches, dict) else ()


def _read(folder: Path, file: BundleFile) -> dict[str, object] | None:
    """The content of a file of any format; None if it is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / file.path).read_bytes())
        return content if isinstance(content, dict) else None
    return None


def _number(name: str) -> int:
    return int("".join(re.findall(r"[0-9]", name)))


def _unwritable(folder: Path, error: OSError) -> FlowBlendingError:
    return FlowBlendingError(
        f"Cannot write to the bundle {folder} ({error.strerror}); make its folder writable, or copy it."
    )
