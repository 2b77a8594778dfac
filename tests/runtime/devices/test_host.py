"""The CPU device against numpy."""

import numpy as np
import pytest

from flowblending import FlowBlendingError
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices import host
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.devices.protocol import Device

SHAPE = (1, 2, 3, 4, 5)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """With blocks of 7 elements, so that the last one of 120 is a short one."""
    monkeypatch.setattr(host, "_BLOCK", 7)
    return HostDevice()


def random(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("in_place", [False, True])
def test_mix_equals_numpy_bit_for_bit(device: Device, count: int, in_place: bool) -> None:
    arrays = [random(seed) for seed in range(count)]
    factors = [0.1 * (seed + 1) * (-1) ** seed for seed in range(count)]
    expected = np.float32(factors[0]) * arrays[0]
    for factor, array in zip(factors[1:], arrays[1:], strict=True):
        expected = expected + np.float32(factor) * array
    tensors = [device.upload(array) for array in arrays]
    out = tensors[0] if in_place else device.empty(SHAPE, np.dtype(np.float32))
    device.mix(out, list(zip(factors, tensors, strict=True)))
    np.testing.assert_array_equal(device.download(out), expected)
    for tensor, array in list(zip(tensors, arrays, strict=True))[in_place:]:
        np.testing.assert_array_equal(device.download(tensor), array)


@pytest.mark.parametrize("share", [0.7, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_rescale_equals_numpy(device: Device, share: float, offset: float) -> None:
    velocity, reference = random(0) + np.float32(offset), 3 * random(1) - np.float32(offset)
    ratio = reference.astype(np.float64).std() / velocity.astype(np.float64).std()
    out, like = (device.upload(array) for array in (velocity, reference))
    device.rescale(out, like, share)
    expected = velocity * np.float32(share * ratio + 1 - share)
    np.testing.assert_allclose(device.download(out), expected, rtol=2e-7)
    np.testing.assert_array_equal(device.download(like), reference)


def test_what_does_not_vary_is_left_alone(device: Device) -> None:
    still = device.upload(np.full(SHAPE, 0.1, np.float32))
    device.rescale(still, device.upload(random(0)), 0.7)
    np.testing.assert_array_equal(device.download(still), np.full(SHAPE, 0.1, np.float32))
    moving = device.upload(random(1))
    device.rescale(moving, still, 0.25)
    np.testing.assert_array_equal(device.download(moving), np.float32(0.75) * random(1))


def test_memory_is_not_shared_unasked(device: Device) -> None:
    array = random(0)[:, :, ::2]
    tensor = device.upload(array)
    before = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(device.download(tensor), before)
    device.download(tensor)[:] = 1
    np.testing.assert_array_equal(device.download(tensor), before)


def test_rows_and_copy(device: Device) -> None:
    tensor = device.empty((3, *SHAPE[1:]), np.dtype(np.float32))
    for index in range(3):
        device.copy(device.upload(random(index)), device.rows(tensor, index, index + 1))
    row = device.rows(tensor, 1, 2)
    assert row.shape == SHAPE
    assert row.address == tensor.address + row.nbytes
    assert isinstance(row, Tensor)
    np.testing.assert_array_equal(device.download(row), random(1))
    np.testing.assert_array_equal(device.download(tensor), np.concatenate([random(0), random(1), random(2)]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 6, 119])
def test_watch_finds_any_non_finite_value(device: Device, value: float, place: int) -> None:
    watch = device.watch(["first", "second"])
    array = random(0)
    watch.check(device.upload(array), 0)
    watch.raise_if_bad()
    array.reshape(-1)[place] = value
    with pytest.raises(FlowBlendingError, match=r"^second$"):
        watch.check(device.upload(array), 1)


def test_marks_measure_time(device: Device) -> None:
    start, stop = device.mark(), device.mark()
    start.record()
    stop.record()
    stop.wait()
    assert stop.reached()
    assert 0 <= device.seconds(start, stop) < 1
