"""Building bundles: reuse, rebuilding, a full disk, an interrupt, and real TensorRT-RTX plans without a GPU."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.graph import AuthorsSampling
from flowblending.contracts.manifest import FORMAT
from flowblending.contracts.model_sampling import ModelSampling
from flowblending.contracts.proof import read_proof
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.build.build import BuildRequest, build_bundle, rebuild_command
from flowblending.engine.build.plan import Plan, make_plan
from flowblending.engine.build.proof.report import read_report
from flowblending.engine.build.request import named_models
from flowblending.engine.build.sources import Folders
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.engine.bundle.plan_profiles import component_profiles, most_latents
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from tests.conftest import IN_PLANS, Build
from tests.support.store_process import Recorder

pytestmark = pytest.mark.slow


def request(pair: Path, out: Path, sampling: dict[str, ModelSampling] | None = None) -> BuildRequest:
    return BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small"), sampling=sampling),
        out=out,
        size="32x48",
        frames=9,
        precision=None,
        backend="onnxruntime",
        targets=(),
    )


def plan(asked: BuildRequest) -> Plan:
    """What is read of two folders."""
    models = {model.name: Path(model.source) for model in asked.models}
    return make_plan(asked, Folders(base=models[asked.first.name], models=models))


def said(lines: Sequence[str]) -> list[str]:
    """What a build says of components and the disk, and not of what it reads."""
    return [line for line in lines if not line.startswith(("pipeline: ", "tokenizer: "))]


@pytest.mark.parametrize("which", ["large", "small", "both"])
def test_a_checkpoint_published_under_another_class(
    checkpoints: Callable[[str], Path], tmp_path: Path, which: str
) -> None:
    """As LTX-Video 0.9.5: the components of LTXConditionPipeline under an index that names LTXPipeline."""
    pair = tmp_path / "pair"
    for name in ("large", "small"):
        shutil.copytree(checkpoints("ltx-condition") / "large", pair / name)
    wanted = dataclasses.replace(request(pair, tmp_path / "bundle"), size="64x64", frames=9)
    expected = plan(wanted)
    for name in ("large", "small") if which == "both" else (which,):
        index = pair / name / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "LTXPipeline"}))
    asked = dataclasses.replace(wanted, pipeline="LTXConditionPipeline")
    found = plan(asked)
    assert found.pipeline == expected.pipeline
    assert found.pipeline.text_length == 256
    named = "as --pipeline says; model_index.json names LTXPipeline" if which != "small" else "as model_index.json says"
    assert found.pipeline_class == f"LTXConditionPipeline, {named}"
    assert found.advice == ()
    assert rebuild_command(asked)[-2:] == ("--pipeline", "LTXConditionPipeline")
    if which == "both":
        (advice,) = set(plan(dataclasses.replace(asked, pipeline=None)).advice[:1])
        assert "give --pipeline LTXConditionPipeline" in advice
    else:
        # What counts is the large model's pipeline.
        alone = plan(dataclasses.replace(asked, pipeline=None))
        theirs = "LTXPipeline" if which == "large" else "LTXConditionPipeline"
        assert alone.pipeline_class == f"{theirs}, as model_index.json says"
        assert (alone.pipeline == expected.pipeline) == (which == "small")
        told = [line for line in alone.advice if line.startswith("the model small is published as LTX")]
        assert len(told) == 1
        assert f"is run as the first model is, with {theirs};" in told[0]
    with pytest.raises(UsageError, match=r"--pipeline WanPipeline was given, but .* is a checkpoint of LTX"):
        plan(dataclasses.replace(asked, pipeline="WanPipeline"))


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
    monkeypatch.setattr("flowblending.export.families.wan.family._ARCHITECTURES", names)
    # Another geometry: ONNX Runtime's engines take any size, so nothing is built.
    console = Recorder()
    sampling = ModelSampling(timesteps=(1000.0, 993.75, 725.0), guidance=1.0)
    moved = build_bundle(dataclasses.replace(request(pair, out, {"small": sampling}), size="64x64"), console).manifest
    assert {line.partition(":")[2] for line in said(console.lines)} == {" reused, nothing changed"}
    assert moved.geometry.width == 64
    assert [model.sampling for model in moved.models] == [None, sampling]
    assert open_bundle(out).manifest.models[1].sampling == sampling
    assert moved.rebuild[-4:] == ("--small-timesteps", "1000,993.75,725", "--small-guidance", "1")
    assert before.components["large"].architecture is None
    assert moved.components["large"].architecture == "toy large"
    assert moved.components["text_encoder"].architecture is None
    assert {name: each.key for name, each in moved.components.items()} == {
        name: each.key for name, each in before.components.items()
    }
    # What a call costs is known for every size.
    assert moved.components["large"].flops == before.components["large"].flops
    assert moved.id != before.id
    # One byte of the small model's weights, and one file of the bundle damaged.
    weights = pair / "small" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (out / "text_encoder.onnx").write_bytes(b"damaged")
    console = Recorder()
    changed = build_bundle(request(pair, out), console)
    assert "small: rebuilt, weights changed" in console.lines
    assert changed.manifest.components["small"].architecture == "toy small"
    assert changed.manifest.models[1].sampling is None
    assert "text_encoder: rebuilt, its files changed" in console.lines
    assert sum("reused" in line for line in console.lines) == 4
    assert changed.manifest.preview == moved.preview == before.preview  # which hangs on the VAE alone
    assert before.preview is not None
    assert (out / before.preview.file.path).is_file()
    changed.verify(recompute=True)


KILLED_IN_EVERY_PHASE = """
import dataclasses, os, signal, sys
from contextlib import contextmanager
from pathlib import Path
import flowblending.export.graph.trace, flowblending.export.verify.verify, flowblending.export.families.wan.family
from flowblending.engine.build.build import build_bundle
from tests.support.store_process import Recorder
from tests.engine.build.test_build import request
class Killer(Recorder):
    def __init__(self, where):
        super().__init__()
        self.where = where
    @contextmanager
    def phase(self, title):
        self.reach(title)
        yield lambda doing: self.reach(f"{title}: {doing}")
    def log(self, line):
        print(line, flush=True)
    def reach(self, where):
        if where == self.where:
            os.kill(os.getpid(), signal.SIGKILL)
for where in sys.argv[4:]:
    child = os.fork()
    if child == 0:
        order = request(Path(sys.argv[1]), Path(sys.argv[2]))
        build_bundle(dataclasses.replace(order, cache=Path(sys.argv[3])), Killer(where))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    print("killed", flush=True)
"""


def test_a_build_killed_in_any_phase_resumes_at_the_component_in_work(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    out, pair, cache = tmp_path / "out" / "bundle", tmp_path / "pair", tmp_path / "cache"
    shutil.copytree(build("wan").folder, out)
    shutil.copytree(checkpoints("wan"), pair)
    before = open_bundle(out).manifest
    weights = pair / "small" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    exporting, compiling = "small: exporting", "small: compiling for onnxruntime"
    phases = ["Reading checkpoints", f"{exporting}: tracing", f"{exporting}: verifying", compiling]
    command = [sys.executable, "-c", KILLED_IN_EVERY_PHASE, pair, out, cache, *phases]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    told = [said(run.splitlines()) for run in result.stdout.split("killed\n")]
    # What is needed of the disk is said first, of what was not found.
    assert [run[0].startswith("disk: up to ") for run in told[1:4]] == [True] * 3
    runs = [told[0], *(run[1:] for run in told[1:])]
    rebuilt = "small: rebuilt, weights changed"
    assert runs[0] == []
    assert runs[1] == ["large: reused, nothing changed", rebuilt]
    assert runs[2] == ["large: taken from the cache", rebuilt]
    assert runs[3][:2] == ["large: taken from the cache", rebuilt]
    assert open_bundle(out).manifest == before
    console = Recorder()
    bundle = build_bundle(dataclasses.replace(request(pair, out), cache=cache), console)
    assert said(console.lines)[1:4] == [
        "large: taken from the cache",
        rebuilt,
        "small: exported and verified by a build that was interrupted",
    ]
    assert not any("equals torch" in line for line in console.lines)
    bundle.verify(recompute=True)
    assert os.listdir(out.parent) == ["bundle"]
    # Another bundle, and no earlier one: everything comes from the cache, whatever the geometry.
    console = Recorder()
    other = dataclasses.replace(request(pair, tmp_path / "other"), cache=cache, size="64x64")
    assert build_bundle(other, console).manifest.geometry.width == 64
    disk, *taken = said(console.lines)
    assert disk.startswith("disk: up to ") and "in the cache" not in disk
    assert {line.partition(":")[2] for line in taken} == {" taken from the cache"}
    assert (tmp_path / "other" / "large.onnx").samefile(out / "large.onnx")
    # Which onnx would not read if it had two names.
    assert not (tmp_path / "other" / "large.onnx.data").samefile(out / "large.onnx.data")
    assert (tmp_path / "other" / "large.onnx.data").stat().st_nlink == 1


@pytest.mark.long
@pytest.mark.parametrize(("kind", "small"), [("wan", "fp16"), ("ltx", "bf16")])
def test_real_plans_are_built_without_a_gpu(kind: str, small: str, build: Build) -> None:
    """With two profiles each: a size, and a range."""
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    size, frames = IN_PLANS[kind]
    precision = f"large=fp16-mixed,small={small}"
    bundle = build(
        kind, size=size, frames=frames, backend="tensorrt-rtx", targets=("sm120", "sm89"), precision=precision
    )
    bundle.verify()
    for name, component in bundle.manifest.components.items():
        assert component.targets == ("sm89", "sm120")
        assert bundle.path(name).suffix == ".plan"
        assert bundle.path(name).stat().st_size > 50_000
        check_memory(bundle, name)
    precisions = {name: str(component.spec.precision) for name, component in bundle.manifest.components.items()}
    assert (precisions["large"], precisions["small"], precisions["text_encoder"]) == ("fp16-mixed", small, "bf16")
    # The name of the fused kernel, whose source lies in the plan.
    assert b"_gemm_mha_v2" in bundle.path("large").read_bytes()
    assert {path.suffix for path in bundle.folder.iterdir()} == {".plan", ".json", ".npz", ".npy"}
    check_proof(bundle, {"large": (8, "fp16"), "small": (4, small)})
    check_sizes(bundle)


def check_memory(bundle: Bundle, name: str) -> None:
    """The manifest has what the compiler states, for each profile; a transformer takes the latents that runs have."""
    manifest = bundle.manifest
    component = manifest.components[name]
    plan = read_proof(bundle.folder, name).plan
    assert plan is not None
    assert component.weights_bytes == plan.weights_bytes
    assert max(each.scratch_bytes or 0 for each in component.profiles) == plan.scratch_bytes
    if name in manifest.transformers:
        batches = [each.sizes["batch"] for each in component.profiles]
        assert set(batches) == ({(1, 1, 1), (2, 2, 2)} if manifest.pipeline.batched_guidance else {(1, 1, 1)})
        assert most_latents(manifest, name) == len(set(batches))


def check_proof(bundle: Bundle, expected: Mapping[str, tuple[int, str]]) -> None:
    """What the report says of plans: the attentions of each transformer, two a block, and the type of its layers."""
    report = read_report(bundle)
    assert report is not None
    for name, (attentions, kind) in expected.items():
        plan = report.components[name].plan
        assert plan is not None
        assert (plan.fused, plan.unfused, plan.differing) == (attentions, (), {})
        # Ten layers a block, whose types the plan names.
        assert plan.products is not None
        assert plan.products[kind] >= 5 * attentions
        assert plan.weights_bytes is not None
        assert 0 < plan.weights_bytes < plan.bytes
    assert report.memory.complete
    assert report.memory.weights == sum(
        each.plan.weights_bytes or 0 for each in report.components.values() if each.plan is not None
    )
    # Everything but what the plans give on their GPU is proved, the pair's trajectory in torch among it.
    left = {(claim.component, claim.claim) for claim in report.left}
    expected_left = {(name, "the engine gives what torch gives") for name in bundle.manifest.components}
    if gpu_architecture() not in bundle.manifest.components["large"].targets:
        expected_left.add(("bundle", "runs from a prompt to pixels"))
    assert left == expected_left
    assert not report.failed
    assert report.pair is not None
    assert 1e-4 < report.pair.overall["small"] < report.pair.allowed["small"]


def check_sizes(bundle: Bundle) -> None:
    """Everything was compared with torch at the smallest and the largest sizes that its plan was compiled for."""
    report, symbols = read_report(bundle), ("batch", "frames", "height", "width")
    assert report is not None
    assert len(bundle.manifest.profiles) == 2
    for name in ("large", "small"):
        ends = {
            tuple(getattr(each.symbols[symbol], end) for symbol in symbols)
            for each in component_profiles(bundle.manifest, name)
            for end in ("min", "max")
        }
        compared = report.components[name].compared.sizes
        found = {tuple(each[symbol] for symbol in symbols) for each in compared}
        assert ends <= found
    largest = max(math.prod(profile.max.latent_shape) for profile in bundle.manifest.profiles)
    assert report.memory.latents == 4 * report.slots * largest


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
    assert not said(console.lines)
    assert not os.listdir(small_disk)


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_nothing(
    checkpoints: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may take what was free when the build began."""
    monkeypatch.setattr("flowblending.engine.build.disk.free_bytes", lambda _: 10**12)
    console = Recorder()
    with pytest.raises(FlowBlendingError, match="The disk filled up while writing"):
        build_bundle(request(checkpoints("wan"), small_disk / "bundle"), console)
    assert said(console.lines)[0].endswith(", 1000.0 GB are free")
    assert not os.listdir(small_disk)


def test_a_shift_is_the_bundles_default(checkpoints: Callable[[str], Path], build: Build, tmp_path: Path) -> None:
    """No engine depends on it, and the bundle's videos do."""
    plain = build("wan")
    shutil.copytree(plain.folder, tmp_path / "bundle")
    asked = dataclasses.replace(request(checkpoints("wan"), tmp_path / "bundle"), shift=5.0)
    console = Recorder()
    shifted = build_bundle(asked, console)
    assert not [line for line in console.lines if "sampled by its authors" in line]
    assert shifted.manifest.pipeline == dataclasses.replace(
        plain.manifest.pipeline, grid=dataclasses.replace(plain.manifest.pipeline.grid, shift=5.0)
    )
    assert shifted.manifest.id != plain.manifest.id
    assert shifted.manifest.components == plain.manifest.components
    assert shifted.manifest.rebuild[-2:] == ("--shift", "5")
    job = Job(prompt="x", steps=6)
    told = dataclasses.replace(job, shift=5.0)
    assert compile_job(job, shifted.manifest) == compile_job(told, plain.manifest) != compile_job(job, plain.manifest)
    assert compile_job(dataclasses.replace(job, shift=3.0), shifted.manifest) == compile_job(job, plain.manifest)


@pytest.mark.parametrize(
    ("shift", "told"),
    [
        (
            None,
            "a shift of 12 in place of 3, guidance 6 in place of 5 (toy.py); for that give --shift 12 --guidance 6.",
        ),
        (12.0, "guidance 6 in place of 5 (toy.py); for that give --guidance 6."),
    ],
)
def test_what_the_authors_of_a_known_model_take_is_told(
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shift: float | None,
    told: str,
) -> None:
    config = json.loads((checkpoints("wan") / "large/transformer/config.json").read_text())
    key = (config["num_layers"], config["num_attention_heads"], config["attention_head_dim"])
    authors = AuthorsSampling(model="Toy", shift=12.0, steps=50, guidance=(6.0,), source="toy.py")
    monkeypatch.setattr("flowblending.export.families.wan.family._ARCHITECTURES", {key: "toy"})
    monkeypatch.setattr("flowblending.export.families.wan.authors.AUTHORS", {("toy", False): authors})
    found = plan(dataclasses.replace(request(checkpoints("wan"), tmp_path / "bundle"), shift=shift))
    assert found.pipeline.authors == authors
    assert [line for line in found.advice if "Toy" in line] == [f"Toy is sampled by its authors with {told}"]
    assert "authors" not in repr(found.pipeline)


def test_a_shift_of_fixed_levels_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="A shift of 5 was given, but the noise levels of this model's pipeline are a"):
        plan(dataclasses.replace(request(checkpoints("ltx-condition"), tmp_path / "bundle"), shift=5.0))


def test_the_manifest_says_how_to_build_the_bundle_again(build: Build) -> None:
    bundle = build("wan")
    content = json.loads((bundle.folder / "manifest.json").read_text())
    command = content["rebuild"]
    assert command[0] == "fb-build-engines"
    assert Path(command[command.index("--large") + 1]).is_absolute()
    assert content["format"] == FORMAT
    assert set(content["components"]) == {"large", "small", "text_encoder", "vae_first", "vae_next"}
    assert min(content["components"]["large"]["flops"]["attention"][1:]) > 0
