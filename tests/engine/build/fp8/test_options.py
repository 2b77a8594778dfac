"""What ``fb-build-engines`` is told about fp8."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.conditions import (
    Condition,
    Entry,
    Source,
    control_conditions,
    image_channels_condition,
)
from flowblending.engine import cli
from flowblending.engine.build.fp8.options import PROMPTS, Fp8Options
from flowblending.engine.build.request import BuildRequest, named_models, rebuild_command
from tests.support.manifests import PIPELINE

NAMES = ("large", "small")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Fp8Options(keep="x"), "--fp8-keep x was given, but a number of blocks was expected"),
        (Fp8Options(keep="-1"), "--fp8-keep -1 was given"),
        (Fp8Options(keep="medium=1"), "--fp8-keep medium=1 was given"),
        (Fp8Options(percentile=0.0), "percentile of 0 was given"),
        (Fp8Options(percentile=100.1), "percentile of 100.1 was given"),
        (Fp8Options(percentile=float("nan")), "percentile of nan was given"),
        (Fp8Options(margin=0.9), "margin of 0.9 was given, but a factor of 1 or more"),
        (Fp8Options(margin=float("inf")), "margin of inf was given"),
        (Fp8Options(calibration=Path("c"), steps=3), "from a file, which --fp8-steps cannot change"),
        (Fp8Options(calibration=Path("c"), size="64x32"), "from a file, which --fp8-size cannot change"),
    ],
)
def test_wrong_options(options: Fp8Options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.check(("small",), "tensorrt", NAMES)


def test_options_without_fp8_are_refused() -> None:
    Fp8Options().check((), "tensorrt", NAMES)
    with pytest.raises(UsageError, match="--fp8-margin was given, but nothing is built in fp8"):
        Fp8Options(margin=1.2).check((), "tensorrt", NAMES)
    Fp8Options(calibration=Path("c"), keep="2").check(("large",), "onnxruntime", NAMES)


def test_attention_needs_fp8_and_a_compiler() -> None:
    wanted = Fp8Options(attention=True)
    wanted.check(("small",), "tensorrt-rtx", NAMES)
    with pytest.raises(UsageError, match="--fp8-attention was given, but nothing is built in fp8; add --precision fp8"):
        wanted.check((), "tensorrt-rtx", NAMES)
    with pytest.raises(UsageError, match=r"--fp8-attention was given, but onnxruntime has no .*; leave it out, or"):
        wanted.check(("small",), "onnxruntime", NAMES)
    # A calibration file has ranges for it, too.
    Fp8Options(attention=True, calibration=Path("c")).check(("small",), "tensorrt", NAMES)


def test_the_options_are_in_the_command_that_builds_again(tmp_path: Path) -> None:
    asked = BuildRequest(
        models=named_models("Org/Large", "Org/Small"),
        out=tmp_path,
        size=None,
        frames=None,
        precision="fp8",
        backend="tensorrt-rtx",
        targets=("sm89",),
        fp8=Fp8Options(attention=True, keep="1"),
    )
    command = rebuild_command(asked)
    given = cli.parser().parse_args(command[1:])
    assert (given.fp8_attention, given.fp8_keep, given.target, given.teacache) == (True, "1", "sm89", False)
    bare = rebuild_command(dataclasses.replace(asked, fp8=Fp8Options()))
    assert not cli.parser().parse_args(bare[1:]).fp8_attention
    assert set(command) - set(bare) == {"--fp8-attention", "--fp8-keep", "1"}


@pytest.mark.parametrize(
    ("text", "large", "small"),
    [(None, None, None), ("2", 2, 2), ("large=3", 3, None), ("large=3, small=0", 3, 0), ("4,small=1", 4, 1)],
)
def test_kept_blocks(text: str | None, large: int | None, small: int | None) -> None:
    options = Fp8Options(keep=text)
    assert (options.kept("large"), options.kept("small")) == (large, small)


def texts(options: Fp8Options) -> tuple[str, ...]:
    return tuple(job.prompt for job in options.read_jobs())


def test_prompts(tmp_path: Path) -> None:
    assert texts(Fp8Options()) == PROMPTS
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# not one\n a cat \n\n一只猫\n", encoding="utf-8")
    assert texts(Fp8Options(prompts=path)) == ("a cat", "一只猫")
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        Fp8Options(prompts=path).read_jobs()
    path.write_bytes(b"\xff\xfe\xfd")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(FlowBlendingError, match=r"Cannot read the prompt file .*; give a"):
            Fp8Options(prompts=wrong).read_jobs()


def test_prompts_to_calibrate_on_are_read_as_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('[\n  {"prompt_en": "a cat", "dimension": ["color"]},\n  "a dog"\n]\n')
    assert texts(Fp8Options(prompts=path)) == ("a cat", "a dog")
    for text, told in (
        ('{"prompt": "a", "seed": 3}', "Line 1 of .* sets its seed"),
        ('{\n "dimension": [\n', "a piece of a JSON document"),
        ('a cat\n{"prompt": " "}', "Line 2 of .*: The prompt is empty"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=told):
            Fp8Options(prompts=path).read_jobs()


LTX, VACE, IMAGE = (
    dataclasses.replace(PIPELINE, conditions=conditions)
    for conditions in (
        (Condition(name="held", sources=(Source.IMAGE,), enters=Entry.HELD, shape=("batch", "frames")),),
        control_conditions(96),
        (image_channels_condition(20),),
    )
)


def test_prompts_of_models_that_are_shown_something(tmp_path: Path) -> None:
    """Their images and controls lie beside the file; models that see them are calibrated on some, or not at all."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "video": "v.mp4", "mask": "m.png", "control_scale": "0.8"}\n{"prompt": "b"}\n')
    jobs = Fp8Options(prompts=path).read_jobs()
    assert (jobs[0].video, jobs[0].mask, jobs[0].control_scale) == (f"{tmp_path}/v.mp4", f"{tmp_path}/m.png", "0.8")
    for pipeline in (PIPELINE, LTX, VACE, IMAGE):
        assert Fp8Options(prompts=path).check_shown(jobs, pipeline, ["small"]) is None
    alone = Fp8Options()
    for pipeline, option in ((VACE, "video"), (IMAGE, "image")):
        said = f'small is to be in fp8 and is shown images or videos, but none of the built-in.*"{option}": "'
        with pytest.raises(UsageError, match=said):
            alone.check_shown(alone.read_jobs(), pipeline, ["small"])
        assert alone.check_shown(alone.read_jobs(), pipeline, []) is None
        given = Fp8Options(calibration=tmp_path / "calibration.json")
        assert given.check_shown(given.read_jobs(), pipeline, ["small"]) is None
    told = alone.check_shown(alone.read_jobs(), LTX, ["small"])
    assert told is not None
    assert told.startswith("fp8 is calibrated on text alone")
    assert alone.check_shown(alone.read_jobs(), PIPELINE, ["small"]) is None
