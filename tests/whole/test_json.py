"""--json: one document on standard output, with the keys that docs/json.md tells, and nothing on an error."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowblending
from flowblending.contracts import upgrade
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.engine.bundle.calibration import add_calibration
from tests.conftest import Build
from tests.support import manifests
from tests.support.documents import ROOT
from tests.whole.test_documents import PROGRAMS

PAGE = (ROOT / "docs" / "json.md").read_text()
EVIDENCE = ROOT / "tests" / "contracts" / "formats" / f"calibration-{upgrade.EVIDENCE.number}.json"

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("fb-run", ...)`` in this process: the document, whose keys have to be told."""

    def run(program: str, *arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            importlib.import_module(PROGRAMS[program]).main([*map(str, arguments), "--json"])
        out, errors = capsys.readouterr()
        assert end.value.code == code, errors
        document: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
        assert (document["program"], document["version"]) == (program, flowblending.__version__)
        assert document["warnings"] == re.findall("^warning: (.*)$", errors, re.MULTILINE)
        section = PAGE.partition(f"## {program}\n")[2].partition("\n## ")[0] or PAGE
        shared = PAGE.partition("\n## ")[0]
        assert not [key for key in document if f"`{key}`" not in section + shared]
        return document

    return run


def test_what_needs_no_engine(tmp_path: Path, call: Call) -> None:
    wan, prompts = tmp_path / "wan", tmp_path / "prompts.txt"
    manifests.write(wan)
    prompts.write_text("a cat\n\na dog\n")
    (plan,) = call("fb-run", wan, "--dry-run", "--steps", "10")["plans"]
    assert (plan["schedule"], plan["steps"], plan["shift"]) == ("L4 S4 L2", 10, 3.0)
    assert [each["steps"] for each in plan["stages"]] == [[1, 4], [5, 8], [9, 10]]
    # Two branches of guidance; a small call is a tenth of a large one.
    assert plan["calls"] == {"large": 12, "small": 8}
    assert plan["speedup_bound"] == pytest.approx(20 / (12 + 0.8))
    assert plan["flops"] * plan["speedup_bound"] == pytest.approx(plan["flops_all_large"])
    assert not [key for key in plan if f"`{key}`" not in PAGE]
    plans = call("fb-run", wan, "--dry-run", "--prompts", prompts)["plans"]
    assert [(each["line"], each["prompt"]) for each in plans] == [(1, "a cat"), (3, "a dog")]
    program = call("fb-run", wan, "--emit-program", tmp_path / "program.json")["emitted_program"]
    assert Path(program).is_file()

    bundle = open_bundle(wan)
    assert call("fb-calibrate", wan, "--show")["calibration"] is None
    evidence = {name: each for name, each in json.loads(EVIDENCE.read_text()).items() if name != "number"}
    add_calibration(bundle, evidence, runs="L2 S3")
    shown = call("fb-calibrate", wan, "--show")["calibration"]
    assert shown["schedule"]["runs"] == "L2 S3"
    assert shown["evidence"]["calibration-1.json"] == {"number": 1, **evidence}
    assert call("fb-calibrate", wan, "--reset")["taken_back"]["schedule"] == shown["schedule"]
    assert call("fb-calibrate", wan, "--reset")["taken_back"] is None

    models = call("fb-export-triton", wan, "--out", tmp_path / "models", "--device", "cpu")["models"]
    assert [each["name"] for each in models] == ["wan"]
    assert Path(models[0]["folder"]).is_dir()
    cache = ("--cache-dir", tmp_path / "none")
    assert call("fb-build-engines", "--list-cache", *cache)["entries"] == []
    assert call("fb-build-engines", "--prune", "all", *cache)["removed"] == []


@pytest.mark.parametrize("program", ["fb-run", "fb-calibrate", "fb-compare"])
def test_an_error_leaves_standard_output_empty(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(PROGRAMS[program]).main(["nowhere", "--prompts", "x", "--json"])
    out, errors = capsys.readouterr()
    assert end.value.code == 1
    assert out == ""
    assert errors.startswith("error: nowhere is no bundle")


@pytest.mark.slow
def test_what_runs(build: Build, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(build("wan").folder, "wan")
    short = ("--steps", "3", "--device", "cpu")
    made = call("fb-run", "wan", "--prompt", "a cat", *short, "--out", "a.npy", "--save-latents", "z.npy")
    assert (made["video"], made["latents"], made["calls"]) == ("a.npy", "z.npy", {"large": 4, "small": 2})
    assert made["schedule"] == "L1 S1 L1"
    assert made["seconds"]["total"] > made["seconds"]["large"] > 0
    decoded = call("fb-run", "wan", "--decode", "z.npy", "--device", "cpu", "--out", "b.npy")
    assert decoded["frames"] == made["frames"]
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    Path("prompts.txt").write_text('a cat\n{"prompt": "a dog", "steps": 0}\na cat\n')
    many = call("fb-run", "wan", "--prompts", "prompts.txt", *short, "--out", "many", code=1)
    assert [(each["line"], each["state"]) for each in many["lines"]] == [(1, "made"), (2, "failed"), (3, "skipped")]
    assert (many["made"], many["failed"], many["skipped"]) == (1, 1, 1)
    assert "steps" in many["lines"][1]["error"]
    assert (Path("many") / many["lines"][0]["video"]).exists()
    Path("prompts.txt").write_text("a cat\na dog\n")
    options = ("wan", "--prompts", "prompts.txt", *short)
    found = call("fb-calibrate", *options, "--proxy-only", "--no-plot", "--no-apply")
    assert (found["applied"], found["kept"]) == (False, None)
    assert found["evidence"]["schedule"] == found["schedule"]
    constants = call("fb-calibrate", *options, "--cache", "magcache", "--no-apply")["caches"]["magcache"]
    assert {model: len(values) for model, values in constants.items()} == {"large": 3, "small": 3}
    compared = call("fb-compare", *options, "--schedules", "SSS", "--out", "page")
    assert [each["label"] for each in compared["comparison"]["runs"]] == ["LLL", "SSS"]
    assert json.loads(Path(compared["report"]).read_text()) == compared["comparison"]
