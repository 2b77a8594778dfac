"""The program as a file: its schema, what is refused, and golden vectors against an interpreter of the schema."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.runtime.golden import vectors as golden
from flowblending.runtime.golden.closed_form import CASES, FORMS, bundle_id, engines
from flowblending.runtime.media.tensor_file import write_tensors
from flowblending.runtime.program.program_file import ProgramFile
from tests.conftest import Build
from tests.support.programs import Result, run

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "flowblending/contracts/schema/program.schema.json").read_text())


@pytest.fixture(scope="module")
def closed_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "closed"
    golden.write_closed_form(folder)
    return folder


def problems(content: object) -> list[str]:
    """What the schema says against a program."""
    validator = importlib.import_module("jsonschema").Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(content)]


def test_the_schema_is_one() -> None:
    importlib.import_module("jsonschema").Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("case", list(CASES))
def test_programs_fit_the_schema_and_read_back(closed_form: Path, case: str) -> None:
    path = closed_form / case / "program.json"
    content = json.loads(path.read_text())
    assert problems(content) == []
    file = ProgramFile.read(path)
    assert json.loads(json.dumps(file.to_json())) == content
    assert file.slots == tuple(content["slots"])
    assert set(file.engines) == {step.model for step in file.program.steps} <= set(FORMS)


def _drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=4), "is a sampling program of format 4, written by a later"),
        (_drop("bundle"), "damaged at bundle"),
        (_drop("engines"), "damaged at engines"),
        (lambda content: content["slots"].append("spare"), "lists the slots .*spare"),
        (lambda content: content["engines"]["large"]["inputs"][0].update(source="thin air"), "engines.large.inputs.0"),
        (lambda content: content["steps"][0]["instructions"][0].update(model=7), "damaged at steps.0.instructions.0"),
    ],
)
def test_damaged_programs_are_refused(
    closed_form: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = json.loads((closed_form / "unipc-two-calls/program.json").read_text())
    change(content)
    path = tmp_path / "program.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FlowBlendingError, match=message):
        ProgramFile.read(path)
    # A slot too many is the only one that no schema can see.
    assert problems(content) or "spare" in content["slots"]


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_no_program_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "program.json"
    path.write_text(text)
    with pytest.raises(FlowBlendingError, match="fb-run --emit-program"):
        ProgramFile.read(path)


def interpret(case: Path) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Every slot after every instruction in float64, from the files and the closed forms' definition alone."""
    listing, content = (json.loads((case / name).read_text()) for name in ("golden.json", "program.json"))
    formulas = {name: json.loads((case.parent / f"bundle/{name}.json").read_text()) for name in content["engines"]}
    given = {
        branch: {name: np.load(case / path) for name, path in inputs.items()}
        for branch, inputs in listing["conditions"].items()
    }
    filled = {"latents": listing["latents"], **listing["given"]}
    slots = {name: np.load(case / path)[0].astype(np.float64) for name, path in filled.items()}
    states = []
    for step in content["steps"]:
        for each in step["instructions"]:
            if "terms" in each:
                slots[each["out"]] = sum(coefficient * slots[name] for coefficient, name in each["terms"])
            elif "share" in each:
                ratio = slots[each["reference"]].std() / slots[each["out"]].std()
                slots[each["out"]] = (each["share"] * ratio + 1 - each["share"]) * slots[each["out"]]
            elif "source" in each:
                slots[each["out"]] = slots[each["out"]].copy()
                slots[each["out"]][:, content["partial"][each["source"]]] = slots[each["source"]]
            else:
                formula = formulas[each["model"]]
                names = [i["key"] for i in content["engines"][each["model"]]["inputs"] if i["source"] == "condition"]
                for branch, out in zip(each["branches"], each["out"], strict=True):
                    shift = formula["condition"] * sum(given[branch][name].mean() for name in names)
                    drift = formula["drift"] * np.mean(step.get("frame_timesteps", step["timestep"])) / 1000
                    slots[out] = formula["gain"] * slots["latents"] + drift + shift
            states.append(dict(slots))
    return states


@pytest.mark.parametrize("case", list(CASES))
def test_golden_vectors_are_what_the_schema_says(closed_form: Path, case: str) -> None:
    names = json.loads((closed_form / case / "program.json").read_text())["slots"]
    trace = np.load(closed_form / case / "trace.npy")
    states = interpret(closed_form / case)
    assert len(states) == len(trace)
    for found, expected in zip(trace, states, strict=True):
        for name, slot in zip(names, found, strict=True):
            values = expected.get(name, np.array([])).ravel()
            atol = 1e-5 * np.abs(values).max(initial=0)
            np.testing.assert_allclose(slot.ravel()[: values.size], values, rtol=0, atol=atol)
            assert np.isnan(slot.ravel()[values.size :]).all()


def test_golden_vectors_are_checked(closed_form: Path) -> None:
    for case in CASES:
        assert golden.check(closed_form / case, engines(), bundle_id()) == 0.0
    result = golden_command("--check", closed_form)
    assert len(result.stdout.splitlines()) == len(CASES)


def test_a_changed_vector_is_named(tmp_path: Path) -> None:
    golden.write_closed_form(tmp_path / "closed")
    case = tmp_path / "closed/unipc-two-calls"
    trace = np.load(case / "trace.npy")
    trace[2, 0, 0, 0, 0, 0] += 1e-3
    np.save(case / "trace.npy", trace)
    with pytest.raises(FlowBlendingError, match=r"slot latents differs by .* after instruction 2,"):
        golden.check(case, engines(), bundle_id())


def golden_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowblending.runtime.golden.vectors", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mistakes_with_golden_vectors_are_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    golden.write_closed_form(folder)
    (folder / "unipc-two-calls/trace.npy").write_bytes(b"\x93NUMPY")
    (folder / "euler-no-guidance/golden.json").write_text("{")
    case = folder / "dpm-one-call"
    listing = json.loads((case / "golden.json").read_text())
    (case / "golden.json").write_text(json.dumps({**listing, "trace": "none.npy"}))
    program = json.loads((case / "program.json").read_text())
    other = tmp_path / "other"
    golden.write_closed_form(other)
    (other / "dpm-one-call/program.json").write_text(json.dumps({**program, "bundle": "another"}))
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("--check", folder / "unipc-two-calls"), "unipc-two-calls is damaged ("),
        (("--check", folder / "euler-no-guidance"), "euler-no-guidance is damaged ("),
        (("--check", case), "none.npy"),
        (("--check", other / "dpm-one-call"), "was written for bundle another, but this is"),
        (("--check", tmp_path / "none"), "holds no golden.json"),
        (("--out", folder), "exists already; name a new folder"),
        (("--out", tmp_path / "file" / "x"), "Cannot write "),
        (("--out", tmp_path / "new", "--bundle", tmp_path / "none"), "is no bundle"),
    ):
        result = golden_command(*arguments)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file", "other"]


def test_tensor_files_are_safetensors(tmp_path: Path) -> None:
    safetensors = importlib.import_module("safetensors.numpy")
    arrays: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3, dtype=np.int64)[None],
        "c": np.array([1.5], np.float16),
        "d": np.arange(10, dtype=np.float32)[::2],
    }
    write_tensors(tmp_path / "x.safetensors", arrays)
    found = safetensors.load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    for path in (tmp_path / "none/x.safetensors", Path(), tmp_path):
        with pytest.raises(FlowBlendingError, match=r"Cannot write "):
            write_tensors(path, arrays)


@pytest.mark.slow
def test_fb_run_writes_program_and_inputs(build: Build, tmp_path: Path) -> None:
    bundle = build("wan")

    def fb_run(*arguments: object) -> Result:
        return run("fb-run", bundle.folder, *arguments)

    assert fb_run("--steps", 3, "--emit-program", tmp_path / "p.json").returncode == 0
    assert problems(json.loads((tmp_path / "p.json").read_text())) == []
    assert ProgramFile.read(tmp_path / "p.json").bundle == bundle.manifest.id
    inputs = tmp_path / "i.safetensors"
    assert fb_run("--prompt", "a cat", "--steps", 3, "--seed", 5, "--emit-inputs", inputs).returncode == 0
    found = importlib.import_module("safetensors.numpy").load_file(inputs)
    assert found["latents"].shape == (1, *bundle.manifest.geometry.latent_shape)
    assert {"cond.text", "uncond.text"} <= found.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.safetensors", "p.json"]
    for emit in ("--emit-program", "--emit-inputs"):
        result = fb_run("--prompt", "a cat", emit, bundle.folder / "x.json")
        assert (result.returncode, "lies in the bundle" in result.stderr) == (2, True)
    result = fb_run("--prompt", "a cat", "--emit-program", tmp_path / "x", "--emit-inputs", tmp_path / "x")
    assert (result.returncode, "give two files" in result.stderr) == (2, True)
    assert not (tmp_path / "x").exists()
    result = fb_run("--emit-inputs", inputs)
    assert result.returncode == 2
    assert "Give --prompt TEXT, --prompts FILE or" in result.stderr
    golden_folder = tmp_path / "golden"
    command = [sys.executable, "-m", "flowblending.runtime.golden.vectors", "--bundle", str(bundle.folder)]
    subprocess.run([*command, "--out", str(golden_folder), "--steps", "3"], check=True)
    subprocess.run([*command, "--check", str(golden_folder)], check=True)
