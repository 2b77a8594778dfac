from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import PromptLine, read_jobs

DEFAULTS = Job(prompt="", seed=7, steps=4)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return path


def prompts(tmp_path: Path, text: str) -> list[str]:
    return [
        line.job.prompt if line.job else f"error: {line.error}" for line in read_jobs(write(tmp_path, text), DEFAULTS)
    ]


def test_plain_lines_and_json_lines(tmp_path: Path) -> None:
    text = '# mine\na cat\n\n{"prompt": "一只猫 🐈", "seed": 3, "guidance": 4, "schedule": "L2 S2"}\n'
    first, second = read_jobs(write(tmp_path, text), DEFAULTS)
    assert (first.number, first.job) == (2, Job(prompt="a cat", seed=7, steps=4))
    assert second.job == Job(prompt="一只猫 🐈", seed=3, steps=4, guidance=4, schedule="L2 S2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "x", "stepz": 3}',
            "Unknown option 'stepz'; steps is probably what was meant, and known are prompt",
        ),
        ('{"prompt": "x", "steps": "3"}', "steps is '3', but a whole number of steps, at least 1, was expected"),
        ('{"prompt": "x", "steps": true}', "steps is True, but a whole number of steps, at least 1, was expected"),
        ('{"prompt": "x", "cache": null}', "cache is None, but a text was expected"),
        ('{"seed": 3}', "The line has no prompt"),
        ('{"prompt": " \\u200b\\t"}', "The prompt is empty; say what the video shows"),
        ('{"prompt": ', "The line is no JSON object"),
    ],
)
def test_a_bad_line_is_reported_and_the_others_stay(tmp_path: Path, line: str, message: str) -> None:
    good, bad, last = read_jobs(write(tmp_path, f"one\n{line}\ntwo\n"), DEFAULTS)
    assert (good.job, last.job) == (Job(prompt="one", seed=7, steps=4), Job(prompt="two", seed=7, steps=4))
    assert bad.job is None
    assert bad.error is not None
    assert message in bad.error


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="holds no prompt; write one prompt a line"):
        read_jobs(write(tmp_path, text), DEFAULTS)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match="Cannot read the prompt file"):
        read_jobs(tmp_path / "none.txt", DEFAULTS)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(FlowBlendingError, match="UTF-8"):
        read_jobs(tmp_path / "latin.txt", DEFAULTS)


def test_byte_order_marks_and_line_separators(tmp_path: Path) -> None:
    (tmp_path / "bom.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8-sig")
    (line,) = read_jobs(tmp_path / "bom.jsonl", DEFAULTS)
    assert line.job is not None
    assert line.job.prompt == "a\u2028b"


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_of_texts_or_objects(tmp_path: Path, indent: int | None) -> None:
    entries = ["# one", {"prompt": "two", "seed": 3, "frame_rate": 24}, "[three]"]
    lines = read_jobs(write(tmp_path, json.dumps(entries, indent=indent)), DEFAULTS)
    assert lines == [
        PromptLine(number=1, job=Job(prompt="# one", seed=7, steps=4), given=frozenset({"prompt"})),
        PromptLine(
            number=2,
            job=Job(prompt="two", seed=3, steps=4, frame_rate=24.0),
            given=frozenset({"prompt", "seed", "frame_rate"}),
        ),
        PromptLine(number=3, job=Job(prompt="[three]", seed=7, steps=4), given=frozenset({"prompt"})),
    ]


def test_the_list_of_vbench(tmp_path: Path) -> None:
    """As VBench_full_info.json is: an array of objects."""
    entries = [
        {"prompt_en": "a person swimming in ocean", "dimension": ["subject_consistency", "motion_smoothness"]},
        {"prompt_en": "a bird and a cat", "dimension": ["multiple_objects"], "auxiliary_info": {"object": "bird"}},
    ]
    assert prompts(tmp_path, json.dumps(entries, indent=4)) == ["a person swimming in ocean", "a bird and a cat"]
    lines = "\n".join(map(json.dumps, entries))
    assert prompts(tmp_path, lines) == ["a person swimming in ocean", "a bird and a cat"]
    mixed = [{"prompt": "x", "dimension": []}, {"prompt_en": " "}]
    unknown, blank = prompts(tmp_path, json.dumps(mixed))
    assert unknown.startswith("error: Unknown option 'dimension'")
    assert blank == "error: The prompt is empty; say what the video shows."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            json.dumps({"prompt": "a cat", "seed": 3}, indent=2),
            "Line 1 of the prompt file .* is a piece of a JSON",
        ),
        ('{"prompt": "a",\n "seed": 3}\n', "Line 1 of .* is a piece of a JSON document"),
        ('a cat\n{"prompt": "a",\n "seed": 3}\n', "Line 2 of .* is a piece of a JSON document"),
        (json.dumps({"prompts": ["a", "b"]}, indent=2), "Line 1 of .* is a piece of a JSON document"),
        ('{\n"prompt": "a cat"\n', "Line 1 of .* is a piece of a JSON document"),
        ('"prompt": "a cat"\n}, {\n', "Line 2 of .* is a piece of a JSON document"),
        ('["a", "b",]', "begins a JSON array that is none"),
        ('[\n  "a",\n  "b"\n', "begins a JSON array that is none"),
        ('[{"prompt": "a"}\n{"prompt": "b"}]', "begins a JSON array that is none"),
        ("[1, 2]", r"Entry 1 of the JSON array .* is 1, but a prompt or an object"),
        ('["a", null]', r"Entry 2 of the JSON array .* is null, but"),
        ('["a", ["b"]]', r'Entry 2 of the JSON array .* is \["b"\], but'),
        ("[]", "holds no prompt"),
        ("a\0 \0c\0a\0t\0", "holds zero bytes"),
    ],
)
def test_a_document_of_another_kind_is_refused_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_jobs(write(tmp_path, text), DEFAULTS)
    assert "\n" not in str(caught.value)


def test_prompts_that_look_like_something_else(tmp_path: Path) -> None:
    text = '[wide shot] a cat walks\n[[b]] x\n"quoted" x\n["a", "b"]\n{a} cat\n'
    found = prompts(tmp_path, text)
    assert found[:3] == ["[wide shot] a cat walks", "[[b]] x", '"quoted" x']
    assert found[3] == "error: The line is a JSON array, but one prompt or object a line was expected; split it."
    assert found[4].startswith("error: The line is no JSON object")


def test_lines_left_out_are_counted_and_the_way_to_keep_them_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    lines = read_jobs(write(tmp_path, '# one\na\n #two\n{"prompt": "#three"}\n'), DEFAULTS, told.append)
    assert [line.job.prompt for line in lines if line.job] == ["a", "#three"]
    (sentence,) = told
    assert (
        '2 lines beginning with # left out as comments; write a prompt that begins so as {"prompt": "#..."}' in sentence
    )
    read_jobs(write(tmp_path, "a\nb\n"), DEFAULTS, told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fps", "frame_rate (of frames per second)"),
        ("num_inference_steps", "steps"),
        ("guidance_scale", "guidance"),
        ("num_frames", "frames"),
        ("negative", "negative_prompt"),
        ("Negative-Prompt", "negative_prompt"),
        ("sheduler", "solver"),
        ("schedul", "schedule"),
        ("promt", "prompt"),
        ("height", "size"),
    ],
)
def test_an_unknown_field_names_the_one_that_was_meant(tmp_path: Path, name: str, meant: str) -> None:
    (found,) = prompts(tmp_path, json.dumps({"prompt": "x", name: 3}))
    assert found.startswith(
        f"error: Unknown option {name!r}; {meant} is probably what was meant, and known are prompt,"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt,seed\na cat,3\n", "a table with a heading"),
        ('"seed";"caption"\n3;"a cat"\n', "a table with a heading"),
        ("text\na cat\n", "a table with a heading"),
        ("---\n- prompt: a cat\n", "YAML"),
        ("# mine\nprompts:\n  - a cat\n", "YAML"),
        ("- prompt: a cat\n  seed: 3\n", "YAML"),
        ("- a cat\n\n- a dog\n", "a list with marks"),
        ("* a cat\n", "a list with marks"),
        ("```\na cat\n```\n", "Markdown"),
    ],
)
def test_lists_and_tables_of_other_formats_are_refused_once(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"begins as {told} does") as error:
        read_jobs(write(tmp_path, text), DEFAULTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["text", "prompt engineers at work, at night\na cat\n", "- a cat\na dog\n", "cat, dog, bird\nwolf\n"]
)
def test_prompts_that_only_look_like_another_format(tmp_path: Path, text: str) -> None:
    assert prompts(tmp_path, text) == text.strip().split("\n")


def test_json_strings_and_other_values_a_line(tmp_path: Path) -> None:
    text = '"a \\"big\\" cat"\n"Stop" says a sign\nnull\n3\n'
    first, second, *others = prompts(tmp_path, text)
    assert (first, second) == ('a "big" cat', '"Stop" says a sign')
    assert [other.partition("; ")[0] for other in others] == [
        f"error: The line is the JSON value {value}" for value in ("null", "3")
    ]


@pytest.mark.parametrize("text", ['{"prompt": "a", "seed": 1, "seed": 2}', '[{"prompt": "a", "prompt": "b"}]'])
def test_a_field_that_is_there_twice_is_refused(tmp_path: Path, text: str) -> None:
    twice = "seed" if "seed" in text else "prompt"
    if text.startswith("["):
        with pytest.raises(UsageError, match=f"'{twice}' is there twice"):
            read_jobs(write(tmp_path, text), DEFAULTS)
    else:
        assert f"'{twice}' is there twice" in prompts(tmp_path, text)[0]
