"""Tables fit the width, and every name and figure of them is there whole."""

from __future__ import annotations

import itertools

import pytest
from rich.cells import cell_len

from flowblending.system.table import table_lines

COLUMNS = ("run", "PSNR (dB)", "SSIM", "time (s)", "speed-up", "FLOPs", "")
ROWS = [
    ("LLL", "equal", "1.000", "12.3", "1.00x", "100.0 %", ""),
    ("L20 S20 L10 + magcache:0.12,4", "34.0", "0.982", "4.56", "2.69x", "31.6 %", "chosen"),
    ("影片 + scm:slow", "33.9", "0.981", "5.01", "2.45x", "40.0 %", ""),
]


def test_what_fits_is_one_table_aligned_in_columns() -> None:
    assert table_lines(("step", "sigma", ""), [("1", "1.0", "kept"), ("10", "0.25", "")], 20) == [
        "step  sigma",
        "1       1.0  kept",
        "10     0.25",
    ]
    wide = table_lines(COLUMNS, ROWS, 200)
    assert len(wide) == 1 + len(ROWS)
    assert table_lines(("a", "b", "c"), [("1", "", "3")], 20) == ["a  c", "1  3"]
    # A letter of two columns is two wide.
    ends = {
        cell_len(line[: line.index(figure) + len(figure)])
        for line, figure in zip(wide[1:], ("equal", "34.0", "33.9"), strict=True)
    }
    assert len(ends) == 1


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_nothing_is_cut_and_nothing_is_too_wide(width: int) -> None:
    lines = table_lines(COLUMNS, ROWS, width)
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines)
    for row in ROWS:
        assert all(cell in words for cell in row)
    assert all(name in words for name in COLUMNS)
    # Every part begins with the whole names.
    for row in ROWS:
        assert sum(line.startswith(row[0]) for line in lines) == sum(line.startswith("run ") for line in lines)


@pytest.mark.parametrize("kind", ["a sentence", "names that are the same"])
def test_sentences_and_rows_without_names_of_their_own_become_a_list(kind: str) -> None:
    layers = "123 bf16 97.9%, 4 fp32 2.1%, and 300 more that are not told one by one"
    cells = ("all", layers) if kind == "a sentence" else ("x" * 20, "y" * 20)
    rows = [("large", *cells, "12.3 MB"), ("large" if kind != "a sentence" else "small", *cells, "")]
    lines = table_lines(("component", "kind", "layers", "weights"), rows, 40)
    assert [line for line in lines if not line.startswith(" ")] == [row[0] for row in rows]
    assert lines.count("  weights: 12.3 MB") == 1
    assert max(map(len, lines)) <= 40
    assert " ".join(" ".join(lines).split()).count(cells[1]) == 2
    assert not any(line.endswith(": ") for line in lines)


def test_a_table_without_rows_is_its_heading() -> None:
    assert table_lines(("component", "of"), [], 80) == ["component  of"]


def test_one_word_that_is_wider_than_all_stays_whole() -> None:
    long = "/a/path/" * 20
    lines = table_lines(("file", "state"), [(long, "whole")], 80)
    assert list(itertools.chain.from_iterable(line.split() for line in lines)) == [long, "state:", "whole"]
