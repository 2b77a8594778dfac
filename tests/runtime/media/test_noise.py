"""Noise against torch: shapes, seeds and successive draws, bit for bit where torch uses its AVX2 kernel."""

import math

import numpy as np
import pytest
import torch

from flowblending import UsageError
from flowblending.runtime.media.noise import TorchNormal

WAN = (1, 16, 3, 6, 10)
LTX = (1, 128, 9, 11, 19)
SEEDS = [0, 1, 7, 42, 2**31 + 5, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]
EXACT = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}


def draws(seed: int, shapes: list[tuple[int, ...]]) -> None:
    """Assert that both generators give the same values for these shapes, drawn one after the other."""
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchNormal(seed)
    for shape in shapes:
        expected, got = torch.randn(shape, generator=theirs).numpy(), ours.normal(shape)
        assert got.dtype == np.float32
        assert got.shape == shape
        if EXACT or math.prod(shape) < 16:
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed: int) -> None:
    draws(seed, [WAN])


@pytest.mark.parametrize("shape", [(16,), (17,), (31,), (37,), (64, 33), (1, 16, 1, 2, 2), LTX, (1, 16, 21, 60, 104)])
def test_shapes(shape: tuple[int, ...]) -> None:
    draws(3, [shape])


@pytest.mark.parametrize("count", range(16))
def test_fewer_than_sixteen_values_take_another_path(count: int) -> None:
    draws(5, [(count,)])


def test_successive_draws_continue_the_stream() -> None:
    # The decoder's noise of LTX-Video comes from the generator that gave the latents.
    draws(11, [LTX, LTX, (40,)])
    # The second value of a pair is kept over calls, also over one that does not use it.
    draws(11, [(3,), (2,), (1,), (20,), (), (16,), (5,), (4,), (4,)])


def test_values_in_the_tails() -> None:
    # Small u1 (large radii) and angles in each octant: two million values reach |x| > 4.9.
    draws(1234, [(2_000_003,)])


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match="64 bits"):
        TorchNormal(seed)
