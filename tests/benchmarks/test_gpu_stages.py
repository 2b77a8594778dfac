"""What the stages measure, on the stand-in for a GPU, with pairs of a few layers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.gpu.environment import environment
from benchmarks.gpu.overhead import overhead
from benchmarks.gpu.pairs import PAIRS, tiny
from benchmarks.gpu.record import FINISHED, LEFT_OUT, Record, read_records
from benchmarks.gpu.report import markdown
from benchmarks.gpu.stage import Item, Results, Stage
from benchmarks.gpu.videos import VIDEOS, video_key, videos
from benchmarks.gpu.worker import run_stage
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.onnxruntime.run import OrtEngine
from flowblending.engine.backends.tensor import Tensor
from tests.conftest import SMALLEST, Build
from tests.support.cuda.bundles import plans_of
from tests.support.cuda.driver import Driver

ROOT = Path(__file__).parents[2]


def run(folder: Path, stage: Stage) -> Record:
    (folder / "out").mkdir(exist_ok=True)
    return run_stage(stage, folder / "out", folder / "work", 300.0, tiny=True)


@pytest.mark.cuda
def test_the_environment_is_told(tmp_path: Path) -> None:
    record = run(tmp_path, Stage(name="environment", title="", items=environment))
    assert record.state == FINISHED, record.sentence
    assert record.items["gpu"]["architecture"].startswith("sm")
    assert record.items["gpu"]["free bytes"] > 0
    assert "flowblending" in record.items["versions"]


@pytest.mark.cuda
def test_the_overhead_of_the_loop_is_measured(tmp_path: Path, driver: Driver) -> None:
    record = run(tmp_path, Stage(name="overhead", title="", items=overhead))
    assert record.state == FINISHED, record.sentence
    assert set(record.items) == {"unipc", "unipc graph", "euler", "euler graph"}
    for key, told in record.items.items():
        assert told["steps"] == 50
        assert 0 < told["host microseconds per step"] <= told["wall microseconds per step"]
        assert (told["steps launched as graphs"] > 0) == told["graph"] == ("graph" in key)
    assert any(entry.what == "launch" for entry in driver.journal()), "a real loop ran"


@pytest.fixture
def prepared(build: Build, checkpoints: Callable[[str], Path], tmp_path: Path) -> Stage:
    """A stage whose bundle is there already: that of all tests, as plans of the stand-in."""
    geometry = SMALLEST["wan"]
    pair = dataclasses.replace(PAIRS["wan-480p"], size=geometry.size, frames=int(geometry.frames))
    written = tmp_path / "work" / "checkpoints" / f"{pair.name}-tiny"
    written.mkdir(parents=True)
    for name in ("large", "small"):
        (written / name).symlink_to(checkpoints("wan") / name)
    (written / "written").touch()
    folder = tmp_path / "work" / "bundles" / f"{pair.name}-tensorrt-fp16"
    bundle = plans_of(build("wan"), folder)
    for name, component in bundle.manifest.components.items():
        (folder / f"{name}.component.json").write_text(component.model_dump_json())
    record = Record(stage="pair", items={f"build {name}": {} for name in bundle.manifest.components})
    (tmp_path / "out").mkdir()
    record.write(tmp_path / "out")
    return Stage(name="pair", title="", items=partial(videos, Precision.FP16, "tensorrt", pair))


@pytest.mark.cuda
@pytest.mark.slow
def test_a_pair_is_called_and_run_from_end_to_end(prepared: Stage, tmp_path: Path) -> None:
    other = tmp_path / "work" / "bundles" / "of-another-stage"
    other.mkdir()
    record = run(tmp_path, prepared)
    assert record.state == FINISHED, record.sentence
    assert not other.exists(), "two large bundles do not fit on one disk"
    calls = record.items["calls"]
    assert set(calls["models"]) == {"large", "small"}
    assert all(told["seconds"] > 0 and told["TFLOPs per second"] > 0 for told in calls["models"].values())
    assert set(calls["memory"]["open"]) == {"large", "small"}
    assert record.items["switch"]["switches"] == 9
    large, mixed, cached = (record.items[key] for key in ("LLL", "LSL", "LLL taylor:1"))
    assert large["calls"]["large"] == 8
    assert 0 < mixed["calls"]["small"] < 8
    assert mixed["bound"] > large["bound"] == 1
    assert sum(cached["calls"].values()) < 8
    for schedule, cache in VIDEOS:
        told = record.items[video_key(schedule, cache)]
        assert told["steps"] == 4
        assert told["stages"]["vae"] > 0
        assert told["stages"]["text_encoder"] > 0
        assert told["sampling"] < told["video"]
        assert told["memory"]["peak bytes"] > 0
        assert told["memory"]["planned bytes"] > 0
        assert told["memory"]["mode"] == "resident"
    text = markdown({"wan-480p-tensorrt-fp8": record})
    assert "| tensorrt fp8: LSL taylor:2 | 4 |" in text


@pytest.mark.cuda
@pytest.mark.slow
def test_what_cannot_be_built_is_told_and_the_rest_is_measured(prepared: Stage, tmp_path: Path) -> None:
    folder = next((tmp_path / "work" / "bundles").iterdir())
    (folder / "vae_next.component.json").unlink()
    broken = dataclasses.replace(prepared, items=lambda work: map(_no_builds, prepared.items(work)))
    record = run(tmp_path, broken)
    assert record.failures["build vae_next"] == "no compiler here"
    assert record.failures["LSL"] == "vae_next could not be built, so that this was not measured."
    assert {"calls", "switch"} <= record.items.keys()


def _no_builds(item: Item) -> Item:
    def run(_: Results) -> dict[str, Any]:
        raise FlowBlendingError("no compiler here")

    return dataclasses.replace(item, run=run) if item.key.startswith("build") else item


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP8])
def test_a_graph_of_random_weights_takes_the_disk_of_its_largest(tmp_path: Path, precision: Precision) -> None:
    """Weights that are left in the checkpoint's file are places in one file; the rest is as it was."""
    from benchmarks.gpu.random_graph import export_random
    from benchmarks.random_checkpoint import write_model
    from flowblending.export.families.wan.transformer import load_transformer
    from flowblending.export.graph.exportable import Part

    model = dataclasses.replace(
        tiny(PAIRS["wan-480p"]).small,
        settings={**tiny(PAIRS["wan-480p"]).small.settings, "ffn_dim": 16384},
    )
    write_model(model, tmp_path / "small", hollow=True)
    part = Part(
        name="small",
        sources=(tmp_path / "small" / "config.json",),
        load=lambda chosen: load_transformer(tmp_path / "small", "small", 512, chosen),
        revision="",
    )
    graph, weights = export_random(part, precision, tmp_path / "graph")
    read = onnx.load(graph.onnx, load_external_data=False)
    large = [each for each in read.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    kinds = {each.data_type for each in large}
    assert len(large) >= 30, "those of every linear layer"
    fp8 = onnx.TensorProto.FLOAT8E4M3FN
    assert kinds == ({fp8, onnx.TensorProto.BFLOAT16} if precision is Precision.FP8 else {onnx.TensorProto.FLOAT16})
    sizes_told = [int({each.key: each.value for each in tensor.external_data}["length"]) for tensor in large]
    assert sum(sizes_told) < weights < 1.1 * sum(sizes_told)
    assert graph.data.stat().st_size < sum(sizes_told)
    found = []
    for each in large:
        onnx.external_data_helper.load_external_data_for_tensor(each, str(graph.onnx.parent))
        values = numpy_helper.to_array(each).astype(np.float32)
        assert np.isfinite(values).all()
        assert 0.01 < values.std() / (5000 if each.data_type == fp8 else 1) < 0.03
        found.append(values.ravel()[:1000])
    assert len({each.tobytes() for each in found}) == len(found), "no two are equal"
    if precision is Precision.FP16:
        engine = OrtEngine(graph.onnx, graph.spec)
        sizes = {"batch": 1, "frames": 2, "height": 4, "width": 4}
        arrays = {
            spec.name: np.ones(spec.resolve(sizes), spec.dtype) for spec in (*graph.spec.inputs, *graph.spec.outputs)
        }
        engine.run({name: Tensor.of(array) for name, array in arrays.items()}, 0)
        assert np.isfinite(arrays["velocity"]).all()
        assert arrays["velocity"].std() > 0


@pytest.mark.cuda
@pytest.mark.long
def test_the_whole_command_on_the_stand_in(tmp_path: Path) -> None:
    """Checkpoints, exports, plans of the compiler's stand-in, and tables, each stage in its process."""
    chosen = ["environment", "tiny-tensorrt", "tiny-onnxruntime", "overhead", "ltx-512p-torch"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path), "--stage", ",".join(chosen)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path, chosen)
    assert {name: record.state for name, record in records.items()} == {
        **dict.fromkeys(chosen, FINISHED),
        "tiny-onnxruntime": LEFT_OUT,
    }
    assert records["tiny-tensorrt"].items["wan fp16"]["difference"] < 0.01
    assert "a trial with tiny models" in (tmp_path / "gpu.md").read_text()


@pytest.mark.cuda
@pytest.mark.long
def test_a_pair_is_written_exported_and_compiled(tmp_path: Path) -> None:
    pair = tiny(PAIRS["ltx-704p"])
    record = run(tmp_path, Stage(name="ltx", title="", items=partial(videos, Precision.FP16, "tensorrt", pair)))
    assert record.state == FINISHED, record.sentence
    assert record.items["build large"]["plan bytes"] > 0
    assert record.items["build large"]["compile"] > 0


@pytest.mark.long
def test_experts_have_a_stage_of_three_transformers(tmp_path: Path) -> None:
    """Of the checkpoint that is written: what a build would make of it."""
    from benchmarks.gpu.random_bundle import RandomBundle

    bundle = RandomBundle(
        pair=tiny(PAIRS["a14b-480p"]),
        precision=Precision.FP16,
        backend="onnxruntime",
        checkpoints=tmp_path / "checkpoints",
        folder=tmp_path / "bundle",
    )
    assert tuple(part.name for part in bundle.plan.parts) == bundle.components
