"""The C++ library: built twice (plain, and with sanitizers), held to the golden vectors, attacked, and called from C.

Where cmake, a compiler or nlohmann-json is missing, everything here is skipped with the reason (see `required`).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import Source
from flowblending.contracts.graph import Precision
from flowblending.engine.backends.function import FunctionEngine
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.golden import vectors as golden
from flowblending.runtime.golden.closed_form import CASES, FORMS
from flowblending.runtime.golden.closed_form import engines as formulas
from flowblending.runtime.options import Job
from flowblending.runtime.sampler.loop import Sampler
from tests.conftest import SEVERAL, Build
from tests.support.required import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.embedding]

CPP = Path(__file__).parents[3] / "runtime/cpp"
CASE, OTHER, RESCALED, HELD = "unipc-two-calls", "unipc-another-size", "euler-rescale", "euler-held"
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "wan": {"size": "64x48", "frames": 13},
    "ltx": {"size": "64x128", "frames": 9},
}


def run(*command: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    # A shape that is too large is to be refused, not to end the program.
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout, env=environment)


def succeed(*command: object) -> str:
    result = run(*command)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@dataclass(frozen=True)
class Built:
    """Build folders."""

    plain: Path
    sanitized: Path


ONE_UNIT = {"CMAKE_UNITY_BUILD": "ON", "CMAKE_UNITY_BUILD_BATCH_SIZE": 0}
"""All files of a target compiled as one, in a third of the time."""


def compile_library(folder: Path, targets: tuple[str, ...], **options: object) -> Path:
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    configured = run("cmake", "-S", CPP, "-B", folder, "-DCMAKE_BUILD_TYPE=None", *definitions)
    if configured.returncode and "nlohmann_json" in configured.stderr:
        unavailable("nlohmann-json is missing; install nlohmann-json3-dev.")
    assert configured.returncode == 0, configured.stderr
    succeed("cmake", "--build", folder, "--parallel", "2", *(f"--target={each}" for each in targets))
    return folder


@dataclass(frozen=True)
class Gathered:
    """A folder for ONNX Runtime's headers and library, and why it is not complete."""

    folder: Path
    why: str | None


@pytest.fixture(scope="session")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    folder = tmp_path_factory.mktemp("onnxruntime")
    result = run("bash", CPP / "scripts/get-onnxruntime.sh", folder, sys.executable)
    return Gathered(folder, result.stderr if result.returncode else None)


@pytest.fixture
def onnxruntime(gathered: Gathered) -> None:
    """For a test that needs this back end."""
    if gathered.why is not None:
        unavailable(f"ONNX Runtime's headers could not be fetched: {gathered.why}")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, gathered: Gathered) -> Built:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            unavailable(f"{tool} is missing; install cmake and g++.")
    root = tmp_path_factory.mktemp("cpp")
    ort = gathered.folder
    return Built(
        plain=compile_library(
            root / "plain",
            ("flowblending_c", "fb_sample"),
            CMAKE_CXX_FLAGS="-O1 -Werror",
            ONNXRUNTIME_ROOT=ort,
            **ONE_UNIT,
        ),
        # Unoptimised: it compiles in a third of the time, and hides nothing from the sanitizers.
        sanitized=compile_library(
            root / "sanitized",
            ("fb_golden", "fb_behaviour", "fb_fuzz", "fb_plans"),
            CMAKE_CXX_FLAGS="-O0 -Werror",
            FLOWBLENDING_SANITIZE="ON",
            FLOWBLENDING_TESTS="ON",
            ONNXRUNTIME_ROOT=ort,
            **ONE_UNIT,
        ),
    )


@pytest.mark.long
def test_every_file_compiles_by_itself(gathered: Gathered, tmp_path: Path) -> None:
    """As a user's build has it; the other tests compile all of them as one."""
    targets = ("flowblending_c", "fb_sample", "fb_golden", "fb_behaviour", "fb_fuzz", "fb_plans")
    flags = "-O2 -Werror"
    compile_library(tmp_path, targets, CMAKE_CXX_FLAGS=flags, FLOWBLENDING_TESTS="ON", ONNXRUNTIME_ROOT=gathered.folder)


@pytest.fixture(scope="module")
def closed_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "closed"
    golden.write_closed_form(folder)
    return folder


@pytest.mark.parametrize("case", list(CASES))
def test_closed_form_equals_the_golden_vectors(built: Built, closed_form: Path, case: str) -> None:
    succeed(built.sanitized / "fb_golden", closed_form / "bundle", closed_form / case)


def test_another_vector_is_told_apart(built: Built, closed_form: Path, tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(closed_form / CASE, case)
    trace = np.load(case / "trace.npy")
    trace[-1, -1, 0, 0, 0, 0] += 1e-3
    np.save(case / "trace.npy", trace)
    result = run(built.sanitized / "fb_golden", closed_form / "bundle", case)
    assert result.returncode == 4
    assert "differs by" in result.stderr
    assert f"after instruction {len(trace)}" in result.stderr


@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_onnxruntime_equals_the_golden_vectors(built: Built, build: Build, tmp_path: Path, kind: str) -> None:
    size, frames = SEVERAL[kind]
    bundle = build(kind, size=size, frames=frames).folder
    sizes: dict[str, dict[str, Any]] = {"default": {}, "other": OTHER_SIZES[kind]}
    for name, asked in sizes.items():
        golden.write_for_bundle(tmp_path / name, bundle, Job(prompt="a cat", steps=4, **asked))
        succeed(built.sanitized / "fb_golden", bundle, tmp_path / name)


def test_what_the_interface_promises(built: Built, closed_form: Path, tmp_path: Path) -> None:
    cases = [closed_form / each for each in (CASE, OTHER)]
    others = [closed_form / each for each in (RESCALED, HELD)]
    succeed(built.sanitized / "fb_behaviour", closed_form / "bundle", *cases, tmp_path, *others)


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.long)])
def test_mutated_files_are_refused(built: Built, closed_form: Path, count: int) -> None:
    command = [str(built.sanitized / "fb_fuzz"), str(closed_form / "bundle")]
    halves = [
        subprocess.Popen(
            [*command, str(closed_form / case / "program.json"), str(count), seed],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"},
        )
        for case, seed in ((RESCALED, "1"), (HELD, "2"))
    ]
    for half in halves:
        output, _ = half.communicate(timeout=300)
        assert half.returncode == 0, output
        counts = dict(line.rsplit(" ", 1) for line in output.splitlines())
        assert sum(map(int, counts.values())) == count
        # Mutations that are still valid, broken JSON, valid JSON of a wrong kind, and sizes that the bundle does not
        # make: all were tried.
        assert min(map(int, counts.values())) > count / 100
        assert len(counts) == 4


def test_profiles_of_plans_are_switched_in_order(built: Built, tmp_path: Path) -> None:
    """Against a stand-in for TensorRT; see its header."""
    succeed(built.sanitized / "fb_plans", tmp_path)


OnStep = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_double, ctypes.c_void_p)


@pytest.fixture(scope="module")
def library(built: Built) -> ctypes.CDLL:
    library = ctypes.CDLL(str(built.plain / "libflowblending_c.so"))
    library.fb_open.restype = library.fb_sampler_create.restype = ctypes.c_void_p
    library.fb_last_error.restype = library.fb_bundle_id.restype = ctypes.c_char_p
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    library.fb_open.argtypes = [text, number]
    library.fb_bundle_id.argtypes = library.fb_close.argtypes = [pointer]
    for shape in (library.fb_latent_shape, library.fb_sampler_latent_shape, library.fb_sampler_result_shape):
        shape.argtypes = [pointer, pointer]
    library.fb_sampler_create.argtypes = [pointer, number, pointer, number]
    library.fb_sampler_load.argtypes = [pointer, text]
    library.fb_sampler_inputs.argtypes = library.fb_sampler_destroy.argtypes = [pointer]
    library.fb_sampler_input.argtypes = [pointer, number, pointer, pointer, pointer, pointer, pointer]
    library.fb_sampler_set.argtypes = [pointer, text, text, pointer, number, pointer, number]
    library.fb_sample.argtypes = [pointer, pointer, pointer, OnStep, pointer]
    return library


def give_inputs(library: ctypes.CDLL, sampler: int, case: Path) -> int:
    """Give a sampler what it asks for, as a caller does who knows nothing of the program."""
    count: int = library.fb_sampler_inputs(sampler)
    for index in range(count):
        branch, name = ctypes.c_char_p(), ctypes.c_char_p()
        dtype, rank, shape = ctypes.c_int(), ctypes.c_int(), (ctypes.c_int64 * 8)()
        places = [ctypes.byref(each) for each in (branch, name, dtype, shape, rank)]
        assert library.fb_sampler_input(sampler, index, *places) == 0
        assert branch.value
        assert name.value
        array = np.load(case / f"{branch.value.decode()}.{name.value.decode()}.npy")
        assert array.shape == tuple(shape[: rank.value])
        assert array.dtype == ("float32", "float16", "int64", "int32")[dtype.value]
        given = (branch, name, array.ctypes.data, dtype, shape, rank)
        assert library.fb_sampler_set(sampler, *given) == 0, library.fb_last_error()
    return count


def test_the_c_interface(library: ctypes.CDLL, closed_form: Path) -> None:
    assert library.fb_abi_version() == 3
    bundle = library.fb_open(str(closed_form / "bundle").encode(), 1)
    assert bundle, library.fb_last_error()
    expected = np.load(closed_form / CASE / "trace.npy")[-1, 0]
    shape = (ctypes.c_int64 * 4)()
    assert library.fb_latent_shape(bundle, shape) == 0
    assert tuple(shape) == expected.shape
    assert library.fb_bundle_id(bundle).decode() in (closed_form / "bundle/manifest.json").read_text()
    sampler = library.fb_sampler_create(bundle, 0, None, 0)
    library.fb_close(bundle)  # the sampler needs it no more
    assert library.fb_sampler_load(sampler, str(closed_form / CASE / "program.json").encode()) == 0
    assert give_inputs(library, sampler, closed_form / CASE) == 6

    noise = np.load(closed_form / CASE / "latents.npy")
    latents = np.full_like(noise, 7.0)
    told: list[tuple[int, int, bytes]] = []

    def sample(cancel_after: int | None) -> int:
        told.clear()

        def on_step(index: int, steps: int, model: bytes, seconds: float, _user: object) -> int:
            assert seconds >= 0
            told.append((index, steps, model))
            return int(cancel_after is not None and len(told) >= cancel_after)

        code: int = library.fb_sample(sampler, noise.ctypes.data, latents.ctypes.data, OnStep(on_step), None)
        return code

    assert sample(cancel_after=2) == 5
    assert library.fb_last_error() == b"Cancelled by the progress callback after step 2 of 6."
    assert (len(told), set(latents.flat)) == (2, {7.0})
    assert sample(cancel_after=None) == 0
    assert library.fb_last_error() == b""
    assert told == [(index, 6, model) for index, model in enumerate([b"large"] * 2 + [b"small"] * 3 + [b"large"])]
    assert np.abs(latents[0] - expected).max() <= 1e-5 * np.abs(expected).max()
    library.fb_sampler_destroy(sampler)


def test_another_size_through_the_c_interface(library: ctypes.CDLL, closed_form: Path) -> None:
    bundle = library.fb_open(str(closed_form / "bundle").encode(), 0)
    sampler = library.fb_sampler_create(bundle, 0, None, 0)
    shape = (ctypes.c_int64 * 4)()
    assert library.fb_sampler_latent_shape(sampler, shape) == 1
    assert library.fb_last_error() == b"No program was loaded; call fb_sampler_load first."
    assert library.fb_sampler_load(sampler, str(closed_form / OTHER / "program.json").encode()) == 0
    assert library.fb_sampler_latent_shape(sampler, shape) == 0
    expected = np.load(closed_form / OTHER / "trace.npy")[-1, 0]
    assert tuple(shape) == expected.shape
    assert library.fb_latent_shape(bundle, shape) == 0
    assert tuple(shape) == np.load(closed_form / CASE / "latents.npy").shape[1:]
    give_inputs(library, sampler, closed_form / OTHER)
    noise = np.load(closed_form / OTHER / "latents.npy")
    latents = np.full_like(noise, 7.0)
    assert library.fb_sample(sampler, noise.ctypes.data, latents.ctypes.data, OnStep(), None) == 0
    assert np.abs(latents[0] - expected).max() <= 1e-5 * np.abs(expected).max()
    library.fb_sampler_destroy(sampler)
    library.fb_close(bundle)


def test_held_latents_through_the_c_interface(library: ctypes.CDLL, closed_form: Path) -> None:
    bundle = library.fb_open(str(closed_form / "bundle").encode(), 0)
    sampler = library.fb_sampler_create(bundle, 0, None, 0)
    assert library.fb_sampler_load(sampler, str(closed_form / HELD / "program.json").encode()) == 0
    # Text, mask, frame rate and times of two branches, a scale for each model and branch, and the slots that are given.
    assert give_inputs(library, sampler, closed_form / HELD) == 2 * 4 + 2 * 2 + 8
    shape, own = (ctypes.c_int64 * 4)(), (ctypes.c_int64 * 4)()
    assert library.fb_sampler_latent_shape(sampler, shape) == library.fb_sampler_result_shape(sampler, own) == 0
    assert (tuple(shape), tuple(own)) == ((4, 5, 2, 5), (4, 3, 2, 5))
    noise = np.load(closed_form / HELD / "latents.npy")
    latents = np.full((1, *own), 7.0, np.float32)
    assert library.fb_sample(sampler, noise.ctypes.data, latents.ctypes.data, OnStep(), None) == 0
    expected = np.load(closed_form / HELD / "trace.npy")[-1, 0][:, 2:]
    assert np.abs(latents[0] - expected).max() <= 1e-5 * np.abs(expected).max()
    library.fb_sampler_destroy(sampler)
    library.fb_close(bundle)


def test_mistakes_through_the_c_interface(library: ctypes.CDLL, closed_form: Path, tmp_path: Path) -> None:
    def error() -> str:
        message: bytes = library.fb_last_error()
        return message.decode()

    assert library.fb_open(None, 0) is None
    assert "A folder was expected" in error()
    assert library.fb_open(str(tmp_path).encode(), 0) is None
    assert "is no bundle" in error()
    bundle = library.fb_open(str(closed_form / "bundle").encode(), 0)
    assert library.fb_sampler_create(bundle, 7, None, 0) is None
    assert "A device was expected" in error()
    assert library.fb_sampler_create(bundle, 1, None, 0) is None
    assert "CUDA" in error() or "GPU" in error()
    assert library.fb_sampler_create(bundle, 0, None, -1) is None
    assert "-1 threads" in error()
    sampler = library.fb_sampler_create(bundle, 0, None, 0)
    assert library.fb_sampler_load(sampler, b"none.json") == 2
    assert library.fb_sampler_load(None, b"none.json") == 1
    assert library.fb_sample(sampler, None, None, OnStep(), None) == 1
    assert "No program was loaded" in error()
    assert library.fb_sampler_inputs(None) == -1
    assert library.fb_sampler_inputs(sampler) == 0
    library.fb_sampler_destroy(sampler)
    library.fb_sampler_destroy(None)
    library.fb_close(bundle)
    library.fb_close(None)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("case", [CASE, "dpm-one-call"])
def test_a_velocity_that_is_not_finite_is_told_in_the_words_of_python(
    library: ctypes.CDLL, closed_form: Path, tmp_path: Path, precision: Precision, case: str
) -> None:
    bundle, golden_case = tmp_path / "bundle", golden.Golden.read(closed_form / case)
    shutil.copytree(closed_form / "bundle", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for component in manifest["components"].values():
        component["spec"]["precision"] = precision
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = library.fb_open(str(bundle).encode(), 0)
    sampler = library.fb_sampler_create(opened, 0, None, 0)
    program = str(closed_form / case / "program.json").encode()
    assert library.fb_sampler_load(sampler, program) == 0, library.fb_last_error()
    give_inputs(library, sampler, closed_form / case)
    noise = golden_case.latents.copy()
    noise[0, 0, 0, 0, 0] = np.inf
    latents = np.empty_like(noise)
    assert library.fb_sample(sampler, noise.ctypes.data, latents.ctypes.data, OnStep(), None) == 4
    told = library.fb_last_error().decode()
    library.fb_sampler_destroy(sampler)
    library.fb_close(opened)

    engines = {
        name: FunctionEngine(dataclasses.replace(each.spec, precision=precision), FORMS[name])
        for name, each in formulas().items()
    }
    conditions = {
        branch: {name: Tensor.of(array) for name, array in inputs.items()}
        for branch, inputs in golden_case.conditions.items()
    }
    with pytest.raises(FlowBlendingError) as found, np.errstate(invalid="ignore"):
        Sampler(engines, HostDevice()).sample(golden_case.file.program, noise, conditions)
    assert told == str(found.value)


def test_a_missing_back_end_is_named(library: ctypes.CDLL, closed_form: Path, tmp_path: Path) -> None:
    bundle, program = tmp_path / "bundle", str(closed_form / CASE / "program.json").encode()
    shutil.copytree(closed_form / "bundle", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())

    def message(backend: str) -> str:
        manifest["components"]["large"]["backend"] = backend
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        opened = library.fb_open(str(bundle).encode(), 0)
        sampler = library.fb_sampler_create(opened, 0, None, 0)
        assert library.fb_sampler_load(sampler, program) != 0
        error: bytes = library.fb_last_error()
        library.fb_sampler_destroy(sampler)
        library.fb_close(opened)
        return error.decode()

    assert "needs the back end abacus, but this library was built with [fake" in message("abacus")
    assert "is a plan of tensorrt-rtx, which runs on an NVIDIA GPU and not on the CPU" in message("tensorrt-rtx")


def test_the_header_is_c(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        unavailable("cc is missing; install gcc.")
    source = tmp_path / "a.c"
    source.write_text('#include "flowblending/flowblending.h"\nint main(void) { return FB_OK; }\n')
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    succeed("cc", *strict, "-I", CPP / "include", source)


@pytest.mark.usefixtures("onnxruntime")
def test_the_example_equals_fb_run(built: Built, build: Build, tmp_path: Path) -> None:
    size, frames = SEVERAL["wan"]
    bundle = build("wan", size=size, frames=frames).folder
    options = ("--prompt", "a cat", "--steps", "5", "--size", "64x48")
    fb_run = (sys.executable, "-m", "flowblending.runtime.cli", bundle, *options)
    program, inputs, final = tmp_path / "program.json", tmp_path / "inputs.safetensors", tmp_path / "final.npy"
    succeed(*fb_run, "--emit-program", program, "--emit-inputs", inputs)
    succeed(*fb_run, "--save-latents", final, "--out", tmp_path / "video.npy")
    output = succeed(built.plain / "fb_sample", bundle, program, inputs, tmp_path / "latents.npy")
    assert [line.split()[1] for line in output.splitlines()] == [f"{step}/5" for step in range(1, 6)]
    expected, found = np.load(final), np.load(tmp_path / "latents.npy")
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    succeed(*fb_run[:4], "--decode", tmp_path / "latents.npy", "--out", tmp_path / "decoded.npy")
    pixels = [np.load(tmp_path / name).astype(np.int16) for name in ("video.npy", "decoded.npy")]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    lines = (CPP / "example/sample.cpp").read_text().splitlines()
    assert len(lines) < 80


CONDITIONED: dict[str, tuple[tuple[Source, ...], tuple[object, ...]]] = {
    "ltx-condition": ((Source.IMAGE,), ("--image", "cat.png", "--image", "end.png@16:0.8", "--guidance", 3.0)),
    "wan-vace": (
        (),
        ("--video", "clip", "--mask", "mask.png", "--control-scale", "0.8", "--reference", "end.png"),
    ),
    "wan-image": ((), ("--image", "cat.png", "--image", "end.png@8")),
    "wan-clip": ((), ("--image", "cat.png")),
}


@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize(
    "kind",
    ["ltx-condition", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("wan-vace", "wan-image", "wan-clip"))],
)
def test_conditioned_runs_equal_fb_run(built: Built, build: Build, tmp_path: Path, kind: str) -> None:
    conditions, asked = CONDITIONED[kind]
    bundle = build(kind, conditions=conditions).folder
    random = np.random.default_rng(0)
    (tmp_path / "clip").mkdir()
    for name in ("cat.png", "end.png", *(f"clip/{index}.png" for index in range(9))):
        Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(tmp_path / name)
    Image.fromarray(np.repeat(255 * (np.arange(90)[None] > 40), 50, axis=0).astype(np.uint8)).save(
        tmp_path / "mask.png"
    )

    def fb_run(*options: object) -> None:
        words = map(str, (bundle, "--prompt", "a cat", "--steps", 4, "--seed", 3, *asked, *options))
        command = [sys.executable, "-m", "flowblending.runtime.cli", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.returncode == 0, result.stderr

    fb_run("--emit-program", "program.json", "--emit-inputs", "inputs.safetensors")
    fb_run("--save-latents", "expected.npy", "--out", "video.npy")
    files = [tmp_path / name for name in ("program.json", "inputs.safetensors", "latents.npy")]
    succeed(built.plain / "fb_sample", bundle, *files)
    expected, found = np.load(tmp_path / "expected.npy"), np.load(tmp_path / "latents.npy")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_cuda_is_configured_without_being_told_architectures(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("CUDA's compiler is not in any registry; install the CUDA toolkit")
    source = Path(__file__).parents[3] / "runtime/cpp"
    succeed("cmake", "-S", source, "-B", tmp_path, "-G", "Unix Makefiles", "-DFLOWBLENDING_CUDA=ON")
    assert "-arch=all-major" in (tmp_path / "CMakeFiles/flowblending.dir/flags.make").read_text()


def test_tensorrt_without_a_gpu(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, gathered: Gathered) -> None:
    root = os.environ.get("TENSORRT_ROOT")
    if not root:
        pytest.skip("TensorRT's headers are in no registry; set TENSORRT_ROOT to a folder with include/ and lib/.")
    folder = compile_library(
        tmp_path_factory.mktemp("tensorrt"),
        ("fb_tensorrt",),
        FLOWBLENDING_TESTS="ON",
        TENSORRT_ROOT=root,
        ONNXRUNTIME_ROOT=gathered.folder,
        CMAKE_CXX_FLAGS="-O1 -Werror -Wno-deprecated-declarations",
    )

    def message(kind: str, plan: bytes) -> str:
        (tmp_path / "x.plan").write_bytes(plan)
        lines = succeed(folder / "fb_tensorrt", tmp_path / "x.plan").splitlines()
        return next(line for line in lines if line.startswith(f"{kind}: "))

    assert "is empty or cannot be read" in message("plan", b"")
    bad = message("plan", bytes(range(256)) * 20)
    assert bad.startswith("plan: TensorRT")
    assert "cannot load" in bad
    assert "magicTag" in bad
    assert "build the bundle again" in bad
    assert "needs an NVIDIA GPU, but none was found" in message("device", b"x")
