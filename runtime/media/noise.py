"""The noise that a seed means: the numbers of torch's CPU generator, without torch.

Only exactly rounded operations (multiply, add, square root, conversion) are used, so a seed gives the
same bits on every machine. They are the bits that torch gives on an x86 CPU with AVX2; torch itself
differs from them by up to 3e-6 on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from flowblending import UsageError

Floats = npt.NDArray[np.float32]

_GROUP: Final = 16
"""torch fills normal values in groups of 16: from 8 radii and 8 angles come 8 cosines and 8 sines."""

_BLOCK: Final = 2048
"""Groups transformed at a time, so that the intermediate arrays stay in the cache."""

# Coefficients of the single-precision log, sin and cos in Moshier's Cephes library (logf.c, sinf.c),
# highest power first. torch's AVX2 kernel evaluates the same polynomials.
_LOG: Final = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SIN: Final = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS: Final = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_LN2_HIGH: Final = np.float32(0.693359375)
_LN2_LOW: Final = np.float32(-2.12194440e-4)
_QUARTER_PI: Final = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)
"""pi/4 as a sum of three numbers, the first two with few enough digits that a small multiple of them is exact."""


class Normal(Protocol):
    """A stream of standard normal values."""

    def normal(self, shape: Sequence[int]) -> Floats:
        """The next values, float32."""
        ...


class TorchNormal:
    """A stream of standard normal values, equal to that of a seeded ``torch.Generator("cpu")``.

    Successive draws continue the stream as successive calls of ``torch.randn`` with one generator do.

    Args:
        seed: as ``torch.Generator.manual_seed`` takes it, from -2**63 to 2**64 - 1; torch's Mersenne
            Twister uses the low 32 bits.

    Raises:
        UsageError: the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        if not -(2**63) <= seed < 2**64:
            raise UsageError(f"Seed {seed} does not fit in 64 bits; give one from 0 to {2**64 - 1}.")
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def normal(self, shape: Sequence[int]) -> Floats:
        """The next values, as ``torch.randn(shape, generator=...)`` gives them in float32."""
        count = math.prod(shape)
        values = self._many(count) if count >= _GROUP else self._few(count)
        return values.reshape(tuple(shape))

    def _many(self, count: int) -> Floats:
        """16 values or more (aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill)."""
        bits = self._draw(count)
        values = np.empty(count, np.float32)
        whole = count - count % _GROUP
        for start in range(0, whole, _BLOCK * _GROUP):
            stop = min(start + _BLOCK * _GROUP, whole)
            values[start:stop] = _box_muller(bits[start:stop])
        if whole != count:
            values[-_GROUP:] = _box_muller(self._draw(_GROUP))
        return values

    def _few(self, count: int) -> Floats:
        """Fewer than 16 values (aten/src/ATen/core/DistributionsHelper.h, normal_distribution<double>)."""
        return np.array([self._one() for _ in range(count)], np.float32)

    def _one(self) -> float:
        """The cosine of a pair, or the sine that was kept of the pair before, also by an earlier call."""
        kept, self._kept = self._kept, None
        if kept is not None:
            return kept
        angle = self._uniform() * 2.0 * math.pi
        radius = math.sqrt(-2.0 * math.log1p(-self._uniform()))
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _draw(self, count: int) -> npt.NDArray[np.uint32]:
        return self._twister.randint(0, 2**32, size=count, dtype=np.uint32)

    def _uniform(self) -> float:
        """53 random bits as a number in [0, 1)."""
        high, low = (int(each) for each in self._draw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def draw_latents(seed: int, latent_shape: Sequence[int]) -> tuple[Floats, TorchNormal]:
    """A seed's initial latents, float32 [1, C, F, H, W], and the generator that they were drawn from.

    A decoder that adds noise draws on from it, as the reference pipelines do.

    Args:
        latent_shape: [C, F, H, W].

    Raises:
        UsageError: the seed does not fit in 64 bits.
    """
    generator = TorchNormal(seed)
    return generator.normal((1, *latent_shape)), generator


def _box_muller(bits: npt.NDArray[np.uint32]) -> Floats:
    """Normal values from random bits, in groups of 16."""
    uniform = (bits & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
    uniform = uniform.reshape(-1, 2, _GROUP // 2)
    radius = np.sqrt(np.float32(-2.0) * _log(np.float32(1.0) - uniform[:, 0]))
    sine, cosine = _sin_cos(uniform[:, 1] * np.float32(2.0 * math.pi))
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)


def _log(x: Floats) -> Floats:
    """The natural logarithm of normal numbers in (0, 1]: x = 2**exponent * (1 + rest), |rest| < 0.42."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < np.float32(math.sqrt(0.5))
    rest = np.where(low, mantissa + mantissa, mantissa) - np.float32(1.0)
    power = (exponent - low).astype(np.float32)
    square = rest * rest
    tail = _multiply_add(_polynomial(rest, _LOG) * rest, square, power * _LN2_LOW)
    tail = _multiply_add(square, np.float32(-0.5), tail)
    return _multiply_add(power, _LN2_HIGH, rest + tail)


def _sin_cos(x: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine of angles in [0, 2 pi]: polynomials within pi/4 of the nearest multiple of pi/2."""
    octant = (x * np.float32(4.0 / math.pi)).astype(np.int32)
    quarter = (octant + 1) >> 1
    multiple = (2 * quarter).astype(np.float32)
    for part in _QUARTER_PI:
        x = _multiply_add(multiple, np.float32(-part), x)
    square = x * x
    cosine = _polynomial(square, _COS) * square
    cosine = _multiply_add(cosine, square, np.float32(-0.5) * square) + np.float32(1.0)
    sine = _multiply_add(_polynomial(square, _SIN) * square, x, x)
    odd = (quarter & 1) == 1
    return (
        np.where(odd, cosine, sine) * _sign(quarter),
        np.where(odd, sine, cosine) * _sign(quarter + 1),
    )


def _sign(quarter: npt.NDArray[np.int32]) -> Floats:
    """Of the sine in a quarter turn."""
    return (1 - (quarter & 2)).astype(np.float32)


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        value = _multiply_add(value, x, np.float32(each))
    return value


def _multiply_add(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """``a * b + c`` rounded once, as the fused instruction does: a product of two float32 is exact in float64."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
