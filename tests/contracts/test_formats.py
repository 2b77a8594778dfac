"""Formats that last: a file of each since the first is kept in ``formats``, as the version of its day wrote it."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flowblending
from flowblending import FlowBlendingError
from flowblending.contracts import upgrade
from flowblending.contracts.evidence import CacheEvidence, ScheduleEvidence, read_evidence
from flowblending.contracts.fp8_calibration import Fp8Calibration
from flowblending.contracts.graph import LARGE, SMALL, ExportedGraph
from flowblending.contracts.manifest import MANIFEST
from flowblending.contracts.program import Program
from flowblending.contracts.proof import proof_file, read_proof
from flowblending.contracts.upgrade import Content, Format
from flowblending.engine.build.proof.pair import pair_claims
from flowblending.engine.build.proof.report import BuildReport, read_report
from flowblending.engine.build.proof.short_run import run_claim
from flowblending.engine.bundle.bundle import REPORT, open_bundle
from flowblending.engine.store.entry import ENTRY, read_entry
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.program_file import ProgramFile
from tests.support import manifests, schemas

FORMATS = Path(__file__).parent / "formats"
ROOT = Path(__file__).parents[2]


def bundle(name: str, folder: Path) -> Path:
    """A bundle's folder with the manifest of that name, and its files where they are kept."""
    source = FORMATS / name
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        folder.mkdir()
        shutil.copyfile(source.with_suffix(".json"), folder / MANIFEST)
    return folder


def open_manifest(path: Path, tmp_path: Path) -> object:
    return open_bundle(bundle(path.stem, tmp_path / "b")).manifest


def open_report(path: Path, tmp_path: Path) -> BuildReport:
    number = min(int(path.stem.partition("-")[2]), upgrade.MANIFEST.number)
    folder = bundle(f"manifest-{number}", tmp_path / "b")
    shutil.copyfile(path, folder / REPORT)
    report = read_report(open_bundle(folder))
    assert report is not None
    return report


def open_proof(path: Path, tmp_path: Path) -> object:
    shutil.copyfile(path, tmp_path / proof_file(LARGE))
    return read_proof(tmp_path, LARGE)


def open_graph(path: Path, tmp_path: Path) -> object:
    return ExportedGraph.read(Path(shutil.copyfile(path, tmp_path / "large.json")))


def open_entry(path: Path, tmp_path: Path) -> object:
    shutil.copyfile(path, tmp_path / ENTRY)
    entry = read_entry(tmp_path)
    assert entry is not None
    return entry


KINDS: dict[str, tuple[Format, Callable[[Path, Path], object]]] = {
    "manifest": (upgrade.MANIFEST, open_manifest),
    "program": (upgrade.PROGRAM, lambda path, _: ProgramFile.read(path)),
    "report": (upgrade.REPORT, open_report),
    "proof": (upgrade.PROOF, open_proof),
    "calibration": (upgrade.EVIDENCE, lambda path, _: read_evidence(path)),
    "fp8_calibration": (upgrade.FP8_CALIBRATION, lambda path, _: Fp8Calibration.read(path)),
    "graph": (upgrade.GRAPH, open_graph),
    "entry": (upgrade.ENTRY, open_entry),
}


def kept(kind: str) -> Iterator[tuple[int, Path]]:
    """The files of a kind, with their format."""
    for path in sorted(FORMATS.iterdir()):
        match = re.fullmatch(rf"{kind}-(\d+)(-\w+)?(\.json)?", path.name)
        if match is not None:
            yield int(match[1]), path


@pytest.mark.parametrize("kind", list(KINDS))
def test_there_is_a_file_of_every_format_and_it_opens(kind: str, tmp_path: Path) -> None:
    form, opened = KINDS[kind]
    files = list(kept(kind))
    assert {number for number, _ in files} == set(range(1, form.number + 1))
    for index, (number, path) in enumerate(files):
        content = path / MANIFEST if path.is_dir() else path
        before = content.read_bytes()
        assert json.loads(before)["format"] == number
        folder = tmp_path / str(index)
        folder.mkdir()
        opened(path, folder)
        assert content.read_bytes() == before


def test_all_kinds_are_here() -> None:
    found = {value.name for value in vars(upgrade).values() if isinstance(value, Format)}
    assert found == {form.name for form, _ in KINDS.values()}


@pytest.mark.parametrize("name", ["manifest-1-first", "manifest-1-fp8"])
def test_a_bundle_of_format_1_is_used_as_it_is(name: str, tmp_path: Path) -> None:
    folder = bundle(name, tmp_path / "b")
    before = (folder / MANIFEST).read_bytes()
    opened = open_bundle(folder)
    opened.verify(recompute=True)
    manifest, written = opened.manifest, json.loads(before)
    (profile,) = manifest.profiles
    assert profile.min == profile.opt == profile.max == manifest.geometry
    assert list(manifest.geometry.latent_shape) == written["geometry"]["latent_shape"]
    tokens = manifest.pipeline.tokens(manifest.geometry.latent_shape)
    for model in (LARGE, SMALL):
        flops, costs = manifest.components[model].flops, written["components"][model]["flops"]
        assert flops is not None
        assert (flops.linear_at(tokens), flops.attention_at(tokens)) == (costs["linear"], costs["attention"])
    assert (manifest.fp8_calibration is not None) == name.endswith("fp8")
    assert manifest.calibration is None
    program = compile_job(Job(prompt="", steps=5), manifest)
    assert program.latent_shape == manifest.geometry.latent_shape
    # Nothing is written into a bundle that is only used.
    assert (folder / MANIFEST).read_bytes() == before


def test_costs_of_format_1_grow_as_attention_does() -> None:
    tokens, text, each = 24, 512, 7
    before = {"linear": 1000, "attention": each * tokens * (tokens + text) + 3}
    flops = upgrade._polynomials(before, tokens, text)
    constant, slope = flops["linear"]
    assert (constant + slope * tokens, slope) == (1000, 41)
    # The pairs of the video's tokens, and of each with the text's.
    assert flops["attention"] == [3, each * text, each]


def test_a_pair_of_report_1_is_judged_by_an_upper_bound(tmp_path: Path) -> None:
    report = open_report(FORMATS / "report-1.json", tmp_path)
    written = json.loads((FORMATS / "report-1.json").read_text())["pair"]
    assert report.pair is not None
    for model in (LARGE, SMALL):
        values = [v for v, m in zip(written["velocity"], written["models"], strict=True) if m == model]
        assert report.pair.overall[model] == max(values) > 0
    assert report.pair.holds
    (claim,) = pair_claims(report.pair, open_bundle(tmp_path / "b").manifest)
    assert claim.state == "proved"
    # A figure that is no number stays none, and fails.
    written["velocity"][0] = "NaN"
    content = upgrade.REPORT.upgrade({"format": 1, "pair": written, "claims": []}, "x", "y")
    assert content["pair"]["overall"][written["models"][0]] == "NaN"
    pair = report.pair.model_copy(update={"overall": {LARGE: math.nan}})
    assert not pair.holds


def test_both_kinds_of_calibration_are_read() -> None:
    schedule = read_evidence(FORMATS / "calibration-1.json")
    cache = read_evidence(FORMATS / "calibration-1-cache.json")
    assert isinstance(schedule, ScheduleEvidence)
    assert isinstance(cache, CacheEvidence)
    assert len(schedule.sigmas) == schedule.steps
    assert {len(values) for each in cache.caches.values() for values in each.mean.values()} == {cache.steps}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_format_to_come_is_refused_with_both_versions(kind: str, tmp_path: Path) -> None:
    form, opened = KINDS[kind]
    _, path = list(kept(kind))[-1]
    content = json.loads((path / MANIFEST if path.is_dir() else path).read_text())
    later = content | {"format": form.number + 1, "created_by": "flowblending 9.8.7", "new": {}}
    expected = re.escape(
        f" is a {form.name} of format {form.number + 1}, written by flowblending 9.8.7, but this is flowblending "
        f"{flowblending.__version__}, which reads formats up to {form.number}; install a later version, or "
    )
    if kind in ("manifest", "report"):
        manifests.write(tmp_path / "b")
        (tmp_path / "b" / (MANIFEST if kind == "manifest" else REPORT)).write_text(json.dumps(later))
        with pytest.raises(FlowBlendingError, match=expected + ".*rebuild with: fb-build-engines"):
            read_report(open_bundle(tmp_path / "b"))
        return
    (tmp_path / path.name).write_text(json.dumps(later))
    if kind == "entry":
        # What a later version keeps in the cache is not this one's.
        (tmp_path / ENTRY).write_text(json.dumps(later))
        assert read_entry(tmp_path) is None
        return
    (tmp_path / "x").mkdir()
    with pytest.raises(FlowBlendingError, match=expected) as caught:
        opened(tmp_path / path.name, tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, [], 3, {}, {"format": None}, {"format": "1"}, {"format": True}])
def test_what_has_no_format_is_damaged(content: object) -> None:
    with pytest.raises(ValueError, match="a bundle manifest has a format, a number from 1 on"):
        upgrade.MANIFEST.upgrade(content, "x", "y")


def test_upgrades_follow_one_another() -> None:
    def first(content: Content) -> Content:
        return {"b": content["a"], "list": content["list"]}

    def second(content: Content) -> Content:
        content["list"].append(content.pop("b"))
        return content

    form = Format(name="thing", upgrades=(first, second))
    assert form.number == 3
    content: Any = {"format": 1, "a": 2, "list": [1]}
    assert form.upgrade(content, "x", "y") == {"format": 3, "list": [1, 2]}
    assert content == {"format": 1, "a": 2, "list": [1]}
    assert form.upgrade({"format": 2, "b": 2, "list": []}, "x", "y") == {"format": 3, "list": [2]}
    assert form.upgrade({"format": 3, "list": []}, "x", "y") == {"format": 3, "list": []}
    with pytest.raises(ValueError, match="it is no thing of format 1: KeyError"):
        form.upgrade({"format": 1, "list": []}, "x", "y")


def _without_each(content: Any) -> Iterator[Any]:
    """The same data without each of its parts in turn, and with something else in its place."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield {key: each for key, each in content.items() if key != name}
            yield content | {name: None}
            for other in _without_each(value):
                yield content | {name: other}


def test_a_damaged_manifest_of_format_1_is_a_sentence(tmp_path: Path) -> None:
    content = json.loads((FORMATS / "manifest-1-fp8" / MANIFEST).read_text())
    refused = 0
    for other in _without_each(content):
        (tmp_path / MANIFEST).write_text(json.dumps(other))
        try:
            open_bundle(tmp_path)
        except FlowBlendingError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("name", list(schemas.MODELS))
def test_schemas_are_those_of_the_models(name: str) -> None:
    """Write them anew with ``python -m tests.support.schemas``."""
    assert schemas.path_of(name).read_text() == schemas.make(name), schemas.COMMAND


@pytest.mark.parametrize("kind", [*schemas.MODELS, "program"])
def test_files_of_the_present_format_fit_their_schema(kind: str) -> None:
    draft = importlib.import_module("jsonschema").Draft202012Validator
    schema = json.loads(schemas.path_of(kind).read_text())
    draft.check_schema(schema)
    validator, form = draft(schema), KINDS[kind][0]
    files = [path for number, path in kept(kind) if number == form.number]
    for path in files:
        content = json.loads(path.read_text())
        assert list(validator.iter_errors(content)) == []
        assert list(validator.iter_errors({name: each for name, each in content.items() if name != "format"}))
        assert list(validator.iter_errors(content | {"format": form.number + 1}))
        assert list(validator.iter_errors(content | {"surprise": 1}))
    # What is upgraded fits as well.
    for number, path in kept(kind):
        content = json.loads((path / MANIFEST if path.is_dir() else path).read_text())
        if number < form.number:
            assert list(validator.iter_errors(form.upgrade(content, path, "again"))) == []


def test_schemas_are_all_in_the_package() -> None:
    assert {path.name for path in schemas.FOLDER.iterdir()} == {
        schemas.path_of(name).name for name in [*schemas.MODELS, "program"]
    }


def test_the_documents_have_the_numbers() -> None:
    table = (ROOT / "docs/formats.md").read_text()
    for form, _ in KINDS.values():
        assert re.search(rf"\| {form.name} \|.*\| {form.number} \|", table), form.name


def test_programs_say_who_wrote_them_nowhere_and_are_refused_alike() -> None:
    with pytest.raises(FlowBlendingError, match=r"The program is a sampling program of format 7, written by a later"):
        Program.from_json({"format": 7})


@pytest.mark.parametrize("name", ["report-1", "report-2"])
def test_a_report_from_before_there_were_runs_leaves_open_whether_the_bundle_runs(name: str, tmp_path: Path) -> None:
    report = open_report(FORMATS / f"{name}.json", tmp_path)
    assert report.run is None
    assert report.claims[-1] == run_claim(None)
    (written,) = [claim for claim in report.left if claim.component == "bundle"]
    assert written.state == "open"
