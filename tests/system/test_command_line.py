"""Options that there are not, and examples of --help."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flowblending.engine import cli as build_cli
from flowblending.engine.cli import CACHE_VARIABLE
from flowblending.runtime import run_arguments
from flowblending.runtime.calibrate import cli as calibrate_cli
from flowblending.runtime.compare import cli as compare_cli
from flowblending.runtime.serve.http import cli as serve_cli
from flowblending.runtime.serve.triton import cli as export_cli
from flowblending.runtime.serve.triton import client_cli
from flowblending.system.command_line import Parser

PARSERS = {
    "fb-run": run_arguments.parser,
    "fb-build-engines": build_cli.parser,
    "fb-calibrate": calibrate_cli.parser,
    "fb-compare": compare_cli.parser,
    "fb-export-triton": export_cli.parser,
    "fb-client": client_cli.parser,
    "fb-serve": serve_cli.parser,
}


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        ("fb-run", "wan --prompt x --stepz 3", "There is no option --stepz; --steps is probably what was meant."),
        ("fb-run", "--negativ_prompt=x", "There is no option --negativ_prompt; --negative-prompt is probably"),
        ("fb-run", "wan --num-inference-steps 3", "no option --num-inference-steps; --steps is probably"),
        ("fb-run", "wan --cfg 3", "There is no option --cfg; --guidance is probably what was meant."),
        ("fb-run", "wan --zzzz", "There is no option --zzzz; fb-run --help lists all."),
        ("fb-client", "--modle wan", "There is no option --modle; --model is probably what was meant."),
        ("fb-build-engines", "--larg x", "There is no option --larg; --large is probably what was meant."),
        ("fb-build-engines", "--cache x", "There is no option --cache; --cache-dir is probably"),
        ("fb-calibrate", "wan --promts x", "There is no option --promts; --prompts is probably what was meant."),
        ("fb-compare", "wan --shedules x", "There is no option --shedules; --schedules is probably what was meant."),
        ("fb-serve", "wan --prot 80", "There is no option --prot; --port is probably what was meant."),
        ("fb-export-triton", "wan --ouput x", "There is no option --ouput; --out is probably what was meant."),
    ],
)
def test_an_unknown_option_names_the_nearest(
    program: str, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        PARSERS[program]().parse_args(line.split())
    assert caught.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        (
            "fb-run",
            "wan --prompt x --steps abc --json",
            "--steps is 'abc', but a whole number was expected; fb-run --",
        ),
        ("fb-run", "wan --prompt x --frames 1.5", "--frames is '1.5', but a whole number was expected; fb-run --"),
        ("fb-run", "wan --prompt x --guidance high", "--guidance is 'high', but a number was expected; fb-run --"),
        (
            "fb-run",
            "wan --prompt x --cuda-graph on",
            "--cuda-graph is 'on', but one of 'auto', 'off' was expected; ",
        ),
        ("fb-run", "wan --prompt x --solver dpm", "The solver dpm is unknown; choose one of unipc, dpm++, euler"),
        ("fb-run", "wan --prompt", "--prompt has no value, but one was expected; fb-run --help lists all."),
        ("fb-run", "wan other --prompt x", "Unrecognized arguments: other; fb-run --help lists all."),
        ("fb-run", "", "The following arguments are required: BUNDLE; fb-run --help lists all."),
        ("fb-build-engines", "--large a --small b --out c --cache-dir=", "--cache-dir: a folder was expected, but its"),
        (
            "fb-calibrate",
            "wan --prompts x --by noise",
            "--by is 'noise', but one of 'steps', 'sigma' was expected; ",
        ),
        ("fb-serve", "wan --port abc", "--port is 'abc', but a whole number was expected; fb-serve --help lists all."),
        ("fb-export-triton", "wan", "The following arguments are required: --out; fb-export-triton --help lists all."),
        ("fb-client", "--prompt x", "The following arguments are required: --model; fb-client --help lists all."),
    ],
)
def test_what_is_wrong_of_a_line_is_one_sentence(
    program: str, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        PARSERS[program]().parse_args(shlex.split(line))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1
    assert told.endswith(".\n")


def test_a_folder_of_the_environment_is_no_option_that_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "/somewhere/else")
    parser = build_cli.parser()
    build_cli.check(parser, parser.parse_args(["--prove", "wan"]))
    with pytest.raises(SystemExit):
        build_cli.check(parser, parser.parse_args(["--prove", "wan", "--cache-dir", "other"]))
    assert capsys.readouterr().err == "error: --prove builds nothing; leave out --cache-dir.\n"
    assert parser.parse_args(["--list-cache"]).cache_dir == Path("/somewhere/else")


def test_what_is_an_option_is_taken_as_before() -> None:
    parser = Parser(prog="x")
    parser.add_argument("--steps", type=int)
    parser.add_argument("rest", nargs="*")
    assert vars(parser.parse_args(["--ste", "3"])) == {"steps": 3, "rest": []}
    assert vars(parser.parse_args(["--steps=3", "--", "--other"])) == {"steps": 3, "rest": ["--other"]}
    assert parser.parse_args(["--two words, no option"]).rest == ["--two words, no option"]


@pytest.mark.parametrize("program", PARSERS)
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_examples_can_be_pasted(program: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, example = PARSERS[program]().format_help().split("example:\n")
    lines = example.replace("\\\n", " ").strip().splitlines()
    words = shlex.split(lines[0])
    assert words[0] == program
    PARSERS[program]().parse_args(words[1:])
    assert all(len(line) <= 80 for line in example.splitlines())
