"""The GPU device, on a GPU or on the stand-in for its driver: numpy's results, bit for bit where that can be."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.contracts.program import COND, LATENTS, UNCOND, VELOCITY, Mix, Program, Run, Step
from flowblending.engine.backends.tensor import ALIGNMENT, CUDA, Tensor
from flowblending.runtime.devices.cuda import CudaDevice
from flowblending.runtime.devices.cuda_kernels import MAX_TERMS, kernel_names, kernel_source
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.devices.pictures import HEADER, pictures_bytes, to_uint8
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.devices.tiles import Place
from flowblending.runtime.sampler.loop import Sampler

pytest.importorskip("cuda.core")

LATENT = (16, 5, 6, 7)
SHAPE = (1, *LATENT)


def random(seed: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    made = CudaDevice()
    yield made
    made.close()


def test_importing_needs_no_cuda() -> None:
    # In a process of its own: here, cuda.core is imported already.
    code = "import sys, flowblending.runtime.devices.cuda\n"
    code += "print('cuda.core' in sys.modules or 'cuda.bindings' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_no_gpu_is_one_sentence() -> None:
    # CUDA shows no GPU where CUDA_VISIBLE_DEVICES names none, also on a machine that has one.
    code = (
        "from flowblending import FlowBlendingError\n"
        "from flowblending.runtime.devices.cuda import CudaDevice\n"
        "try:\n    CudaDevice()\nexcept FlowBlendingError as error:\n    print(error)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    message = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert message.startswith("No NVIDIA GPU 0 can be used (")
    assert message.endswith("install NVIDIA's driver, or use --device cpu.\n")


@pytest.mark.parametrize("architecture", ["compute_75", "compute_89", "compute_120"])
def test_kernels_compile(architecture: str) -> None:
    # NVRTC itself needs no driver, cuda.core's Program does.
    text = compile_to_ptx(kernel_source(), architecture)
    assert re.findall(r"\.entry (\w+)\(", text) == kernel_names()
    # A fused multiply-add would round once where the CPU rounds twice.
    assert "mul.f32" in text or "mul.rn.f32" in text
    assert "fma." not in text


def compile_to_ptx(source: str, architecture: str) -> str:
    from cuda.bindings import nvrtc

    try:
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], [])
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed ({str(error).splitlines()[0]})")
    options = [f"--gpu-architecture={architecture}".encode(), b"--fmad=false"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    text = bytes(nvrtc.nvrtcGetPTXSize(program)[1])
    nvrtc.nvrtcGetPTX(program, text)
    return text.decode()


@pytest.mark.parametrize("count", [1, 2, 3, MAX_TERMS, MAX_TERMS + 1, 2 * MAX_TERMS + 3])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.cuda
def test_mix_equals_the_cpu_bit_for_bit(device: CudaDevice, count: int, in_place: bool) -> None:
    host = HostDevice()
    arrays = [random(seed) for seed in range(count)]
    factors = [0.1 * (seed + 1) * (-1) ** seed for seed in range(count)]
    results = []
    for each in (host, device):
        tensors = [each.upload(array) for array in arrays]
        out = tensors[0] if in_place else each.empty(SHAPE, np.dtype(np.float32))
        each.mix(out, list(zip(factors, tensors, strict=True)))
        results.append(each.download(out))
    np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.cuda
def test_mix_of_a_video(device: CudaDevice) -> None:
    # More elements than threads: the grid's stride is at work.
    shape = (1, 16, 21, 60, 104)
    x, v = random(0, shape), random(1, shape)
    out = device.upload(x)
    device.mix(out, [(1.0, out), (-0.02, device.upload(v))])
    np.testing.assert_array_equal(device.download(out), x + np.float32(-0.02) * v)


@pytest.mark.parametrize("frames", [(0,), (2, 3), (0, 2, 4), (1, 2, 4), (0, 1, 2, 3, 4)])
@pytest.mark.cuda
def test_latent_frames_are_held_as_on_the_cpu(device: CudaDevice, frames: tuple[int, ...]) -> None:
    whole, some = random(0, (1, 16, 5, 30, 52)), random(1, (1, 16, len(frames), 30, 52))
    expected = whole.copy()
    expected[:, :, list(frames)] = some
    for each in (HostDevice(), device):
        out, source = each.upload(whole), each.upload(some)
        each.hold(out, source, frames)
        np.testing.assert_array_equal(each.download(out), expected)
        np.testing.assert_array_equal(each.download(source), some)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), SHAPE, (1, 16, 5, 30, 52)])
@pytest.mark.parametrize("share", [0.7, 1.0])
@pytest.mark.cuda
def test_rescale_equals_the_cpu(device: CudaDevice, shape: tuple[int, ...], share: float) -> None:
    results = []
    for each in (HostDevice(), device, device):
        out, reference = each.upload(random(0, shape) + np.float32(50)), each.upload(3 * random(1, shape))
        each.rescale(out, reference, share)
        results.append(each.download(out))
    np.testing.assert_allclose(results[1], results[0], rtol=2e-7)
    np.testing.assert_array_equal(results[2], results[1])
    still = device.upload(np.full(shape, 0.1, np.float32))
    device.rescale(still, device.upload(random(0, shape)), share)
    np.testing.assert_array_equal(device.download(still), np.full(shape, 0.1, np.float32))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (1, 16, 21, 60, 104)])
@pytest.mark.cuda
def test_probe_is_numpys_mean_and_the_same_every_time(device: CudaDevice, shape: tuple[int, ...]) -> None:
    a, b = random(0, shape), random(1, shape)
    probe = device.probe(2)
    found = []
    for _ in range(3):
        probe.measure(0, device.upload(a), device.upload(b))
        probe.measure(1, device.upload(a), None)
        found.append(probe.read())
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx((np.abs(a - b).mean(dtype=np.float64), np.abs(a).mean(dtype=np.float64)))


@pytest.mark.cuda
def test_rows_copy_and_types(device: CudaDevice) -> None:
    tensor = device.empty((3, *SHAPE[1:]), np.dtype(np.float32))
    assert tensor.device == CUDA
    assert tensor.address % 256 == 0
    for index in range(3):
        device.copy(device.upload(random(index)), device.rows(tensor, index, index + 1))
    np.testing.assert_array_equal(device.download(device.rows(tensor, 1, 3)), np.concatenate([random(1), random(2)]))
    ids = np.arange(7, dtype=np.int64)[None]
    np.testing.assert_array_equal(device.download(device.upload(ids)), ids)


@pytest.mark.cuda
def test_pictures_equal_the_cpu_bit_for_bit(device: CudaDevice) -> None:
    # Every rounding case, and more pixels than threads of a small grid.
    shape = (1, 3, 5, 64, 65)
    frames = np.linspace(-1.2, 1.2, np.prod(shape), dtype=np.float32)
    frames[:512] = np.arange(512) / np.float32(255) - 1  # halves of a level among them
    frames = frames.reshape(shape)
    read = []
    for each in (HostDevice(), device):
        out = each.empty((pictures_bytes(shape),), np.dtype(np.uint8))
        each.pictures(each.upload(frames), out)
        place = each.readback(out.nbytes + frames.nbytes)
        for _ in range(2):  # a place may be used again
            place.begin([out, each.upload(frames)])
            read.append(place.take())
    for pictures, floats in read:
        assert not pictures[:HEADER].any()
        np.testing.assert_array_equal(pictures[HEADER:].reshape(5, 64, 65, 3), to_uint8(frames[0]))
        np.testing.assert_array_equal(floats.view(np.float32).reshape(shape), frames)


@pytest.mark.parametrize("neighbours", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.cuda
def test_tiles_are_put_together_with_the_bits_of_the_cpu(device: CudaDevice, neighbours: tuple[bool, bool]) -> None:
    """A tile of 2 frames, 12x20 pixels, of which 9x13 are its own, in a video of 5 frames."""
    above, before = neighbours
    float32, found = np.dtype(np.float32), []
    for each in (HostDevice(), device):
        canvas = each.upload(random(0, (1, 3, 5, 30, 40)))
        below, after = each.empty((2, 3, 3, 20), float32), each.empty((2, 3, 12, 7), float32)
        place = Place(
            first=2,
            top=10,
            left=20,
            height=9,
            width=13,
            above=each.upload(random(1, (2, 3, 5, 20))) if above else None,
            before=each.upload(random(2, (2, 3, 12, 7))) if before else None,
            below=below if above else None,
            after=after if before else None,
        )
        each.place(canvas, each.upload(random(3, (1, 3, 2, 12, 20))), place)
        written = [tensor for tensor in (place.below, place.after) if tensor is not None]
        found.append([each.download(tensor) for tensor in (canvas, *written)])
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_array_equal(ours, expected)
    untouched = found[0][0] == random(0, (1, 3, 5, 30, 40))
    untouched[:, :, 2:4, 10:19, 20:33] = True
    assert untouched.all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, -1])
@pytest.mark.cuda
def test_pictures_tell_of_values_that_are_not_finite(device: CudaDevice, value: float, where: int) -> None:
    for each in (HostDevice(), device):
        out = each.empty((pictures_bytes((1, 3, 4, 6, 7)),), np.dtype(np.uint8))
        for bad in (False, True, False):
            frames = random(0, (1, 3, 4, 6, 7))
            if bad:
                frames.reshape(-1)[where] = value
            each.pictures(each.upload(frames), out)
            assert each.download(out)[:HEADER].any() == bad


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.cuda
def test_watch_remembers_the_first_bad_index(device: CudaDevice, value: float) -> None:
    watch = device.watch(["zero", "one", "two", "three"])
    good, bad = random(0), random(0)
    bad.reshape(-1)[-1] = value
    tensors = [device.upload(array) for array in (good, bad)]
    for index, bad_here in enumerate([0, 0, 1, 1]):
        watch.check(tensors[bad_here], index)
    with pytest.raises(FlowBlendingError, match=r"^two$"):
        watch.raise_if_bad()
    watch.reset()
    watch.check(tensors[0], 0)
    watch.raise_if_bad()


@pytest.mark.cuda
def test_marks_measure_time(device: CudaDevice) -> None:
    start, stop = device.mark(), device.mark()
    x = device.upload(random(0))
    start.record()
    for _ in range(100):
        device.mix(x, [(0.5, x)])
    stop.record()
    stop.wait()
    assert stop.reached()
    assert 0 < device.seconds(start, stop) < 1


class Decay:
    """An engine for v = -x that works on either device, and can be told to fail at a call."""

    spec = GraphSpec(
        name="large",
        precision=Precision.FP16,
        inputs=(TensorSpec(name=LATENTS, dtype="float32", shape=("batch", 16, "frames", "height", "width")),),
        outputs=(TensorSpec(name=VELOCITY, dtype="float32", shape=("batch", 16, "frames", "height", "width")),),
    )

    def __init__(self, device: Device, bad_call: int = 0) -> None:
        self._device = device
        self._bad_call = bad_call
        self._calls = 0

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        assert stream == self._device.stream
        self._calls += 1
        factor = float("inf") if self._calls == self._bad_call else -1.0
        self._device.mix(tensors[VELOCITY], [(factor, tensors[LATENTS])])

    def close(self) -> None:
        """Nothing is open."""


def decay_program(branches: tuple[str, ...]) -> Program:
    steps = []
    for sigma in (1.0, 0.75, 0.5, 0.25):
        run = Run(model="large", branches=branches, out=branches)
        mix = Mix(out=LATENTS, terms=((1.0, LATENTS), *((-0.25 / len(branches), branch) for branch in branches)))
        steps.append(Step(model="large", timestep=1000 * sigma, sigma=sigma, instructions=(run, mix)))
    return Program(schedule="L4", solver="euler", guidance=1.0, latent_shape=LATENT, steps=tuple(steps))


@pytest.mark.parametrize("branches", [(COND,), (UNCOND, COND)])
@pytest.mark.cuda
def test_sampling_equals_the_cpu_bit_for_bit(device: CudaDevice, branches: tuple[str, ...]) -> None:
    program, start, told = decay_program(branches), random(0), []
    results = []
    for each in (HostDevice(), device):
        result = Sampler({"large": Decay(each)}, each).sample(
            program, start, {}, on_step=lambda event: told.append(event.index)
        )
        results.append(each.download(result.latents))
        assert 0 < result.engine_seconds < result.loop_seconds
    np.testing.assert_array_equal(results[1], results[0])
    assert told == [0, 1, 2, 3] * 2


class Strict(Decay):
    """Takes memory as TensorRT does."""

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        assert all(tensor.address % ALIGNMENT == 0 for tensor in tensors.values())
        super().run(tensors, stream)


@pytest.mark.cuda
def test_rows_of_a_batch_are_used_alone_at_any_address(device: CudaDevice) -> None:
    """The interval of a guidance scale ends between two steps, and latents of tiny videos are of odd sizes."""
    batched, alone = (decay_program(branches) for branches in ((UNCOND, COND), (COND,)))
    program = dataclasses.replace(batched, steps=(*batched.steps[:2], *alone.steps[2:]))
    found = []
    for each in (HostDevice(), device):
        engine = Decay(each) if each is not device else Strict(each)
        found.append(each.download(Sampler({"large": engine}, each).sample(program, random(0), {}).latents))
    np.testing.assert_array_equal(found[1], found[0])
    assert np.prod(SHAPE) * 4 % ALIGNMENT


@pytest.mark.cuda
def test_sampling_names_the_first_bad_step(device: CudaDevice) -> None:
    sampler = Sampler({"large": Decay(device, bad_call=3)}, device)
    with pytest.raises(FlowBlendingError, match=r"The large model .* step 3 of 4; it was built in fp16"):
        sampler.sample(decay_program((COND,)), random(0), {})


@pytest.mark.cuda
def test_streams_of_others_are_used(device: CudaDevice) -> None:
    protocol = SimpleNamespace(__cuda_stream__=lambda: (0, device.stream))
    for stream in (device.stream, protocol, SimpleNamespace(handle=device.stream)):
        borrowed = CudaDevice(stream=stream)
        assert borrowed.stream == device.stream
        x: Tensor = borrowed.upload(random(0))
        borrowed.mix(x, [(2.0, x)])
        np.testing.assert_array_equal(device.download(x), 2 * random(0))
        borrowed.close()
    # The stream is still the lender's.
    device.close()
