"""From prompt to video on a GPU: a stand-in for it, on which plans run ONNX Runtime's CPU kernels.

What the library itself does there is the same as on a real GPU: cuda-core's calls, NVRTC's kernels, streams, events,
memory and TensorRT's contexts. So the videos have the CPU's bits, and the journal says what every step costs.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flowblending
from flowblending import FramesEvent, LatentsEvent, OutOfMemoryError, PreviewEvent, StepEvent
from flowblending.contracts.program import Mix, Program, Rescale, Run
from flowblending.contracts.tiling import Tiling
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.cli import main
from flowblending.runtime.devices.arena import Arena
from flowblending.runtime.devices.cuda import CudaDevice
from flowblending.runtime.devices.cuda_kernels import MAX_TERMS
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.devices.pictures import HEADER
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.media.noise import TorchNormal
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from tests.conftest import Build
from tests.support.cuda.bundles import SCRATCH, plans_of
from tests.support.cuda.driver import Driver, Entry

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

JOB = Job(prompt="a green square", negative_prompt="red", seed=3, steps=4, schedule="LSL")
Video = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def plans(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def make(kind: str) -> Bundle:
        if kind not in made:
            made[kind] = plans_of(build(kind), tmp_path_factory.mktemp("plans") / kind)
        return made[kind]

    return make


@pytest.fixture
def pipeline(plans: Callable[[str], Bundle]) -> Iterator[Pipeline]:
    bundle = plans("wan")
    opened = Pipeline(bundle=bundle, device=open_device("auto", bundle.manifest))
    yield opened
    opened.device.close()
    opened.close()


def video(sampler: flowblending.VideoSampler, **options: Any) -> Video:
    """Final latents and all frames."""
    job = {"steps": 4, "schedule": "LSL", "seed": 3, "negative_prompt": "red", **options}
    events = list(sampler.generate("a green square", **job))
    (latents,) = [event.latents.numpy() for event in events if isinstance(event, LatentsEvent)]
    return latents, np.concatenate([event.frames for event in events if isinstance(event, FramesEvent)], axis=1)


def assert_equal(found: Video, expected: Video) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def expected(build: Build) -> Video:
    """The Wan bundle's video on the CPU."""
    with flowblending.open(build("wan").folder, device="cpu", threads=1) as sampler:
        return video(sampler)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wan", {}),
        ("ltx", {}),
        ("ltx-condition", {}),
        ("wan", {"batched_guidance": True, "steps": 8, "solver": "euler"}),
        ("wan", {"guidance": 1.0, "solver": "dpm++"}),
        ("wan", {"cache": "easycache:0.5,2", "steps": 8}),
        ("ltx", {"cache": "taylor:2", "steps": 6, "solver": "euler"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_a_video_has_the_bits_of_the_cpu(
    kind: str, options: dict[str, Any], plans: Callable[[str], Bundle], build: Build, driver: Driver
) -> None:
    videos = []
    for folder, device in ((build(kind).folder, "cpu"), (plans(kind).folder, "cuda")):
        with flowblending.open(folder, device=device, threads=1) as sampler:
            videos.append(video(sampler, **options))
            if device == "cuda":
                with driver.at_once():
                    videos.append(video(sampler, **options))
    for each in videos[1:]:
        assert_equal(each, videos[0])


def test_previews_are_those_of_the_cpu_and_change_nothing(
    plans: Callable[[str], Bundle], build: Build, expected: Video, driver: Driver
) -> None:
    pictures: list[dict[int, npt.NDArray[np.uint8]]] = []
    for folder, device in ((build("wan").folder, "cpu"), (plans("wan").folder, "cuda")):
        with flowblending.open(folder, device=device, threads=1) as sampler, driver.at_once():
            job: dict[str, Any] = {"steps": 4, "schedule": "LSL", "seed": 3, "negative_prompt": "red"}
            events = list(sampler.generate("a green square", preview_every=1, **job))
        pictures.append({each.index: each.picture for each in events if isinstance(each, PreviewEvent)})
        (latents,) = [each.latents.numpy() for each in events if isinstance(each, LatentsEvent)]
        np.testing.assert_array_equal(latents, expected[0])
    cpu, gpu = pictures
    assert list(cpu) == [0, 1, 2, 3]
    assert gpu
    for index, picture in gpu.items():
        np.testing.assert_array_equal(picture, cpu[index])


def test_steps_are_graphs_unless_nobody_wants_them(plans: Callable[[str], Bundle], driver: Driver) -> None:
    found = []
    for choice, launches in (("auto", 4), ("off", 0)):
        with flowblending.open(plans("wan").folder, device="cuda", cuda_graph=choice) as sampler:
            driver.journal()
            found.append(video(sampler, steps=5, schedule="LLL", solver="euler", guidance=1.0))
            journal = driver.journal()
        assert sum(each.what == "graph" for each in journal) == launches
    assert_equal(found[0], found[1])


@pytest.mark.usefixtures("driver")
def test_graphs_are_made_anew_where_scratch_memory_has_moved(pipeline: Pipeline) -> None:
    job = replace(JOB, schedule="LLL", steps=5, solver="euler", guidance=1.0)
    program = compile_job(job, pipeline.bundle.manifest)
    trajectory = pipeline.prepare(program, pipeline.encode(job, program, print))
    found = []
    for captures, launches in ((1, 4), (0, 5), (1, 4)):
        result = trajectory.run(np.ones((1, *program.latent_shape), np.float32))
        assert (result.graphs.captures, result.graphs.launches) == (captures, launches)
        found.append(pipeline.device.download(result.latents))
        if captures == 0:
            pipeline.engines.arena.release()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def kernels(program: Program) -> Counter[str]:
    """What a program's steps launch, by its instructions."""
    found: Counter[str] = Counter()
    for each in program.instructions():
        if isinstance(each, Run):
            found["launch watch"] += 1
            found["host"] += 1
            found["copy DtoD"] += len(each.branches) - 1
            found["record"] += 2
        elif isinstance(each, Rescale):
            found["launch moments"] += 1
            found["launch rescale"] += 1
        elif isinstance(each, Mix):
            terms = len(each.terms)
            while terms > MAX_TERMS:
                found[f"launch mix{MAX_TERMS}"] += 1
                terms -= MAX_TERMS - 1  # what there is already is the next one's first term
            found[f"launch mix{terms}"] += 1
    found["record"] += len(program.steps)
    return +found


@pytest.mark.parametrize("batched", [False, True])
def test_the_loop_enqueues_what_the_program_says_and_nothing_else(
    pipeline: Pipeline, driver: Driver, batched: bool
) -> None:
    """No allocation, no wait, no copy from or to the host."""
    job = replace(JOB, batched_guidance=batched, guidance_rescale=None if batched else 0.7)
    program = compile_job(job, pipeline.bundle.manifest)
    trajectory = pipeline.prepare(program, pipeline.encode(job, program, print))
    latents = pipeline.device.upload(np.ones((1, *program.latent_shape), np.float32))
    trajectory.run(latents)
    driver.journal()
    trajectory.run(latents)
    before, loop, after = _around_the_loop(driver.journal())
    assert before == ["memset", "copy DtoD"]
    assert Counter(map(str, loop)) == kernels(program)
    assert after[0] == "sync event"
    # The watch's word is all that is read.
    assert [each for each in after if "copy" in each] == ["copy DtoH"]


def test_engines_share_one_scratch_memory_from_before_the_loop_on(pipeline: Pipeline, driver: Driver) -> None:
    job = replace(JOB, steps=8, batched_guidance=True, cache="guidance:2")
    program = compile_job(job, pipeline.bundle.manifest)
    assert {len(each.branches) for each in program.instructions() if isinstance(each, Run)} == {1, 2}
    driver.journal()
    trajectory = pipeline.prepare(program, pipeline.encode(job, program, print))
    sizes = [each.bytes for each in driver.journal() if each.what == "alloc" and each.bytes >= SCRATCH]
    weights = [
        pipeline.bundle.manifest.components[name].weights_bytes or 0 for name in ("text_encoder", "large", "small")
    ]
    assert Counter(sizes) - Counter(weights) == Counter([SCRATCH])
    latents = np.ones((1, *program.latent_shape), np.float32)
    trajectory.run(latents)
    trajectory.run(latents)
    allocated = [each.bytes for each in driver.journal() if each.what == "alloc"]
    assert allocated == [latents.nbytes] * 2  # each run's own copy of what it starts from


@pytest.mark.usefixtures("driver")
def test_an_arena_too_small_is_found_before_the_loop(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: scratch memory of less than an engine takes is never given to it."""
    program = compile_job(JOB, pipeline.bundle.manifest)
    conditions = pipeline.encode(JOB, program, print)
    pipeline.device.close()
    given = Arena.at_least
    monkeypatch.setattr(Arena, "at_least", lambda arena, size: given(Arena(arena._device), size - 256))
    with pytest.raises(flowblending.FlowBlendingError, match=r"was given .* bytes of scratch memory, but it takes"):
        pipeline.prepare(program, conditions)


def _around_the_loop(journal: Sequence[Entry]) -> tuple[list[str], list[Entry], list[str]]:
    """Entries before the run's first mark, up to the first wait, and from there on."""
    first = next(index for index, each in enumerate(journal) if each.what == "record")
    last = next(index for index, each in enumerate(journal) if each.what in ("sync", "query"))
    return [*map(str, journal[:first])], [*journal[first + 1 : last]], [*map(str, journal[last:])]


@pytest.mark.parametrize(("kind", "floats"), [("wan", False), ("wan", True), ("ltx", False)])
def test_the_gpu_decodes_on_while_frames_leave(
    plans: Callable[[str], Bundle], driver: Driver, kind: str, floats: bool
) -> None:
    """The next step is enqueued before the last one's pictures are waited for; nothing is allocated or uploaded."""
    bundle = plans(kind)
    with contextlib.closing(Pipeline(bundle=bundle, device=open_device("auto", bundle.manifest))) as pipeline:
        latents = pipeline.device.upload(np.ones((1, *bundle.manifest.geometry.latent_shape), np.float32))
        pipeline.device.close()
        list(pipeline.decode(latents, TorchNormal(0), floats=floats))
        driver.journal()
        chunks = list(pipeline.decode(latents, TorchNormal(0), floats=floats))
        journal = driver.journal()
    first = next(index for index, each in enumerate(journal) if each.what == "host")
    work = [each for each in journal[first:] if each.what not in ("query", "free", "freed")]
    counts, pixels = [len(each.images) for each in chunks], math.prod(chunks[0].images.shape[1:])
    call = ["host", "memset", "launch pictures"]
    read = [*["copy DtoH"] * (1 + floats), "record"]
    # Wan's decoder is called for every part, and LTX's once for all; of the places of those nothing is known before.
    step, begin = ([*call, *read], []) if kind == "wan" else (read, call)
    found = [str(each) for each in work if kind == "wan" or each.what != "alloc"]
    # Two at first, then one more for each that is taken.
    assert found == [*begin, *step * 2, *["sync event", *step] * (len(counts) - 2), *["sync event"] * 2]
    headers = HEADER * (len(counts) if kind == "wan" else 1)
    copied = sum(each.bytes for each in work if str(each) == "copy DtoH")
    assert copied == sum(counts) * pixels * (1 + 4 * floats) + headers
    assert sum(str(each) == "alloc pinned" for each in journal) == 2


@pytest.mark.parametrize("floats", [False, True])
def test_tiles_have_the_bits_of_the_cpu_and_leave_the_gpu_no_gaps(
    build: Build, tmp_path: Path, driver: Driver, floats: bool
) -> None:
    """A plan of tiles alone; between the first call and the last, nothing is waited for or copied."""
    whole = build("wan")
    tiling = Tiling(width=32, height=32, overlap=16)
    manifest = whole.manifest.model_copy(update={"vae_tiling": tiling})
    tiled = plans_of(Bundle(folder=whole.folder, manifest=manifest), tmp_path / "plans")
    latents = np.random.default_rng(0).standard_normal((1, *manifest.geometry.latent_shape)).astype(np.float32)
    found = []
    for bundle, device in ((replace(tiled, manifest=manifest, folder=whole.folder), "cpu"), (tiled, "auto")):
        place = open_device(device, bundle.manifest)
        with contextlib.closing(Pipeline(bundle=bundle, device=place, machine=MachineSettings(threads=1))) as pipeline:
            given = pipeline.device.upload(latents)
            driver.journal()
            found.append(list(pipeline.decode(given, TorchNormal(0), floats=floats)))
            journal = driver.journal()
    for name in ("images", "frames") if floats else ("images",):
        cpu, gpu = (np.concatenate([getattr(each, name) for each in chunks], int(name == "frames")) for chunks in found)
        np.testing.assert_array_equal(gpu, cpu)
    calls = [index for index, each in enumerate(journal) if each.what == "host"]
    _, count, height, width = manifest.geometry.latent_shape
    tiles = len(list(tiling.tiles(height, width, 8)))
    assert len(calls) == count * tiles > count
    between = Counter(map(str, journal[calls[0] : calls[-1] + 1]))
    assert between["launch place"] == count * tiles - 1
    assert not {"copy DtoH", "copy HtoD", "sync event", "sync stream", "query"} & set(between)
    with pytest.raises(flowblending.UsageError, match=r"No tiles were asked for, .* compiled for tiles of 32x32\+16"):
        compile_job(replace(JOB, vae_tiling="off"), tiled.manifest)


def test_a_decoder_that_is_left_waits_for_what_it_reads(pipeline: Pipeline, driver: Driver) -> None:
    """Pinned memory may not go before the copies into it."""
    latents = pipeline.device.upload(np.ones((1, *pipeline.bundle.manifest.geometry.latent_shape), np.float32))
    chunks = pipeline.decode(latents, TorchNormal(0))
    next(chunks)
    driver.journal()
    chunks.close()
    assert "sync event" in map(str, driver.journal())


def test_memory_goes_when_its_phase_does(plans: Callable[[str], Bundle], driver: Driver) -> None:
    device = CudaDevice()
    device.close()
    nothing = driver.used(), driver.reserved()
    with flowblending.open(plans("wan").folder, device="cuda") as sampler:
        program = None
        for event in (generation := sampler.generate("a", steps=2)):
            program = generation.program
            if isinstance(event, StepEvent):
                while_sampling = driver.used() - nothing[0]
            if isinstance(event, LatentsEvent):
                latents = event.latents.tensor.nbytes
                # Conditions and the other slots are gone, and the pool keeps nothing for them.
                rows = -(-latents // 512) * 512
                opened = ("text_encoder", *{step.model for step in program.steps})
                # One scratch memory, however many engines are open.
                engines = SCRATCH + sum(sampler.manifest.components[name].weights_bytes or 0 for name in opened)
                assert driver.used() - nothing[0] <= engines + 2 * rows + 4096
                assert driver.reserved() - nothing[1] == driver.used() - nothing[0]
                assert while_sampling > driver.used() - nothing[0]
        assert program is not None
        del event, generation
    # Closing waits and gives back the weights and the scratch memory.
    assert driver.used() - nothing[0] <= 16 * 1024


def in_thread(work: Callable[[], object]) -> object:
    """What a function gives in a thread of its own, where no device is current."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    assert found, "the thread failed"
    return found[0]


@pytest.mark.usefixtures("driver")
def test_a_sampler_of_one_thread_is_used_in_others(plans: Callable[[str], Bundle], expected: Video) -> None:
    with flowblending.open(plans("wan").folder, device="cuda") as sampler:
        for _ in range(2):
            found = in_thread(lambda: video(sampler))
            assert_equal(found, expected)  # type: ignore[arg-type] # what the thread gives
        events = iter(sampler.generate("a green square", steps=4, schedule="LSL", seed=3, negative_prompt="red"))
        with contextlib.closing(events):  # a thread pool takes a new thread for every event
            while not isinstance(event := in_thread(lambda: next(events)), LatentsEvent):
                pass
            np.testing.assert_array_equal(in_thread(event.latents.numpy), expected[0])
    in_thread(sampler.close)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("current", [None, 1])
def test_the_callers_current_device_stays_what_it_is(plans: Callable[[str], Bundle], current: int | None) -> None:
    from cuda.bindings import driver as cuda

    cuda.cuInit(0)
    handle = 0 if current is None else int(cuda.cuDevicePrimaryCtxRetain(current)[1])

    def found() -> int:
        return int(cuda.cuCtxGetCurrent()[1])

    before = found()
    cuda.cuCtxSetCurrent(handle)
    try:
        with flowblending.open(plans("wan").folder, device="cuda") as sampler:
            assert found() == handle
            sampler.encode("a")
            for event in sampler.generate("a", steps=2):
                assert found() == handle
                if isinstance(event, LatentsEvent):
                    event.latents.numpy()
        assert found() == handle
    finally:
        cuda.cuCtxSetCurrent(before)


def test_a_stream_of_another_gpu_takes_the_run_there(
    plans: Callable[[str], Bundle], expected: Video, driver: Driver
) -> None:
    other = CudaDevice(1)
    other.close()
    driver.journal()
    for stream in (other.stream, SimpleNamespace(handle=other.stream)):
        with flowblending.open(plans("wan").folder, device="cuda", stream=stream) as sampler:
            assert sampler.pipeline.device.index == 1
            assert_equal(video(sampler), expected)
    touched = {each.device for each in driver.journal() if each.what in ("launch", "host", "copy", "memset")}
    assert touched == {1}


def test_memory_that_runs_out_is_said_to_and_other_failures_are_not(
    plans: Callable[[str], Bundle], driver: Driver
) -> None:
    device = CudaDevice()
    with (
        driver.limited(1 << 16),
        pytest.raises(OutOfMemoryError, match=r"GPU has no memory left .*stop other programs"),
    ):
        device.empty((1 << 20,), np.dtype(np.float32))
    with (
        flowblending.open(plans("wan").folder, device="cuda") as sampler,
        driver.limited(SCRATCH // 2),
    ):
        with pytest.raises(OutOfMemoryError, match=r"takes .* of the GPU .* \(most of it to encode\), and .*; stop"):
            sampler.encode("a")
        with pytest.raises(OutOfMemoryError, match=r"cannot load .*text_encoder.plan \(.*stop other programs on"):
            sampler.pipeline.engines.get("text_encoder")
    lost = device.empty((4,), np.dtype(np.float32))
    device.mix(lost, [(1.0, SimpleNamespace(address=0x1000))])  # type: ignore[list-item] # no memory of the GPU's
    for call in (device.close, lambda: device.upload(np.ones(4, np.float32)), lambda: device.empty((4,), lost.dtype)):
        with pytest.raises(flowblending.DeviceError, match="ILLEGAL_ADDRESS") as told:
            call()
        assert not isinstance(told.value, OutOfMemoryError)
        assert "memory left" not in str(told.value)
    assert len(driver.revive()) == 1


@pytest.mark.usefixtures("driver")
def test_workers_take_a_gpu_each(plans: Callable[[str], Bundle], tmp_path: Path, build: Build) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"square {n}", "steps": 2, "seed": n}) + "\n" for n in range(3)))
    found: dict[str, dict[str, bytes]] = {}
    # Of one thread, as what computes for the stand-in: with another number of threads other sums are rounded.
    places = (("cuda", plans("wan").folder, ["--workers", "2"]), ("cpu", build("wan").folder, ["--threads", "1"]))
    for device, folder, options in places:
        out = tmp_path / device
        arguments = [str(folder), "--prompts", str(prompts), "--out", str(out), "--device", device, *options]
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        found[device] = {path.name: path.read_bytes() for path in out.glob("*.mp4")}
    assert len(found["cuda"]) == 3
    assert found["cuda"] == found["cpu"]
