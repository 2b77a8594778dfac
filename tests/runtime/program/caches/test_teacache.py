"""TeaCache: its rule against the source's loop, its signals against torch, and its constants from build to run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, LTX_2B, SMALL, WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.contracts.program import COND, Run
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.calibrate.divergence import DivergenceRecorder
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.caches.policy import Outline, decide
from flowblending.runtime.program.caches.teacache import (
    CHANGES,
    COEFFICIENTS,
    CONSTANTS,
    NAME,
    TIMESTEPS,
    TeaCache,
    fit,
)
from tests.conftest import Build
from tests.support import manifests
from tests.support.schedules import visits

Floats = npt.NDArray[np.float32]
WAN = {LARGE: WAN_T2V_14B, SMALL: WAN_T2V_1_3B}


def outline(schedule: str, distances: Mapping[str, Sequence[float]], **changes: object) -> Outline:
    steps = sum(int(run[1:]) for run in schedule.split())
    timesteps = tuple(np.linspace(1000.0, 20.0, steps).tolist())
    made = Outline(
        schedule=visits(schedule),
        timesteps=timesteps,
        guided=True,
        architectures=WAN,
        constants={NAME: distances, TIMESTEPS: dict.fromkeys(distances, timesteps)},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def published(
    models: Sequence[str], signals: Mapping[str, npt.NDArray[np.float64]], thresholds: Mapping[str, float]
) -> str:
    """``teacache_forward`` of Wan with ``use_ret_steps``, for one branch, with the sum set back at a switch."""
    polynomials = {
        LARGE: np.poly1d([-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01]),
        SMALL: np.poly1d([-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02]),
    }
    digits, accumulated, before = "", 0.0, ""
    for step, model in enumerate(models):
        signal = signals[model]
        compute = True
        if step >= 5 and model == before:
            change = np.abs(signal[step] - signal[step - 1]).mean() / np.abs(signal[step - 1]).mean()
            accumulated += polynomials[model](change)
            compute = accumulated >= thresholds[model]
        if compute:
            accumulated = 0.0
        digits, before = digits + "01"[bool(compute)], model
    return digits


def walk_of(steps: int, seed: int, scale: float) -> npt.NDArray[np.float64]:
    """A signal that moves by a few per cent a step, [steps, width]."""
    random = np.random.default_rng(seed)
    start = random.standard_normal(32)
    return np.asarray(start + scale * np.cumsum(random.standard_normal((steps, 32)), axis=0))


@pytest.mark.parametrize("schedule", ["L50", "S30", "L12 S20 L8", "L3 S4 L9", "S6"])
def test_it_decides_as_published(schedule: str) -> None:
    steps = sum(int(run[1:]) for run in schedule.split())
    signals = {LARGE: walk_of(steps, 1, 0.05), SMALL: walk_of(steps, 2, 0.05)}
    recorder = DivergenceRecorder(
        guidance=1.0,
        models={model.letter: [model.name] * steps for model in manifests.MODELS},
        signals={
            model: lambda _, t, signal=signal: signal[int(t)].astype(np.float32) for model, signal in signals.items()
        },
    )
    velocity = np.ones((1, 2, 1, 1, 1), np.float32)
    for step in range(steps):
        recorder.add(step, velocity * step, float(step), {letter: {COND: velocity + step} for letter in "LS"})
    caches = recorder.result().caches
    assert caches[TIMESTEPS][SMALL] == list(range(steps))
    assert caches[CHANGES][LARGE][:3] == pytest.approx([0.0, 1.0, 0.5][:steps])
    run = outline(schedule, caches[NAME])
    for cache, thresholds in (
        ([TeaCache()], {LARGE: 0.1, SMALL: 0.05}),
        ([TeaCache(threshold=0.3)], {LARGE: 0.3, SMALL: 0.3}),
    ):
        decisions = decide(cache, run)
        found = "".join("01"[each] for each in decisions.cond)
        assert found == published(run.schedule.models, signals, thresholds)
        assert decisions.uncond == decisions.cond
    assert "0" in found or steps == 6


def test_ltx_and_models_without_published_coefficients() -> None:
    distances = np.random.default_rng(3).uniform(0.005, 0.03, 20).tolist()
    run = outline("L20", {LARGE: distances}, architectures={LARGE: LTX_2B})

    def loop(polynomial: Callable[[float], float], threshold: float, first: int) -> str:
        digits, total = "", 0.0
        for step, distance in enumerate(distances):
            total += polynomial(distance)
            skip = first <= step < 19 and total < threshold
            total = total if skip else 0.0
            digits += "10"[skip]
        return digits

    polynomial = np.poly1d([2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03])
    for threshold, cache in ((0.03, "teacache"), (0.07, "teacache:0.07")):
        expected = loop(lambda x: float(polynomial(x)), threshold, 1)
        assert "".join("01"[each] for each in decide(parse_cache(cache), run).cond) == expected
        assert "0" in expected
    coefficients: Mapping[str, Sequence[float]] = {LARGE: [2.0, 0.001]}
    constants: dict[str, Mapping[str, Sequence[float]]] = {**run.constants, COEFFICIENTS: coefficients}
    unknown = dataclasses.replace(run, architectures={}, constants=constants)
    expected = loop(lambda x: 2 * x + 0.001, 0.05, 5)
    assert "".join("01"[each] for each in decide([TeaCache()], unknown).cond) == expected


def test_a_polynomial_is_found_again() -> None:
    distances = np.linspace(0.01, 0.2, 30).tolist()
    polynomial = [300.0, -20.0, 5.0, 0.5, 0.01]
    assert fit(distances, np.polyval(polynomial, distances).tolist()) == pytest.approx(polynomial, rel=1e-6)
    # Two distances make a line, one a constant.
    assert fit([0.1, 0.2], [1.0, 3.0]) == pytest.approx([20.0, -1.0])
    assert fit([0.1, 0.1], [1.0, 3.0]) == pytest.approx([2.0])


def test_what_is_refused(tmp_path: Path) -> None:
    manifests.write(tmp_path / "b")
    manifest = open_bundle(tmp_path / "b").manifest
    with pytest.raises(UsageError, match="no distances for the bundle's large model; measure them with fb-calibrate"):
        compile_job(Job(prompt="x", steps=9, schedule="L9", cache="teacache"), manifest)
    run = outline("L9", {LARGE: [0.1] * 9})
    shorter: dict[str, Mapping[str, Sequence[float]]]
    shorter = {NAME: {LARGE: [0.1] * 8}, TIMESTEPS: {LARGE: run.timesteps[:8]}}
    with pytest.raises(UsageError, match=r"measured at 8 steps, and the run has 9 or other timesteps; .* --steps 9"):
        decide([TeaCache()], dataclasses.replace(run, constants=shorter))
    with pytest.raises(UsageError, match="measured at 9 steps, and the run has 9 or other timesteps"):
        decide([TeaCache()], dataclasses.replace(run, timesteps=tuple(t - 3 for t in run.timesteps)))
    decide([TeaCache()], dataclasses.replace(run, timesteps=tuple(t - 0.9 for t in run.timesteps)))
    with pytest.raises(UsageError, match="teacache:-1 has -1 where a number above 0"):
        parse_cache("teacache:-1")
    assert all(len(each.coefficients) == 5 for each in CONSTANTS.values())


@pytest.mark.slow
def test_the_signal_of_ltx_is_what_enters_the_first_block(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """The export itself compares it with the unmodified class; it looks at latents and timestep."""
    from flowblending.contracts.graph import Precision
    from flowblending.engine.backends.registry import open_engine
    from flowblending.export.families.ltx.family import Ltx
    from flowblending.export.verify.verify import export_and_verify
    from flowblending.runtime.calibrate.signal import EngineSignal

    part = Ltx().signal(checkpoints("ltx") / "small", "small_signal")
    graph, parity = export_and_verify(part, Precision.FP32, tmp_path, "", lambda _: None)
    assert parity.relative < 1e-5
    signal = EngineSignal(open_engine(backend="onnxruntime", path=graph.onnx, spec=graph.spec, device="cpu", threads=1))
    latents = np.random.default_rng(0).standard_normal((1, 8, 3, 2, 3)).astype(np.float32)
    one, other, later = signal(latents, 900.0), signal(2 * latents[:, ::-1].copy(), 900.0), signal(latents, 500.0)
    assert one.shape == (1, 32, 3, 2, 3)
    assert min(np.abs(one - other).max(), np.abs(one - later).max()) > 1e-3


@pytest.mark.slow
def test_from_the_build_to_the_run(
    build: Build, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowblending.engine.build.build import BuildRequest, build_bundle
    from flowblending.engine.build.request import named_models
    from flowblending.runtime.calibrate import cli
    from flowblending.runtime.calibrate.signal import open_signals
    from flowblending.system.console import Console
    from tests.conftest import SMALLEST

    monkeypatch.chdir(tmp_path)
    before = build("wan")
    shutil.copytree(before.folder, tmp_path / "b")
    Path("prompts.txt").write_text("a cat\n")

    def calibrate() -> int:
        options = ["b", "--prompts", "prompts.txt", "--steps", "8", "--cache", "teacache", "--device", "cpu"]
        with pytest.raises(SystemExit) as exit_:
            cli.main([*options, "--quiet"])
        return int(exit_.value.code or 0)

    assert calibrate() == 2
    request = BuildRequest(
        models=named_models(str(checkpoints("wan") / "large"), str(checkpoints("wan") / "small")),
        out=tmp_path / "b",
        size=SMALLEST["wan"].size,
        frames=SMALLEST["wan"].frames,
        precision=None,
        backend="onnxruntime",
        targets=(),
        teacache=True,
    )
    bundle = build_bundle(request, Console(quiet=True))
    bundle.verify()
    assert bundle.manifest.rebuild[-1] == "--teacache"
    # The engines are the same, and so are the videos.
    assert (bundle.manifest.id, bundle.manifest.components) == (before.manifest.id, before.manifest.components)
    assert calibrate() == 0
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.calibration is not None
    timesteps = [step.timestep for step in compile_job(Job(prompt="x", steps=8, schedule="L8"), manifest).steps]
    assert manifest.calibration.caches[TIMESTEPS][SMALL] == pytest.approx(timesteps)
    nothing = np.zeros((1, *manifest.geometry.latent_shape), np.float32)
    for model, signal in open_signals(bundle, 1).items():
        values = [signal(nothing, t).astype(np.float64) for t in timesteps]
        pairs = zip(values[1:], values[:-1], strict=True)
        expected = [0.0, *(np.abs(now - last).mean() / np.abs(last).mean() for now, last in pairs)]
        assert manifest.calibration.caches[NAME][model] == pytest.approx(expected, rel=1e-4)
    program = compile_job(Job(prompt="x", steps=8, schedule="L8", cache="teacache:1e9"), manifest)
    runs = "".join("1" if any(isinstance(each, Run) for each in step.instructions) else "0" for step in program.steps)
    assert runs == "11111001"
    with pytest.raises(UsageError, match="measured at 8 steps, and the run has 7"):
        compile_job(Job(prompt="x", steps=7, schedule="L7", cache="teacache"), manifest)
