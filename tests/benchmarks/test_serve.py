"""The benchmark of fb-serve, with few jobs: it measures, and its audit finds nothing lost and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serve.__main__ import main
from flowblending import UsageError
from tests.conftest import Build


@pytest.mark.slow
@pytest.mark.long
def test_a_small_run(build: Build, tmp_path: Path) -> None:
    found = tmp_path / "serve.json"
    few = ["--steps", "4", "--videos", "2", "--rounds", "1", "--requests", "4", "--jobs", "60", "--kills", "1"]
    main([str(build("wan").folder), "--workers", "2", *few, "--json", str(found)])
    parts = json.loads(found.read_text())
    assert parts.keys() == {"throughput", "latency", "polls", "endurance"}
    assert parts["throughput"]["cpu_ratio_median"] > 0
    assert 0 < parts["latency"]["added_p50_ms"] < parts["latency"]["request_p50_ms"]
    assert parts["polls"]["a_second"] > 0
    left = parts["endurance"]
    assert left["kills_of_the_service"] == 1
    assert left["accepted"] + left["requests"].get("no answer", 0) >= 60
    names = ("lost", "completed_twice", "deleted_but_there", "completed_without_file", "files_of_nobody")
    assert {name: left[name] for name in names} == dict.fromkeys(names, 0)
    assert set(left["status_of_what_was_kept"]) <= {"completed", "failed"}


def test_a_part_that_is_none() -> None:
    with pytest.raises(UsageError, match="--parts names speed, but throughput, latency, polls, endurance are known"):
        main(["bundle", "--parts", "speed"])
