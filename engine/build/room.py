"""What the components of a bundle will take of the disk of the cache and of the bundle's, before any is built.

With `build`, one of the files of this package that call the exporter: its part that reads headers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.contracts.graph import Precision
from flowblending.engine.build import disk
from flowblending.engine.build.disk import ComponentDisk, check_disk, need
from flowblending.engine.build.fp8.builder import Fp8Builder
from flowblending.engine.bundle.bundle import Bundle
from flowblending.engine.store.store import Store
from flowblending.system.share import can_clone

if TYPE_CHECKING:
    from flowblending.export.graph.exportable import Part

_SHARED = (
    "the disk has no room for the weights twice, so the bundle shares the cache's files: fb-run reads them, but the "
    "onnx package and Polygraphy do so only in a copy of the bundle (cp -r) or after fb-build-engines --prune all"
)

RANGES = "ranges"
"""What of a component's key is known only when the pair was calibrated, which is after this."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Something that a bundle needs.

    Attributes:
        component: whose building it is part of, and the key of that.
        step: what it takes.
        weights: bytes beside an ONNX file, which a bundle on the cache's disk gets as a file of its own.
    """

    component: tuple[str, Mapping[str, str]]
    step: ComponentDisk
    weights: int = 0


def plan_room(
    parts: Sequence[Part],
    precisions: Mapping[str, Precision],
    keys: Mapping[str, Mapping[str, str]],
    fp8: Fp8Builder | None,
    *,
    compiled: bool,
) -> list[Planned]:
    """What a bundle needs, in the order in which it is made.

    Args:
        parts: of the bundle.
        precisions: by part.
        keys: by part; of those in fp8, without what only a calibration tells.
        fp8: makes the parts in that precision.
        compiled: whether graphs are compiled to plans, or are the engines.
    """
    from flowblending.export.checkpoint.size import apart_bytes, graph_bytes

    first: list[Planned] = []
    last: list[Planned] = []
    for part in parts:
        blocks = fp8.blocks(part.name) if fp8 is not None and precisions[part.name] is Precision.FP8 else None
        size = graph_bytes(part.sources, precisions[part.name], blocks)
        # A plan holds its graph's weights again, and the graph goes then.
        step = ComponentDisk(kept=size, beside=size if compiled else 0)
        weights = 0 if compiled else size
        planned = Planned(component=(part.name, keys[part.name]), step=step, weights=weights)
        (first if blocks is None else last).append(planned)
    # A calibration's graphs have their weights in the checkpoint's files, but for those decoded or with LoRA.
    apart = sum(apart_bytes(part.sources, part.changed) for part in parts)
    if apart and fp8 is not None and fp8.calibrator.will_sample:
        step = ComponentDisk(kept=0, beside=apart)
        last.insert(0, Planned(component=("calibration", {"with": "weights apart"}), step=step))
    return [*first, *last]


def is_there(name: str, key: Mapping[str, str], store: Store, old: Bundle | None) -> str | None:
    """Whether a component is in the ``cache`` or in the ``bundle`` that is replaced; None if in neither."""
    known = {part: value for part, value in key.items() if part != RANGES}
    if store.holds(name, known):
        return "cache"
    found = None if old is None else old.manifest.components.get(name)
    return "bundle" if found is not None and known.items() <= found.key.items() else None


def check_room(planned: Sequence[Planned], store: Store, old: Bundle | None, folder: Path, out: Path) -> list[str]:
    """Lines about what is needed and what is there; none where nothing is.

    Where there is no room for weights as files of the bundle's own, ``store`` is told to share them.

    Args:
        planned: in the order in which they are built.
        store: where they are looked for and made.
        old: the bundle that is replaced.
        folder: of the bundle in the making.
        out: what the user calls it.

    Raises:
        FlowBlendingError: a disk has not so much.
    """
    cloned = store.lasting and can_clone(store.folder, folder)
    one_disk = cloned or store.folder.stat().st_dev == folder.stat().st_dev
    made_any = False
    made: list[ComponentDisk] = []
    apart: list[ComponentDisk] = []
    copied: list[ComponentDisk] = []
    for each in planned:
        where = is_there(*each.component, store, old)
        made_any |= where is None
        if where is None:
            made.append(each.step)
        elif where == "bundle" and not one_disk:
            made.append(ComponentDisk(kept=each.step.kept, beside=0))
        # The bundle's own, after each component that is made.
        apart += [*([each.step] if where is None else []), ComponentDisk(kept=each.weights, beside=0)]
        # From another disk nothing can be shared.
        copied.append(ComponentDisk(kept=each.step.kept, beside=0))
    lines = []
    if one_disk and store.lasting and not cloned and need(apart).kept:
        if need(apart).most <= disk.free_bytes(store.folder):
            made = apart
        else:
            store.apart = False
            lines = [_SHARED]
    if need(made).most:
        # Where all is in the cache, only the bundle takes more.
        lines.append(check_disk(need(made), store.folder, out, cache=store.lasting and made_any))
    return lines if one_disk else [*lines, check_disk(need(copied), folder, out)]
