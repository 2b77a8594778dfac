"""Files of many prompts: a prompt a line, a JSON object a line, or one JSON array of either."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.option_values import PROMPT_FILE, make_job, read_options
from flowblending.runtime.options import Job, options

COMMENT = "#"
_BENCHMARK_PROMPT = "prompt_en"
_BENCHMARK_FIELDS = frozenset({"dimension", "auxiliary_info"})
"""What VBench's own list of prompts says beside them, for its scores alone."""

_ARRAY = re.compile(r'\[\s*(["{]|$)', re.MULTILINE)
"""How an array begins, unlike a prompt such as ``[wide shot] a cat walks``."""
_PIECE = re.compile(r"[\[\]{},\s]+")


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A line of a prompt file, or an entry of its array.

    Attributes:
        number: from 1 on.
        job: None if there is none.
        error: why there is none.
        given: the fields that the line itself sets.
    """

    number: int
    job: Job | None = None
    error: str | None = None
    given: frozenset[str] = frozenset()


def read_jobs(path: Path, defaults: Job, tell: Callable[[str], None] | None = None) -> list[PromptLine]:
    """The jobs of a prompt file, which may be a pipe and is read once; see `parse_jobs`.

    Raises:
        FlowBlendingError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FlowBlendingError(f"Cannot read the prompt file {path} ({error.strerror}); give another file.") from None
    except UnicodeDecodeError as error:
        raise FlowBlendingError(f"Cannot read the prompt file {path} ({error}); give a UTF-8 text file.") from None
    return parse_jobs(text, path, defaults, tell)


def parse_jobs(text: str, path: Path, defaults: Job, tell: Callable[[str], None] | None = None) -> list[PromptLine]:
    """The jobs of a prompt file's text: a prompt a line, or a JSON object a line with a job's fields.

    One JSON array of texts or of objects is taken for as many lines; VBench's own list is one. A line or an entry
    that is no job is returned with its error, so that the others still run. Empty lines and lines that start with
    ``#`` are left out; the latter are prompts in JSON.

    Args:
        path: of it, for the messages.
        defaults: of the fields that a line does not set.
        tell: told how many lines that start with ``#`` were left out.

    Raises:
        UsageError: it holds no prompt at all, or is a JSON document of another kind.
    """
    if "\0" in text:
        raise UsageError(f"The prompt file {path} holds zero bytes, as no text does; save it as UTF-8 text.")
    entries = _array(text, path)
    folder = path.parent if path.is_file() else Path()  # a pipe lies nowhere
    if entries is not None:
        lines = [_line(number, entry, defaults, folder) for number, entry in enumerate(entries, start=1)]
    else:
        _check_lines(text, path)
        lines = list(_lines(text, defaults, folder))
        left_out = sum(line.lstrip().startswith(COMMENT) for line in text.split("\n"))
        if left_out and tell is not None:
            tell(
                f"{path}: {left_out} line{'s' * (left_out > 1)} beginning with {COMMENT} left out as comments; write "
                f'a prompt that begins so as {{"prompt": "{COMMENT}..."}}'
            )
    if not lines:
        raise UsageError(f"The prompt file {path} holds no prompt; write one prompt a line.")
    return lines


def plain_jobs(lines: Sequence[PromptLine], path: Path, reason: str) -> list[Job]:
    """The jobs of all lines, where schedule, boundaries and cache are not a line's to say.

    Args:
        lines: of a prompt file.
        path: of it, for the errors.
        reason: why not, as the end of a sentence; ``{}`` stands for the field.

    Raises:
        UsageError: a line is no job, or says one of them.
    """
    jobs = []
    for line in lines:
        if line.job is None:
            raise UsageError(f"Line {line.number} of {path}: {line.error}")
        for option in options():
            if option.name in ("schedule", "boundaries", "cache") and getattr(line.job, option.name) != option.default:
                raise UsageError(
                    f"Line {line.number} of {path} sets its {option.name}, {reason.format(option.name)}; "
                    "leave it out there."
                )
        jobs.append(line.job)
    return jobs


def _array(text: str, path: Path) -> list[Any] | None:
    """The entries of a file that is one JSON array, and None for another file."""
    content = text.strip()
    if not content.startswith("["):
        return None
    try:
        entries = json.loads(content, object_pairs_hook=_fields)
    except (ValueError, RecursionError) as error:
        if not _ARRAY.match(content):
            return None
        raise UsageError(
            f"The prompt file {path} begins a JSON array that is none ({error}); mend it, or write one prompt a line."
        ) from None
    if not isinstance(entries, list):
        return None
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str | dict):
            raise UsageError(
                f"Entry {number} of the JSON array {path} is {json.dumps(entry)[:40]}, but a prompt or an object with "
                'a prompt was expected; write ["...", ...] or [{"prompt": "..."}, ...].'
            )
    return entries


def _check_lines(text: str, path: Path) -> None:
    """Refuse a JSON document that is spread over lines: its pieces would become prompts.

    Raises:
        UsageError: it is one.
    """
    _check_format(text, path)
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if content and (_PIECE.fullmatch(content) or (content.startswith("{") and _goes_on(text, start, line))):
            raise UsageError(
                f"Line {number} of the prompt file {path} is a piece of a JSON document ({content[:40]}); write one "
                "object a line, or one array of prompts or of objects."
            )
        start += len(line) + 1


def _check_format(text: str, path: Path) -> None:
    """Refuse the lists and tables of other formats, whose marks and headings would become prompts.

    Raises:
        UsageError: it is one of them.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line and not line.startswith(COMMENT)]
    found = next((name for name, is_one in _FORMATS.items() if lines and is_one(lines)), None)
    if found is not None:
        raise UsageError(
            f"The prompt file {path} begins as {found} does ({lines[0][:40]}), whose marks would become prompts; write "
            "one prompt a line, or one JSON object a line."
        )


def _is_table(lines: Sequence[str]) -> bool:
    cells = [cell.strip().strip('"').lower() for cell in re.split("[,;\t|]", lines[0])]
    return bool(_HEADINGS.intersection(cells)) and len(lines) > 1 and all(map(str.isidentifier, cells))


_HEADINGS = frozenset({"prompt", "prompts", "caption", "text"})
_FORMATS: dict[str, Callable[[Sequence[str]], bool]] = {
    "a table with a heading": _is_table,
    "YAML": lambda lines: lines[0] == "---" or re.match("(- )?prompts?:", lines[0]) is not None,
    "Markdown": lambda lines: lines[0].startswith("```"),
    "a list with marks": lambda lines: any(all(line.startswith(mark) for line in lines) for mark in ("- ", "* ")),
}
"""What else holds prompts, and how it begins."""


def _goes_on(text: str, start: int, line: str) -> bool:
    """Whether the JSON object that begins with a line, at a place of the text, ends after that line."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        pass
    else:
        return False
    try:
        json.JSONDecoder().raw_decode(text, start + line.index("{"))
    except (ValueError, RecursionError):
        return False
    return True


def _lines(text: str, defaults: Job, folder: Path) -> Iterator[PromptLine]:
    # Not splitlines: a JSON string may hold Unicode's own line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if not content or content.startswith(COMMENT):
            continue
        try:
            entry = _json(content) if content.startswith("{") or _ARRAY.match(content) else _plain(content)
            if isinstance(entry, list):
                raise UsageError("The line is a JSON array, but one prompt or object a line was expected; split it.")
        except UsageError as error:
            yield PromptLine(number=number, error=str(error))
        else:
            yield _line(number, entry, defaults, folder)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which each field is there once: of two values, either may be the one that was meant.

    Raises:
        ValueError: one is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"{twice!r} is there twice")
    return found


def _plain(line: str) -> str:
    """A line's prompt: the line itself, or the text of a JSON string, as ``jq`` writes one a line.

    Raises:
        UsageError: it is another JSON value.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if isinstance(value, str):
        return value
    raise UsageError(f'The line is the JSON value {line[:40]}; write {{"prompt": "{line[:40]}"}} if it is a prompt.')


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The line is no JSON object ({error}); write one object or one prompt a line.") from None


def _line(number: int, entry: str | dict[str, Any], defaults: Job, folder: Path) -> PromptLine:
    """A prompt, or an object with a job's fields, as a line; files that it names lie beside the prompt file."""
    try:
        values = {"prompt": entry} if isinstance(entry, str) else _values(entry)
        fields = read_options(values, PROMPT_FILE)
        if "prompt" not in fields:
            raise UsageError('The line has no prompt; write {"prompt": "..."}.')
        for option in options():
            if option.file and fields.get(option.name) is not None:
                named = fields[option.name]
                beside = tuple(str(folder / each) for each in named) if option.several else str(folder / named)
                fields[option.name] = beside
    except UsageError as error:
        return PromptLine(number=number, error=str(error))
    job = make_job({each.name: getattr(defaults, each.name) for each in dataclasses.fields(defaults)} | fields)
    return PromptLine(number=number, job=job, given=frozenset(fields))


def _values(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of an object; of an entry of VBench's list, the prompt."""
    if _BENCHMARK_PROMPT not in entry or "prompt" in entry:
        return entry
    rest = {name: value for name, value in entry.items() if name not in _BENCHMARK_FIELDS}
    return {"prompt": rest.pop(_BENCHMARK_PROMPT), **rest}
