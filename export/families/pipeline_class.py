"""Which pipeline class a checkpoint is run with: the one that its index names, or the one that the user does.

The two need not agree: LTX-Video 0.9.5 is published as LTXPipeline, and meant for LTXConditionPipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.export.checkpoint.checkpoint import MODEL_INDEX, Checkpoint
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.registry import pipeline_classes, row_of


def check_class(asked: str | None) -> None:
    """Refuse a class that no checkpoint is run with, before any is read.

    Raises:
        UsageError: no family covers it.
    """
    if asked is not None and asked not in pipeline_classes():
        raise UsageError(f"--pipeline {asked} was given, but one of {', '.join(pipeline_classes())} was expected.")


def run_with(checkpoint: Checkpoint, asked: str | None, able: Sequence[str]) -> Checkpoint:
    """The checkpoint, to be run with the class that was asked for; None leaves it as it is published.

    Args:
        able: the classes that run what the checkpoint consists of.

    Raises:
        UsageError: the class is none of them.
    """
    if asked is None or asked == checkpoint.pipeline:
        return checkpoint
    if asked not in able:
        raise UsageError(
            f"--pipeline {asked} was given, but {shown(checkpoint.folder)} is a checkpoint of {checkpoint.pipeline}; "
            f"give one of {', '.join(able)}, or leave it out."
        )
    return dataclasses.replace(checkpoint, pipeline=asked, published=checkpoint.pipeline)


def with_conditions(checkpoint: Checkpoint, asked: Sequence[Source]) -> Checkpoint:
    """The checkpoint, to be run with what was asked for, by the class of its family that takes it.

    A bundle takes all that its class does: what makes latents of one kind makes them of the others.

    Raises:
        UsageError: nothing of the kind can be built in.
    """
    row = row_of(checkpoint)
    if not asked and checkpoint.pipeline not in row.always:
        return checkpoint
    pipeline = row.images.get(checkpoint.pipeline, checkpoint.pipeline)
    able = row.takes.get(pipeline, ())
    for source in asked:
        if source not in able:
            what = f"takes {' and '.join(able)} beside text" if able else "takes text alone"
            raise UsageError(
                f"--conditions {source} was given, but a bundle of {shown(checkpoint.folder)} ({pipeline}) {what}; "
                "leave it out."
            )
    published = checkpoint.published if pipeline == checkpoint.pipeline else checkpoint.published or checkpoint.pipeline
    return dataclasses.replace(checkpoint, pipeline=pipeline, published=published, takes=able)


def describe_class(checkpoint: Checkpoint) -> str:
    """The class, and who says so."""
    if checkpoint.published is None:
        return f"{checkpoint.pipeline}, as {MODEL_INDEX} says"
    option = "--conditions" if checkpoint.takes else "--pipeline"
    return f"{checkpoint.pipeline}, as {option} says; {MODEL_INDEX} names {checkpoint.published}"


def run_as_the_first(checkpoint: Checkpoint, first: Checkpoint, name: str) -> str | None:
    """That a model is run with the first model's class, where its own index names another; else None."""
    if checkpoint.published in (None, first.published):
        return None
    return (
        f"the model {name} is published as {checkpoint.published}, and is run as the first model is, with "
        f"{first.pipeline}; if another class is meant for both, give it as --pipeline."
    )
