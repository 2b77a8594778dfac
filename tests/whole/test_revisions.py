"""The revisions that stand in the keys of components: another result at the same revision is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowblending.contracts.graph import LARGE, SMALL, TEXT_ENCODER, Precision
from flowblending.export.graph import trace
from flowblending.export.graph.attention import rotate
from tests.support import revisions
from tests.support.plans import needs_rtx
from tests.support.required import unavailable
from tests.support.revisions import CASES, COMMAND, cases, judge, plain_pair, read_record, versions

pytestmark = [pytest.mark.slow, needs_rtx]


@pytest.fixture(scope="module")
def recorded() -> Mapping[str, Any]:
    record = read_record()
    if record["versions"] != versions():
        # With other libraries everything is built anew, and may come out otherwise.
        unavailable(f"recorded with {record['versions']}, and {versions()} are installed; run {COMMAND} with them")
    made: Mapping[str, Any] = record["made"]
    return made


# Everything that the exporter makes of both families: minutes. Every run holds one decoder.
@pytest.mark.parametrize(
    "kind", [kind if kind == "ltx-0.9.0" else pytest.param(kind, marks=pytest.mark.long) for kind in CASES]
)
def test_what_is_made_is_what_was_made_at_this_revision(kind: str, recorded: Mapping[str, Any], tmp_path: Path) -> None:
    problems = []
    names = []
    for number, case in enumerate(cases(kind, plain_pair(kind, tmp_path / "pair"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        names.append(case.name)
        problems.append(judge(case.name, recorded.get(case.name), case.make(folder)))
    assert [problem for problem in problems if problem is not None] == []
    assert sorted(names) == sorted(name for name in recorded if name.split()[0] == kind)


@pytest.mark.long
def test_another_graph_at_the_same_revision_fails(
    recorded: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = revisions.read_pipeline(plain_pair("wan", tmp_path / "pair"))
    make = partial(revisions._graph, pipeline.parts[SMALL], Precision.FP32)
    name = "wan small fp32"
    # Another number in the graph: what is rotated is larger by a thousandth.
    monkeypatch.setattr(
        "flowblending.export.families.wan.attention.rotate",
        lambda values, *angles: rotate(values * 1.001, *angles),
    )
    problem = judge(name, recorded[name], make(tmp_path / "numbers"))
    assert problem is not None
    assert problem.startswith("wan small fp32 has other structure and values than were recorded at the same exporter")
    assert "raise the REVISION of what makes it" in problem
    monkeypatch.undo()
    # Another structure and the same numbers.
    monkeypatch.setattr(trace, "_name_layers", lambda _: None)
    found = make(tmp_path / "names")
    problem = judge(name, recorded[name], found)
    assert problem is not None
    assert problem.startswith("wan small fp32 has other structure than were recorded at the same exporter")
    # The same, as it should be done: it is another revision, and has to be recorded.
    problem = judge(name, recorded[name], found | {"revision": "exporter 99, wan transformer 1"})
    assert problem is not None
    assert problem.startswith("wan small fp32 was recorded at exporter ")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"values": 1.0002}, "values"),
        ({"structure": "b"}, "structure"),
        ({"ranges": {"x": 1.0, "y": 2.001}}, "ranges"),
        ({"ranges": {"x": 1.0}}, "ranges"),
        ({"flops": [1, 3]}, "flops"),
    ],
)
def test_every_difference_is_told_and_rounding_is_none(change: dict[str, Any], what: str) -> None:
    made = {"revision": "a 1", "values": 1.0, "structure": "a", "ranges": {"x": 1.0, "y": 2.0}, "flops": [1, 2]}
    assert judge("it", made, made | {"values": 1.00001, "ranges": {"x": 1.00001, "y": 2.0}}) is None
    assert (judge("it", made, made | change) or "").startswith(f"it has other {what} than were recorded")
    assert (judge("it", None, made) or "").startswith("it is not recorded; run")


def test_all_components_in_all_precisions_are_held(recorded: Mapping[str, Any], tmp_path: Path) -> None:
    """A component or a precision that comes later has to be recorded, too."""
    for kind in ("wan", "ltx"):
        parts = revisions.read_pipeline(plain_pair(kind, tmp_path / kind)).parts
        for name in parts.keys() - {LARGE}:
            assert f"{kind} {name} fp32" in recorded
        held = {name.split()[2] for name in recorded if name.startswith(f"{kind} {SMALL} ")}
        assert held == set(map(str, Precision))
        assert f"{kind} {TEXT_ENCODER} bf16" in recorded
