"""The table of options, and that every way in is made from it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime import arguments, options, run_arguments
from flowblending.runtime.api import VideoSampler
from flowblending.runtime.calibrate import cli as calibrate_cli
from flowblending.runtime.compare import cli as compare_cli
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.option import CALIBRATE, CLIENT, COMPARE, PROGRAMS, RUN, Option
from flowblending.runtime.option_values import COMMAND_LINE, HTTP, PROMPT_FILE, PYTHON, TRITON, make_job, read_options
from flowblending.runtime.options import HOW, Job, JobOptions
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.prompt_file import parse_jobs
from flowblending.runtime.serve.http.schema import request_schema
from flowblending.runtime.serve.triton import client_cli
from flowblending.runtime.serve.triton.client_request import request_inputs
from flowblending.runtime.serve.triton.config import Placement, QueuePolicy, video_config
from flowblending.runtime.serve.triton.request import read_request
from flowblending.runtime.serve.triton.signature import MP4
from tests.support import manifests

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    RUN: run_arguments.parser,
    CALIBRATE: calibrate_cli.parser,
    COMPARE: compare_cli.parser,
    CLIENT: client_cli.parser,
}
LINES = {
    RUN: ["bundle", "--prompt", "x"],
    CALIBRATE: ["bundle", "--prompts", "x"],
    COMPARE: ["bundle", "--prompts", "x"],
    CLIENT: ["--model", "x", "--prompt", "x"],
}


@dataclass(frozen=True, kw_only=True)
class ToyJob(Job):
    """A job with one option more."""

    shininess: Annotated[
        int | None,
        Option(
            section=HOW,
            help="how much it glitters",
            metavar="N",
            unit="sparks",
            least=2,
            most=9,
            example=4,
            aliases=("glitter",),
        ),
    ] = None


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "JOB", ToyJob)


def sampler(tmp_path: Path) -> VideoSampler:
    manifests.write(tmp_path / "bundle")
    return VideoSampler(Pipeline(bundle=open_bundle(tmp_path / "bundle"), device=HostDevice()))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_one_more_option_is_on_every_command_line(program: str) -> None:
    parser = PARSERS[program]()
    assert "--shininess N" in parser.format_help()
    assert "how much it glitters" in parser.format_help()
    parsed = parser.parse_args([*LINES[program], "--shininess", "5"])
    assert arguments.given(parsed, program)["shininess"] == 5
    wrong = parser.parse_args([*LINES[program], "--shininess", "1"])
    with pytest.raises(
        UsageError, match=r"^--shininess is 1, but a whole number of sparks from 2 to 9 was expected; give "
    ):
        arguments.given(wrong, program)


@pytest.mark.usefixtures("toy")
def test_one_more_option_is_in_prompt_files_the_api_and_triton(tmp_path: Path) -> None:
    defaults = make_job({"prompt": "", "shininess": 3})
    own, plain, wrong, meant = parse_jobs(
        '{"prompt": "x", "shininess": 5}\nx\n{"prompt": "x", "shininess": 10}\n{"prompt": "x", "glitter": 5}',
        tmp_path,
        defaults,
    )
    assert (own.job, plain.job) == (ToyJob(prompt="x", shininess=5), ToyJob(prompt="x", shininess=3))
    sentence = "shininess is 10, but a whole number of sparks from 2 to 9 was expected; give %s, for example."
    assert wrong.error == sentence % '"shininess": 4'
    assert "shininess (of sparks) is probably what was meant" in str(meant.error)

    with sampler(tmp_path) as opened:
        generation = opened.generate("x", shininess=5)  # type: ignore[call-arg]  # known while the test runs
        assert generation._run._job == ToyJob(prompt="x", shininess=5)
        with pytest.raises(UsageError) as caught:
            opened.generate("x", shininess=10)  # type: ignore[call-arg]
        assert str(caught.value) == sentence % "shininess=4"
        manifest = opened.manifest

    config = video_config("wan", manifest, QueuePolicy(), Placement())
    assert 'input { name: "shininess" data_type: TYPE_INT32 dims: [ 1 ] optional: true }' in config
    given = {"prompt": np.array([b"x"], np.object_), "shininess": np.array([5], np.int32)}
    assert read_request(given, manifest).job == ToyJob(prompt="x", shininess=5)
    parsed = client_cli.parser().parse_args([*LINES[CLIENT], "--shininess", "5"])
    sent = request_inputs(arguments.given(parsed, CLIENT), [MP4])
    assert sent["shininess"].dtype == np.dtype(np.int32)
    assert sent["shininess"].tolist() == [5]


def test_keywords_of_the_api_are_the_fields_of_a_job() -> None:
    fields = get_type_hints(Job)
    # Of what may be given several times, one alone is taken, too.
    several = {option.name: str | Sequence[str] for option in options.options() if option.several}
    assert get_type_hints(JobOptions) == {
        name: several.get(name, kind) for name, kind in fields.items() if "prompt" not in name
    }
    assert {option.name for option in options.options()} == fields.keys()


def test_every_option_can_be_told_about_and_its_example_is_allowed() -> None:
    for option in options.options():
        assert option.help
        for front in (COMMAND_LINE, PROMPT_FILE, PYTHON, TRITON):
            if not front.offers(option):
                with pytest.raises(UsageError, match=f"Unknown input '{option.name}'"):
                    read_options({option.name: option.example}, front)
                continue
            read = (option.example,) if option.several else option.example
            assert read_options({option.name: option.example}, front) == {option.name: read}
            assert front.give(option).count(front.call(option)) == 1
    assert next(each.registry for each in options.options() if each.name == "solver") is SOLVERS


def test_servers_offer_nothing_that_names_a_file_of_their_machine(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    kept = {option.name for option in options.options() if not option.served}
    assert {option.name for option in options.options() if option.file} <= kept
    assert "video" in kept
    config = video_config("wan", manifest, QueuePolicy(), Placement())
    schema = request_schema()["properties"]
    for name in kept:
        # Triton takes a file's content.
        assert f'input {{ name: "{name}" data_type: TYPE_STRING' in config
        given = {"prompt": np.array([b"x"], np.object_), name: np.array([b"/etc/passwd"], np.object_)}
        request = read_request(given, manifest)
        assert not getattr(request.job, name)
        assert [each.content for each in request.uploads[name]] == [b"/etc/passwd"]
        assert name not in schema
        for front in (TRITON, HTTP):
            with pytest.raises(UsageError, match=f"^Unknown (input|field) '{name}'"):
                read_options({name: "/etc/passwd"}, front)


def test_what_a_program_offers() -> None:
    flags = {name: set(parser()._option_string_actions) for name, parser in PARSERS.items()}
    for option in options.options():
        for program in option.programs:
            assert option.option in flags[program]
    assert "--negative-prompt" in flags[CALIBRATE]
    assert {"--batched-guidance", "--no-batched-guidance"} <= flags[COMPARE] & flags[CALIBRATE]
    assert {"--schedule", "--prompt"} & (flags[CALIBRATE] | flags[COMPARE]) == set()


WRONG: list[tuple[dict[str, object], str]] = [
    ({"steps": 0}, "steps is 0, but a whole number of steps, at least 1, was expected; give steps=50, for example."),
    ({"steps": 3.0}, "steps is 3.0, but a whole number of steps"),
    ({"steps": True}, "steps is True, but a whole number of steps"),
    ({"steps": "3"}, "steps is '3', but a whole number of steps"),
    ({"frames": -9}, "frames is -9, but a whole number of frames, at least 1, was expected; give frames=81"),
    ({"seed": -1}, "seed is -1, but a whole number from 0 to 18446744073709551615 was expected; give seed=42"),
    ({"seed": 2**64}, "seed is 18446744073709551616, but a whole number from 0 to 18446744073709551615 was"),
    ({"seed": 10**5000}, "seed is a number of thousands of digits, but a whole number from 0 to"),
    ({"seed": None}, "seed is None, but a whole number from 0 to"),
    ({"frame_rate": 0.5}, "frame_rate is 0.5, but a finite number of frames per second from 1 to 1000 was expected"),
    ({"frame_rate": 1001}, "frame_rate is 1001, but a finite number of frames per second from 1 to 1000"),
    ({"guidance": float("inf")}, "guidance is inf, but a finite number was expected; give guidance=5.0"),
    ({"guidance": 10**400}, "guidance is 1000000000"),
    ({"guidance": False}, "guidance is False, but a finite number"),
    ({"batched_guidance": 1}, "batched_guidance is 1, but true or false was expected; give batched_guidance=True"),
    ({"solver": "heun"}, "The solver heun is unknown; choose one of unipc, dpm++, euler."),
    ({"size": (64, 32)}, "size is (64, 32), but a text was expected; give size='832x480'"),
    ({"prompt": "\u200b \n"}, "The prompt is empty; say what the video shows."),
    ({"prompt": "\ud83d"}, "prompt is not valid Unicode; write it in UTF-8."),
    ({"negative_prompt": b"x"}, "negative_prompt is b'x', but a text was expected"),
    ({"num_inference_steps": 3}, "Unknown argument 'num_inference_steps'; steps is probably what was meant"),
    ({"colour": 3}, "Unknown argument 'colour'; known are prompt, negative_prompt, seed"),
    (
        {"prompt": ["a cat", "a dog"]},
        "prompt is ['a cat', 'a dog'], but one text was expected; write a loop, "
        "for prompt in prompts: sampler.generate(prompt=prompt).",
    ),
    ({"negative_prompt": ("a",)}, "negative_prompt is ('a',), but one text was expected; write a loop, for negative_"),
    (
        {"seed": np.arange(2)},
        "seed is array([0, 1]), but one number was expected; write a loop, for seed in seeds: ",
    ),
    ({"prompt": []}, "prompt is [], but a text was expected"),
    ({"prompt": ["a", None]}, "prompt is ['a', None], but a text was expected"),
    ({"prompt": {"a": 1}}, "prompt is {'a': 1}, but a text was expected"),
    ({"prompt": np.array("a")}, "prompt is array('a', dtype='<U1'), but a text was expected"),
    ({"cache": None}, "cache is None, but a text was expected; give cache='scm:slow'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_values_are_one_sentence(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(values, PYTHON)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400
    assert str(caught.value).endswith(".")


def test_values_at_the_bounds_and_of_numpy() -> None:
    values = {"seed": np.uint64(2**64 - 1), "steps": np.int32(1), "frame_rate": np.float32(1), "guidance": 4}
    found = read_options(values | {"batched_guidance": np.bool_(True), "negative_prompt": ""}, PYTHON)
    job = make_job({"prompt": "x", **found})
    assert job == Job(
        prompt="x", negative_prompt="", seed=2**64 - 1, steps=1, frame_rate=1.0, guidance=4.0, batched_guidance=True
    )
    assert json.dumps(dataclasses.asdict(job))
    assert (type(job.guidance), type(job.seed)) == (float, int)
    assert read_options({"seed": 0, "frame_rate": 1000, "size": None}, PYTHON) == {
        "seed": 0,
        "frame_rate": 1000.0,
        "size": None,
    }


def test_the_api_checks_names_types_and_ranges_at_once(tmp_path: Path) -> None:
    with sampler(tmp_path) as opened:
        for wrong, message in (
            ({"guidance_scale": 3.0}, "Unknown argument 'guidance_scale'; guidance is probably what was meant"),
            ({"steps": 2.5}, "steps is 2.5, but a whole number"),
            ({"seed": -1}, "seed is -1, but"),
            ({"prompt": " "}, "The prompt is empty"),
            ({"prompt": None}, "prompt is None, but a text was expected"),
            ({"prompt": ["a", "b"]}, "write a loop, for prompt in prompts"),
        ):
            with pytest.raises(UsageError, match=message):
                opened.generate(**{"prompt": "x", **wrong})  # type: ignore[arg-type]  # what the check is for
        for text, message in (
            (None, "text is None, but a text was expected; give text='A cat walks on the grass'"),
            (b"a", "text is b'a', but a text was expected"),
            (["a", "b"], r"one text was expected; write a loop, for text in texts: sampler\.encode\(text\)"),
        ):
            with pytest.raises(UsageError, match=message):
                opened.encode(text)  # type: ignore[arg-type]  # what the check is for
        assert opened.generate("x", steps=3, seed=2**64 - 1).program.steps[-1].sigma > 0
