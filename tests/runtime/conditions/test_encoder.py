"""The encoder with closed-form engines: which frames make a latent frame, and the hand-over of caches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import (
    VAE_ENCODER,
    VAE_ENCODER_FIRST,
    VAE_ENCODER_NEXT,
    Dim,
    GraphSpec,
    Precision,
    TensorSpec,
)
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.runtime.conditions.encoder import VaeEncoder
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.media.clip import pixels

Floats = npt.NDArray[np.float32]

FRAMES = np.random.default_rng(0).integers(0, 256, (13, 6, 10, 3)).astype(np.uint8)
SHAPE = (1, 3, 4, 3, 5)
NOISE = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def graph(name: str, count: Dim, latent: Dim, *, caches: bool, given: bool) -> GraphSpec:
    def tensor(named: str, *shape: Dim) -> TensorSpec:
        return TensorSpec(name=named, dtype="float32", shape=(1, 3, *shape))

    latents = tensor("latents", latent, "height", "width")
    return GraphSpec(
        name=name,
        precision=Precision.FP32,
        inputs=(
            tensor("pixels", count, "2*height", "2*width"),
            tensor("noise", latent, "height", "width"),
            *([tensor("cache_00", 1, "height", "width")] if given else []),
        ),
        outputs=(latents, *([tensor("cache_00_next", 1, "height", "width")] if caches else [])),
    )


def small(values: Floats) -> Floats:
    return values[..., ::2, ::2]


def whole(arrays: Arrays) -> Arrays:
    """Every fourth frame, and the noise."""
    return {"latents": small(arrays["pixels"])[:, :, ::4] + 10 * arrays["noise"]}


def step(arrays: Arrays) -> Arrays:
    """The mean of the frames and half of what the step before made."""
    mean = small(arrays["pixels"]).mean(axis=2, keepdims=True)
    made = mean + 0.5 * arrays.get("cache_00", np.zeros_like(mean)) + 10 * arrays["noise"]
    return {"latents": made, "cache_00_next": made}


def encoder(*, stepwise: bool) -> VaeEncoder:
    engines = (
        {
            VAE_ENCODER_FIRST: FunctionEngine(graph("first", 1, 1, caches=True, given=False), step),
            VAE_ENCODER_NEXT: FunctionEngine(graph("next", 4, 1, caches=True, given=True), step),
        }
        if stepwise
        else {VAE_ENCODER: FunctionEngine(graph("vae", "4*frames-3", "frames", caches=False, given=False), whole)}
    )
    return VaeEncoder(engines=engines, device=HostDevice(), factors=(4, 2), channels=3)


def test_a_clip_at_once() -> None:
    expected = small(pixels(FRAMES))[:, :, ::4]
    assert np.array_equal(encoder(stepwise=False).encode(FRAMES), expected)
    assert np.array_equal(encoder(stepwise=False).encode(FRAMES, NOISE), expected + 10 * NOISE)


@pytest.mark.parametrize("noise", [None, NOISE])
def test_a_frame_and_then_four_at_a_time(noise: Floats | None) -> None:
    values, before, expected = small(pixels(FRAMES)), np.zeros((1, 3, 1, 3, 5), np.float32), []
    for index, (first, last) in enumerate([(0, 1), (1, 5), (5, 9), (9, 13)]):
        drawn = 0 if noise is None else 10 * noise[:, :, index : index + 1]
        before = values[:, :, first:last].mean(axis=2, keepdims=True) + 0.5 * before + drawn
        expected.append(before)
    made = encoder(stepwise=True).encode(FRAMES, noise)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, np.concatenate(expected, axis=2), rtol=1e-6)


@pytest.mark.parametrize("stepwise", [False, True])
def test_one_frame_is_a_latent_frame(stepwise: bool) -> None:
    made = encoder(stepwise=stepwise).encode(FRAMES[:1])
    assert np.array_equal(made, small(pixels(FRAMES[:1])))


@pytest.mark.parametrize("stepwise", [False, True])
def test_what_does_not_fit(stepwise: bool) -> None:
    for frames in (FRAMES[:12], FRAMES[:, :5], FRAMES[:, :, :9]):
        with pytest.raises(ValueError, match="do not make whole latents"):
            encoder(stepwise=stepwise).encode(frames)
    with pytest.raises(ValueError, match="noise of"):
        encoder(stepwise=stepwise).encode(FRAMES, NOISE[:, :, 1:])


@pytest.mark.parametrize("stepwise", [False, True])
def test_numbers_that_are_not_finite(stepwise: bool) -> None:
    with pytest.raises(FlowBlendingError, match=r"The VAE encoder gave a number that is not finite; build .*=fp32"):
        encoder(stepwise=stepwise).encode(FRAMES, np.full(SHAPE, np.inf, np.float32))
