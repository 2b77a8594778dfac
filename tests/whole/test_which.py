"""docs/which.md: its tables are those of the code, and the code knows what the libraries know."""

from __future__ import annotations

import re

import pytest

from benchmarks import which
from benchmarks.random_checkpoint import MODELS, element_counts
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.tensorrt.library import load
from flowblending.engine.backends.tensorrt.targets import ahead_of_time
from tests.support.plans import needs_rtx

PAGE = which.PAGE.read_text()


def rows(name: str) -> list[list[str]]:
    """The cells of a table of the page, its heading first."""
    found = re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found
    lines = [line.strip("|").split("|") for line in found[1].splitlines()]
    return [[cell.strip() for cell in line] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize("name", which.TABLES)
def test_the_page_has_what_the_code_says(name: str) -> None:
    columns, body = which.TABLES[name]()
    assert rows(name) == [list(columns), *map(list, body)], "write it anew with python -m benchmarks.which"


def test_every_table_of_the_page_is_made() -> None:
    assert re.findall(r"<!-- table: (\w+) -->", PAGE) == list(which.TABLES)
    assert PAGE.count("<!-- end -->") == len(which.TABLES)


def test_weights_are_counted_as_they_are_stored() -> None:
    # Two bytes each in 16 bits; in fp8 one in all blocks but three at either end, which are alike.
    counts = element_counts(MODELS["wan-14b"])
    total, block = sum(counts.values()), sum(each for name, each in counts.items() if name.startswith("blocks.7."))
    assert which.component_bytes("wan-14b", Precision.BF16) == 2 * total
    assert which.component_bytes("wan-14b", Precision.FP8) == 2 * total - (40 - 2 * 3) * block


@needs_rtx
def test_architectures_are_those_of_tensorrt_rtx() -> None:
    assert ahead_of_time(load("tensorrt-rtx")) == which.AHEAD
    assert set(which.AHEAD) < set(which.GPUS)
