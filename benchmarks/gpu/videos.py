"""The stages that measure a pair at its real size: built for a back end in a precision, called, and run end to end.

Weights are random, so that what is told is time and memory, and never how a video looks.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.backends import check_backend
from benchmarks.gpu.pairs import Pair
from benchmarks.gpu.stage import Item, Results, Work
from benchmarks.gpu.timing import Peak
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import Manifest

if TYPE_CHECKING:
    from benchmarks.gpu.measured import Measured
    from flowblending.engine.backends.tensor import Tensor
    from flowblending.runtime.events import FinishedEvent
    from flowblending.runtime.options import Job

ALL_LARGE = "LLL"
VIDEOS = (
    (ALL_LARGE, "off"),
    ("LSL", "off"),
    ("SSS", "off"),
    (ALL_LARGE, "taylor:1"),
    ("LSL", "taylor:1"),
    ("LSL", "taylor:2"),
)
"""Schedules and step caches of the videos that are made."""

PROMPT = "A cat walks on the grass."
STEPS = (50, 20, 10)
"""Of a video: the first that is expected to fit into one run of the stage."""
_TINY_STEPS = (4,)
_CALLS = 4
"""Steps that a model's call is measured in, of which the first warms up."""
_SWITCHES = 10
_BUILD_LARGE, _BUILD, _DECODE, _OPEN = 240.0, 100.0, 40.0, 60.0
"""Seconds that these are expected to take before they have been measured."""


def videos(precision: Precision, backend: str, pair: Pair, work: Work) -> Iterator[Item]:
    """The measurements of one of these stages."""
    check_backend(backend)
    from benchmarks.gpu.measured import Measured

    measured = Measured(pair, precision, backend, work)
    for name in measured.bundle.components:
        yield Item(
            key=f"build {name}",
            run=functools.partial(_build, measured, name),
            expected=functools.partial(_expected_build, name, work),
            there=functools.partial(measured.bundle.built, name),
        )
    yield Item(key="calls", run=functools.partial(_calls, measured))
    yield Item(key="switch", run=functools.partial(_switch, measured))
    for schedule, cache in VIDEOS:
        yield Item(
            key=video_key(schedule, cache),
            run=functools.partial(_video, measured, schedule, cache),
            expected=functools.partial(_expected_now, measured, schedule, cache),
        )


def _expected_build(name: str, work: Work, _: Results) -> float:
    """Seconds of a build."""
    if work.tiny:
        return 0.0
    return _BUILD_LARGE if name.startswith("large") else _BUILD


def video_key(schedule: str, cache: str) -> str:
    """As the record names a video."""
    return schedule if cache == "off" else f"{schedule} {cache}"


def _build(measured: Measured, name: str, _: Results) -> dict[str, Any]:
    return measured.bundle.build(name)


def _calls(measured: Measured, _: Results) -> dict[str, Any]:
    """Seconds of a call of each model, one guidance branch, and the memory that the models take."""
    from flowblending.runtime.program.cost import flops_at

    measured.check(*measured.transformers)
    manifest, letters = measured.manifest, _letters(measured.manifest)
    tokens = manifest.pipeline.tokens(manifest.geometry.latent_shape)
    peak, found = Peak(measured.free), {}
    with peak.watched():
        for name in measured.transformers:
            begun = time.monotonic()
            result = _run(measured, f"{letters[name]}{_CALLS}", guidance=1.0)
            seconds = statistics.median(result.step_seconds[1:])
            found[name] = {
                "seconds": seconds,
                "first": result.step_seconds[0],
                "opening and all calls": time.monotonic() - begun,
                "TFLOPs": flops_at(manifest, name, tokens) / 1e12,
                "TFLOPs per second": flops_at(manifest, name, tokens) / seconds / 1e12,
            }
    return {"models": found, "memory": _memory(measured, peak)}


def _switch(measured: Measured, results: Results) -> dict[str, Any]:
    """What a change of models costs: steps of two models in turn, beside their calls."""
    measured.check(*measured.transformers)
    names, letters = measured.transformers, _letters(measured.manifest)
    pair = names[0], names[-1]
    steps = " ".join(f"{letters[name]}1" for _ in range(_SWITCHES // 2) for name in pair)
    result = _run(measured, steps, guidance=1.0)
    calls = _model_calls(results)
    expected = sum(calls[name] for name in pair) * (_SWITCHES // 2)
    return {
        "switches": _SWITCHES - 1,
        "seconds": result.loop_seconds,
        "seconds of as many calls without": expected,
        "seconds per switch": (result.loop_seconds - expected) / (_SWITCHES - 1),
    }


def _video(measured: Measured, schedule: str, cache: str, results: Results) -> dict[str, Any]:
    """A video from its prompt to its frames, which are decoded and not written."""
    from flowblending.runtime.events import FinishedEvent
    from flowblending.runtime.program.cost import cost_of
    from flowblending.runtime.run import VideoRun

    measured.check(*measured.bundle.components)
    steps = _steps(measured, results)
    run = VideoRun(measured.pipeline, _job(schedule, steps, cache=cache), open_first=True)
    # As the run itself plans it, right after.
    plan = measured.pipeline.plan(run.program, texts=len(run.program.branches()), decode=True)
    peak = Peak(measured.free)
    finished: FinishedEvent | None = None
    with peak.watched():
        for event in run.events():
            if isinstance(event, FinishedEvent):
                finished = event
    assert finished is not None, "a run ends with its last event"
    cost = cost_of(run.program, measured.manifest)
    sample = finished.sample
    return {
        "steps": len(run.program.steps),
        "sampling": sample.loop_seconds,
        "engines": sample.engine_seconds,
        "stages": dict(finished.seconds),
        # Without what is done once for any number of videos.
        "video": finished.seconds["total"] - finished.seconds.get("loading", 0.0),
        "calls": dict(sample.calls),
        "steps launched as graphs": sample.graphs.launches,
        "TFLOPs": cost.flops / 1e12,
        "bound": cost.bound,
        "memory": {**_memory(measured, peak), "mode": plan.mode, "planned bytes": plan.peak},
    }


def _letters(manifest: Manifest) -> dict[str, str]:
    """What schedules call each engine alone."""
    letters: dict[str, str] = {}
    for model in manifest.models:
        letters |= dict(zip(model.components, model.letters or (model.letter,), strict=True))
    return letters


def _job(schedule: str, steps: int | None, *, cache: str = "off", guidance: float | None = None) -> Job:
    from flowblending.runtime.options import Job

    return Job(prompt=PROMPT, schedule=schedule, steps=steps, cache=cache, guidance=guidance)


def _run(measured: Measured, runs: str, *, guidance: float) -> Any:
    """Sample with text that is random numbers, so that the transformers alone have to be there."""
    from flowblending.contracts.conditions import Source
    from flowblending.contracts.program import COND
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.media.noise import draw_latents

    pipeline, generator = measured.pipeline, np.random.default_rng(0)
    job = _job(runs, None, guidance=guidance)
    text: dict[str, Tensor] = {}
    for each in measured.manifest.pipeline.conditions:
        if each.sources[0] in (Source.TEXT, Source.TEXT_MASK):
            shape = tuple(1 if size == "batch" else int(size) for size in each.shape)
            numbers = np.ones(shape) if each.sources[0] is Source.TEXT_MASK else generator.standard_normal(shape)
            text[each.sources[0]] = pipeline.device.upload(numbers.astype(each.dtype))
    program = compile_job(job, measured.manifest)
    latents, _ = draw_latents(0, program.latent_shape)
    conditions = pipeline.encode(job, program, lambda _: None, {COND: text})
    return pipeline.sample(program, latents, conditions)


def _steps(measured: Measured, results: Results) -> int:
    """As many as the slowest video allows: all are made with the same."""
    work = measured.work
    if work.tiny:
        return _TINY_STEPS[0]
    for steps in STEPS[:-1]:
        if _expected(measured, ALL_LARGE, "off", steps, results) < work.seconds - _OPEN:
            return steps
    return STEPS[-1]


def _expected_now(measured: Measured, schedule: str, cache: str, results: Results) -> float:
    """Seconds of a video, with what is opened for it."""
    if measured.work.tiny or "calls" not in results or not measured.bundle.built(measured.bundle.components[-1]):
        return 0.0  # it will say at once that it cannot run
    opened = any(measured.pipeline.engines.is_open(name) for name in measured.transformers)
    seconds = _expected(measured, schedule, cache, _steps(measured, results), results)
    return seconds if opened else seconds + _OPEN


def _expected(measured: Measured, schedule: str, cache: str, steps: int, results: Results) -> float:
    """Seconds of a video, from those of its calls and of the last video's other parts."""
    from flowblending.runtime.jobs import compile_job

    calls = _model_calls(results)
    program = compile_job(_job(schedule, steps, cache=cache), measured.manifest)
    sampling = sum(program.calls(name) * seconds for name, seconds in calls.items())
    videos = [results[key] for key in (video_key(*each) for each in VIDEOS) if key in results]
    beside = videos[-1]["video"] - videos[-1]["sampling"] if videos else _DECODE
    return 1.05 * float(sampling) + float(beside)


def _model_calls(results: Results) -> dict[str, float]:
    if "calls" not in results:
        raise FlowBlendingError("the models' calls were not measured, so that this was not either.")
    models: Mapping[str, Mapping[str, float]] = results["calls"]["models"]
    return {name: told["seconds"] for name, told in models.items()}


def _memory(measured: Measured, peak: Peak) -> dict[str, Any]:
    """What was taken at most, beside what the engines that are open say of themselves."""
    from flowblending.engine.backends.protocol import InspectedEngine

    pipeline, components = measured.pipeline, measured.manifest.components
    opened = [name for name in components if pipeline.engines.is_open(name)]
    engines = [pipeline.engines.get(name) for name in opened]
    return {
        "peak bytes": peak.bytes,
        "engine bytes": sum(components[name].weights_bytes or components[name].engine_bytes for name in opened),
        # They share one, of the size of the largest.
        "scratch bytes": max((each.device_bytes() for each in engines if isinstance(each, InspectedEngine)), default=0),
        "open": opened,
    }
