"""Which pipeline class a checkpoint is run with, and what is said of it."""

import json
from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.contracts.conditions import Source
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.families.ltx.family import Ltx
from flowblending.export.families.pipeline_class import check_class, describe_class, run_with, with_conditions
from flowblending.export.families.wan.family import Wan

LTX = ("LTXPipeline", "LTXConditionPipeline")


def test_a_class_that_runs_the_same_components_may_be_named() -> None:
    published = Checkpoint(folder=Path("ltx"), pipeline="LTXPipeline")
    named = run_with(published, "LTXConditionPipeline", LTX)
    assert named == Checkpoint(folder=Path("ltx"), pipeline="LTXConditionPipeline", published="LTXPipeline")
    assert describe_class(published) == "LTXPipeline, as model_index.json says"
    assert describe_class(named) == "LTXConditionPipeline, as --pipeline says; model_index.json names LTXPipeline"
    for asked in (None, "LTXPipeline"):
        assert run_with(published, asked, LTX) is published


@pytest.mark.parametrize(
    ("pipeline", "asked", "able"),
    [("LTXPipeline", "WanPipeline", LTX), ("WanPipeline", "LTXPipeline", ("WanPipeline",))],
)
def test_a_class_of_another_family_is_refused(pipeline: str, asked: str, able: tuple[str, ...]) -> None:
    with pytest.raises(
        UsageError, match=f"--pipeline {asked} was given, but x is a checkpoint of {pipeline}; give one of "
    ):
        run_with(Checkpoint(folder=Path("x"), pipeline=pipeline), asked, able)


def test_an_unknown_class_is_refused_at_once() -> None:
    check_class(None)
    check_class("WanPipeline")
    classes = "WanPipeline, WanVACEPipeline, WanImageToVideoPipeline, SkyReelsV2ImageToVideoPipeline, LTXPipeline, LTX"
    with pytest.raises(UsageError, match=f"--pipeline ltx was given, but one of {classes}"):
        check_class("ltx")


@pytest.mark.parametrize(
    ("scheduler", "conditioned", "pipeline", "advised"),
    [
        ({"use_dynamic_shifting": False}, True, "LTXPipeline", True),
        ({}, True, "LTXPipeline", True),
        ({"use_dynamic_shifting": True}, True, "LTXPipeline", False),
        ({"shift": 3.0}, True, "LTXPipeline", False),
        ({}, False, "LTXPipeline", False),
        ({}, True, "LTXConditionPipeline", False),
    ],
    ids=["0.9.5", "0.9.5 by default", "0.9.1", "another shift", "another VAE", "0.9.7"],
)
def test_what_looks_like_0_9_5_is_told_its_class(
    tmp_path: Path, scheduler: dict[str, object], conditioned: bool, pipeline: str, advised: bool
) -> None:
    for path, content in (
        ("scheduler/scheduler_config.json", scheduler),
        ("vae/config.json", {"timestep_conditioning": conditioned}),
    ):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(json.dumps(content))
    checkpoint = Checkpoint(folder=tmp_path, pipeline=pipeline)
    advice = Ltx().advise(checkpoint)
    assert (advice is not None) == advised
    if advice is not None:
        assert advice.endswith("if it is that version, give --pipeline LTXConditionPipeline.")
        assert Ltx().advise(run_with(checkpoint, "LTXConditionPipeline", LTX)) is None
    assert Wan().advise(Checkpoint(folder=tmp_path, pipeline="WanPipeline")) is None


def test_images_are_taken_by_the_class_that_takes_them() -> None:
    text, condition = (Checkpoint(folder=Path("x"), pipeline=each) for each in LTX)
    for nothing in (text, condition):
        assert with_conditions(nothing, ()) is nothing
    images = with_conditions(text, [Source.IMAGE])
    assert (images.pipeline, images.published, images.takes) == (
        "LTXImageToVideoPipeline",
        "LTXPipeline",
        ("image", "video"),
    )
    assert describe_class(images).startswith("LTXImageToVideoPipeline, as --conditions says; ")
    clips = with_conditions(condition, [Source.VIDEO])
    assert (clips.pipeline, clips.published, clips.takes) == ("LTXConditionPipeline", None, ("image", "video"))
    asked_by_itself = with_conditions(Checkpoint(folder=Path("x"), pipeline="LTXImageToVideoPipeline"), ())
    assert asked_by_itself.takes == ("image", "video")


@pytest.mark.parametrize(
    ("pipeline", "asked", "what"),
    [
        ("WanPipeline", Source.MASK, "takes video beside text"),
        ("LTXPipeline", Source.MASK, "takes image and video beside text"),
        ("LTXConditionPipeline", Source.MASK, "takes image and video beside text"),
    ],
)
def test_what_a_class_does_not_take_is_refused(pipeline: str, asked: Source, what: str) -> None:
    with pytest.raises(UsageError, match=f"--conditions {asked} was given, but a bundle of x .* {what}; leave it out."):
        with_conditions(Checkpoint(folder=Path("x"), pipeline=pipeline), [asked])
