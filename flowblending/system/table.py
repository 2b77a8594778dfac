"""Tables in plain text that fit a width: nothing is ever cut, and names least of all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

GAP = 2
SHORT = 32
"""Of a cell that may stand in a table: longer ones are sentences, and belong in a list."""

Row = Sequence[str]


def table_lines(columns: Row, rows: Sequence[Row], width: int) -> list[str]:
    """A table as lines: the first column aligned to the left, all others to the right, empty ones left out.

    What is too wide becomes several tables one below the other, each with the first column. Where that would not tell
    the rows apart, or a cell is a sentence, it becomes a list: every row's name, and below it what it has by the
    column's name.

    Args:
        columns: their names, of which the last may be empty, for remarks.
        width: in columns of a terminal.
    """
    there = [index for index in range(len(columns)) if not rows or any(row[index] for row in rows)]
    columns, rows = [columns[index] for index in there], [[row[index] for index in there] for row in rows]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    if sum(widths) + GAP * (len(widths) - 1) <= width:
        return _aligned(columns, rows, range(len(columns)), widths)
    unique = len({row[0] for row in rows}) == len(rows)
    parts = list(_parts(columns, widths, width))
    fits = all(widths[0] + sum(GAP + widths[each] for each in part) <= width for part in parts)
    if not (unique and fits and max(widths[1:]) <= SHORT):
        return [line for row in rows for line in _listed(columns, row, width)]
    return [
        line
        for number, part in enumerate(parts)
        for line in ([""] * bool(number) + _aligned(columns, rows, [0, *part], widths))
    ]


def _aligned(columns: Row, rows: Sequence[Row], taken: Sequence[int], widths: Sequence[int]) -> list[str]:
    return [(" " * GAP).join(_padded(row[at], widths[at], at) for at in taken).rstrip() for row in (columns, *rows)]


def _padded(cell: str, width: int, column: int) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if column else cell + space


def _parts(columns: Row, widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Columns beside the first one, as many at a time as there is room for; remarks stay beside what they are on."""
    part: list[int] = []
    for column in range(1, len(widths)):
        added = [column, *(column + 1 for name in columns[column + 1 : column + 2] if not name)]
        if part and columns[column] and widths[0] + sum(GAP + widths[each] for each in (*part, *added)) > width:
            yield part
            part = []
        part.append(column)
    yield part


def _listed(columns: Row, row: Row, width: int) -> Iterator[str]:
    yield row[0]
    for name, cell in zip(columns[1:], row[1:], strict=True):
        if cell:
            text = f"{name}: {cell}" if name else cell
            yield from textwrap.wrap(
                text,
                width,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
