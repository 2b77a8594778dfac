"""Checkpoints with two transformers (Wan 2.2 A14B): an expert for high noise, and one for low.

diffusers' WanPipeline runs ``transformer`` at timesteps from ``boundary_ratio`` of the largest on, ``transformer_2``
below. Without a second transformer a boundary means nothing (the script that converts Wan writes one for every
version), and without a boundary the second is never run.
"""

from __future__ import annotations

import math
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import (
    MODEL_INDEX,
    TRANSFORMER,
    TRANSFORMER_2,
    Checkpoint,
    model_files,
    read_json,
)
from flowblending.export.checkpoint.model_files import check_there
from flowblending.export.checkpoint.naming import shown


def expert_boundary(checkpoint: Checkpoint | None) -> float | None:
    """Where the second expert takes over, as a share of the largest timestep; None for one transformer.

    Raises:
        FlowBlendingError: it is no number from 0 to 1.
    """
    if checkpoint is None or not checkpoint.has_second or checkpoint.place(TRANSFORMER).parent != checkpoint.folder:
        return None  # another transformer in the place of the first has no second one
    ratio = read_json(checkpoint.folder / MODEL_INDEX).get("boundary_ratio")
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not (math.isfinite(ratio) and 0 <= ratio <= 1):
        raise FlowBlendingError(
            f"{MODEL_INDEX} of {shown(checkpoint.folder)} has boundary_ratio = {ratio!r}, but a number from 0 to 1 was "
            "expected; correct it, 0.875 for Wan 2.2 T2V A14B."
        )
    return float(ratio)


def expert_folders(transformer: Path, checkpoint: Checkpoint, *, whole: bool = True) -> tuple[Path, Path]:
    """The folders of both experts, after a look at whether they are one architecture.

    Args:
        transformer: the folder of the first.
        checkpoint: that it is of.
        whole: look at the files of weights, too.

    Raises:
        FlowBlendingError: the second is missing, or differs from the first in more than its weights.
    """
    second = checkpoint.folder / TRANSFORMER_2
    check_there(second / "config.json")
    ours, theirs = (read_json(folder / "config.json") for folder in (transformer, second))
    # Names that begin with one underscore say where a configuration comes from.
    fields = {name for name in {**ours, **theirs} if name == "_class_name" or not name.startswith("_")}
    for name in sorted(fields):
        if ours.get(name) != theirs.get(name):
            raise FlowBlendingError(
                f"The two experts of {shown(checkpoint.folder)} differ: {name.strip('_')} is {ours.get(name)} in "
                f"{TRANSFORMER} but {theirs.get(name)} in {TRANSFORMER_2}; give a checkpoint whose experts are one "
                "architecture, or two checkpoints as two models."
            )
    if whole:
        model_files(second)
    return transformer, second
