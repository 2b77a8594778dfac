"""A transformer in a file of weights as a folder in diffusers' format, without a copy of a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import TRANSFORMER, Checkpoint, vae_statistics
from flowblending.export.checkpoint.gguf_file import SUFFIX as GGUF
from flowblending.export.checkpoint.model_files import read_place
from flowblending.export.checkpoint.naming import listed, shown
from flowblending.export.checkpoint.places import write_places
from flowblending.export.checkpoint.scaled import check_scales, join_scales
from flowblending.export.checkpoint.weights_file import WeightsFile
from flowblending.export.families.original import Original
from flowblending.export.families.registry import row_of


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """A folder that stands for a transformer in a file.

    Attributes:
        folder: see `flowblending.export.checkpoint.places`.
        left_out: lines about tensors of the file that are no part of it.
    """

    folder: Path
    left_out: tuple[str, ...]


def stand_in(file: WeightsFile, base: Checkpoint, scratch: Path, *, here: bool) -> StandIn:
    """Read a transformer's architecture from its tensors' names and shapes, and give them diffusers' names.

    Args:
        file: with its headers; the VAE's statistics in it are read, too.
        base: the pipeline that the transformer is to run in.
        scratch: for as long as the transformer is looked at.
        here: whether the file is more than its headers; its scales are then looked at, too.

    Raises:
        FlowBlendingError: it is none of the pipeline's family, was trained on the latents of another VAE, or has scales
            that cannot be.
    """
    where = shown(file.source)
    weights = join_scales(file.tensors, where)
    if here:
        check_scales(weights, where)
    file = replace(file, tensors=weights.tensors)
    read = row_of(base).original
    if read is None:
        raise FlowBlendingError(
            f"{where} is a file of weights, which the model family {row_of(base).name} does not read; give a diffusers "
            "folder or a hub id."
        )
    try:
        original = read({name: place.shape for name, place in file.tensors.items()}, base.config(TRANSFORMER))
    except FlowBlendingError as error:
        apart = (
            "" if file.source.suffix != GGUF else ", or put what its converter kept apart (fix_5d_tensors) beside it"
        )
        raise FlowBlendingError(f"{where} cannot be run by {base.pipeline}: {error}{apart}.") from None
    _check_statistics(file, original, base)
    tensors = {diffusers: file.tensors[name] for name, diffusers in original.names.items()}
    return StandIn(
        folder=write_places(file.source, original.config, file.files, tensors, scratch),
        left_out=_lines(where, {**original.left_out, **weights.left_out}),
    )


def _check_statistics(file: WeightsFile, original: Original, base: Checkpoint) -> None:
    if original.statistics is None:
        return
    ours = [read_place(file.tensors[name]) for name in original.statistics]
    for name, found, wanted in zip(original.statistics, ours, vae_statistics(base), strict=True):
        # The same statistics may have been stored in fp32 once and in bf16 (8 bits) once.
        if len(found) != len(wanted) or not all(map(_same, found, wanted)):
            raise FlowBlendingError(
                f"{shown(file.source)} was trained on the latents of another VAE than that of {shown(base.folder)}: "
                f"{name} differs; give the --base of the same version."
            )


def _same(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=2**-8, abs_tol=1e-6)


def _lines(where: str, left_out: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(
        f"{where}: {listed(names)} {'is' if len(names) == 1 else 'are'} left out ({reason})."
        for reason, names in left_out.items()
    )
