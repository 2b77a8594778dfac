"""Code in the documents: every block, with the page and the line it stands at."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "runtime/cpp/*.md", "benchmarks/*/*.md")
    for path in ROOT.glob(pattern)
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: ``language`` is what stands behind the fence."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a block, and what the page says that it prints; empty where it says nothing."""

    block: Block
    words: tuple[str, ...]
    output: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.block}: {shlex.join(self.words)}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in one of the languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(page=page, line=line, language=match[1], text=match[2]))
    return found


def commands(program: str) -> list[Command]:
    """Every call of a program of ours (``fb-run``) in ``sh`` and ``console`` blocks; none with ``...`` in it."""
    found = []
    for block in blocks("sh", "console"):
        for line, output in _lines(block):
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                words.pop(0)
            if words and Path(words[0]).name == program and "..." not in words:
                found.append(Command(block=block, words=tuple(words[1:]), output=output))
    return found


def _lines(block: Block) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Command lines, put together over backslashes; each with its output in a console block."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        for line in text.splitlines():
            # A pipe and what follows is the shell's.
            yield line.split(" | ")[0], ()
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *output = part.splitlines()
        yield line, tuple(each for each in output if each.strip())
