"""Building bundles: reuse, rebuilding, a full disk, an interrupt, and real TensorRT-RTX plans without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.build import BuildRequest, build_bundle
from flowblending.engine.bundle import open_bundle, write_bundle
from flowblending.engine.console import Console
from tests.conftest import Build

pytestmark = pytest.mark.slow


class Recorder(Console):
    """Remembers what the user would read."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def request(pair: Path, out: Path) -> BuildRequest:
    return BuildRequest(
        large=str(pair / "large"),
        small=str(pair / "small"),
        out=out,
        size="32x48",
        frames=9,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )


def test_an_unchanged_component_is_reused_and_a_changed_one_rebuilt(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, pair = tmp_path / "bundle", tmp_path / "pair"
    shutil.copytree(build("wan").folder, out)
    shutil.copytree(checkpoints("wan"), pair)
    before = open_bundle(out).manifest
    # A name that an older bundle does not know is added to what is reused.
    fields = ("num_layers", "num_attention_heads", "attention_head_dim")
    configs = {
        name: json.loads((pair / folder / "config.json").read_text())
        for name, folder in (("toy large", "large/transformer"), ("toy small", "small"))
    }
    names = {tuple(config[field] for field in fields): name for name, config in configs.items()}
    monkeypatch.setattr("flowblending.export.wan._ARCHITECTURES", names)
    # Another geometry: ONNX Runtime's engines take any size, so nothing is built.
    console = Recorder()
    moved = build_bundle(dataclasses.replace(request(pair, out), size="64x64"), console).manifest
    assert {line.partition(":")[2] for line in console.lines} == {" reused, nothing changed"}
    assert moved.geometry.width == 64
    assert before.components["large"].architecture is None
    assert moved.components["large"].architecture == "toy large"
    assert moved.components["text_encoder"].architecture is None
    assert {name: each.key for name, each in moved.components.items()} == {
        name: each.key for name, each in before.components.items()
    }
    smaller, larger = before.components["large"].flops, moved.components["large"].flops
    assert smaller is not None
    assert larger is not None
    assert larger.attention > 2 * smaller.attention
    assert moved.id != before.id
    # One byte of the small model's weights, and one file of the bundle damaged.
    weights = pair / "small" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (out / "vae_next.onnx").write_bytes(b"damaged")
    console = Recorder()
    changed = build_bundle(request(pair, out), console)
    assert "small: rebuilt, weights changed" in console.lines
    assert changed.manifest.components["small"].architecture == "toy small"
    assert "vae_next: rebuilt, its files changed" in console.lines
    assert sum("reused" in line for line in console.lines) == 3
    changed.verify(recompute=True)


@pytest.mark.parametrize(("kind", "small"), [("wan", "fp16"), ("ltx", "bf16")])
def test_real_plans_are_built_without_a_gpu(kind: str, small: str, build: Build) -> None:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    bundle = build(kind, backend="tensorrt-rtx", targets=("sm120", "sm89"), precision=f"large=fp16-mixed,small={small}")
    bundle.verify()
    for name, component in bundle.manifest.components.items():
        assert component.targets == ("sm120", "sm89")
        assert bundle.path(name).suffix == ".plan"
        assert bundle.path(name).stat().st_size > 50_000
    precisions = {name: str(component.spec.precision) for name, component in bundle.manifest.components.items()}
    assert (precisions["large"], precisions["small"], precisions["text_encoder"]) == ("fp16-mixed", small, "bf16")
    # The name of the fused kernel, whose source lies in the plan.
    assert b"_gemm_mha_v2" in bundle.path("large").read_bytes()
    assert {path.suffix for path in bundle.folder.iterdir()} == {".plan", ".json"}


def _mount(folder: Path, megabytes: int) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    if shutil.which("mount") is None or not _mount(folder, 1):
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_refused_before_the_build(
    checkpoints: Callable[[str], Path], small_disk: Path
) -> None:
    console = Recorder()
    with pytest.raises(FlowBlendingError, match=r"takes up to \d+\.\d MB of disk, but 1\.0 MB are free there; free"):
        build_bundle(request(checkpoints("wan"), small_disk / "bundle"), console)
    assert not console.lines
    assert not os.listdir(small_disk)


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_nothing(
    checkpoints: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may take what was free when the build began."""
    monkeypatch.setattr("flowblending.engine.disk.free_bytes", lambda _: 10**12)
    console = Recorder()
    with pytest.raises(FlowBlendingError, match="The disk filled up while writing"):
        build_bundle(request(checkpoints("wan"), small_disk / "bundle"), console)
    assert console.lines[0].endswith(", 1000.0 GB are free")
    assert not os.listdir(small_disk)


def test_a_killed_build_leaves_the_old_bundle_and_the_next_removes_its_files(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    out, pair = tmp_path / "bundle", checkpoints("wan")
    shutil.copytree(build("wan").folder, out)
    (out / "large.onnx.data").write_bytes(b"damaged, so that it is built again")
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())
    command = [sys.executable, "-m", "flowblending.engine.cli", "--large", pair / "large", "--small", pair / "small"]
    command += ["--out", out, "--backend", "onnxruntime", "--size", "32x48", "--frames", "9"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    partial = tmp_path / f".bundle.partial-{process.pid}"
    deadline = time.monotonic() + 300
    while not (partial / "export").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert partial.exists()
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    with write_bundle(out) as folder:
        (folder / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_manifest_says_how_to_build_the_bundle_again(build: Build) -> None:
    bundle = build("wan")
    content = json.loads((bundle.folder / "manifest.json").read_text())
    command = content["rebuild"]
    assert command[0] == "fb-build-engines"
    assert Path(command[command.index("--large") + 1]).is_absolute()
    assert content["format"] == 1
    assert set(content["components"]) == {"large", "small", "text_encoder", "vae_first", "vae_next"}
    assert content["components"]["large"]["flops"]["attention"] > 0
