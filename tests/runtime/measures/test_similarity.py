"""Measures of likeness against closed forms, and SSIM against a plain loop over its windows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from flowblending.runtime.measures.similarity import (
    Likeness,
    Smoothness,
    cosine,
    frechet,
    psnr,
    psnr_of,
    ssim,
    temporal_smoothness,
)

Array = npt.NDArray[np.float64]


def clip(seed: int, shape: tuple[int, ...] = (3, 16, 20, 3)) -> Array:
    return np.random.default_rng(seed).random(shape)


def with_moments(seed: int, samples: int, mean: Array, root: Array) -> Array:
    """Features whose own mean is ``mean`` and whose own covariance is ``root @ root.T``, to rounding."""
    noise = np.random.default_rng(seed).standard_normal((samples, len(mean)))
    orthogonal, _ = np.linalg.qr(noise - noise.mean(0))
    return np.asarray(mean + orthogonal * math.sqrt(samples - 1) @ root.T)


def rotation(seed: int, size: int) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def test_equal_clips() -> None:
    a = clip(0)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert cosine(a, a) == pytest.approx(1, abs=1e-12)
    assert frechet(a.reshape(-1, 3), a.reshape(-1, 3)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("offset", [0.5, 0.1, 0.001])
def test_psnr_of_a_known_error(offset: float) -> None:
    a = 0.4 * clip(1)
    assert psnr(a, a + offset) == pytest.approx(-20 * math.log10(offset))
    half = a.copy()
    half[:, :8] += offset
    assert psnr(a, half) == pytest.approx(-20 * math.log10(offset) + 10 * math.log10(2))


def test_psnr_of_one_spoilt_frame_is_finite_and_computed_in_float64() -> None:
    a = clip(2, (4, 11, 11, 3)).astype(np.float32)
    b = a.copy()
    b[3] = 1 - a[3]
    assert psnr(a, b) == pytest.approx(-10 * math.log10(np.mean((1 - 2 * a[3].astype(float)) ** 2) / 4))
    # 10^-5 is lost in float16 unless the difference is taken in more digits.
    c = np.full((1, 11, 11, 3), 0.5, np.float16)
    assert psnr(c, c.astype(np.float64) + 1e-5) == pytest.approx(100)


@pytest.mark.parametrize(("level", "offset"), [(0.2, 0.1), (0.0, 1.0), (0.7, -0.7)])
def test_ssim_of_flat_clips(level: float, offset: float) -> None:
    """Without variance only the luminance term is left."""
    a = np.full((2, 12, 13, 3), level)
    b = a + offset
    other = level + offset
    assert ssim(a, b) == pytest.approx((2 * level * other + 1e-4) / (level**2 + other**2 + 1e-4), abs=1e-9)


def test_ssim_of_a_negative() -> None:
    """About a mean of a half, the negative has the same luminance and the opposite covariance."""
    a = np.full((1, 32, 32, 3), 0.5)
    a[:, ::2, ::2] += 0.3
    a[:, 1::2, ::2] -= 0.3
    assert -1 <= ssim(a, 1 - a) < -0.9


def test_ssim_against_a_loop_over_windows() -> None:
    a, b = clip(3, (2, 14, 13, 3)), clip(4, (2, 14, 13, 3))
    b = 0.7 * a + 0.3 * b
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    window = np.outer(line, line) / np.sum(np.outer(line, line))
    values = []
    for frame in range(2):
        for channel in range(3):
            for y in range(4):
                for x in range(3):
                    p, q = (c[frame, y : y + 11, x : x + 11, channel] for c in (a, b))
                    mp, mq = np.sum(window * p), np.sum(window * q)
                    vp, vq = np.sum(window * (p - mp) ** 2), np.sum(window * (q - mq) ** 2)
                    shared = np.sum(window * (p - mp) * (q - mq))
                    top = (2 * mp * mq + 0.01**2) * (2 * shared + 0.03**2)
                    values.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-12)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)


def test_ssim_sees_a_colour_of_the_same_luma() -> None:
    a = clip(5)
    rolled = a[..., [1, 2, 0]]
    assert ssim(a, rolled) < 0.5


def test_bytes_and_frames_one_by_one_give_the_same() -> None:
    """A clip of bytes is the clip of its levels over 255; frames in a stream are the clip's."""
    generator = np.random.default_rng(10)
    a, b = (generator.integers(0, 256, (4, 13, 12, 3), np.uint8) for _ in range(2))
    levels = (a / 255, b / 255)
    error = np.mean((levels[0] - levels[1]) ** 2)
    assert psnr(a, b) == psnr(*levels) == pytest.approx(-10 * math.log10(error))
    assert ssim(a, b) == ssim(*levels)
    roughness = np.mean(np.abs(np.diff(levels[0], 2, axis=0)))
    assert temporal_smoothness(a) == pytest.approx(roughness)
    likeness, smoothness = Likeness(), Smoothness()
    for frame, other in zip(a, b, strict=True):
        likeness.add(frame, other)
        smoothness.add(frame)
    assert psnr_of(likeness.error) == pytest.approx(psnr(a, b))
    assert likeness.ssim == pytest.approx(ssim(a, b))
    assert smoothness.value == pytest.approx(roughness)


def test_what_a_stream_is_too_short_or_small_for() -> None:
    likeness, smoothness = Likeness(), Smoothness()
    frame = np.zeros((10, 40, 3), np.uint8)
    for _ in range(2):
        likeness.add(frame, frame + np.uint8(51))
        smoothness.add(frame)
    assert likeness.ssim is None
    assert likeness.error == pytest.approx(0.04)
    assert smoothness.value is None
    with pytest.raises(ValueError, match="one shape"):
        likeness.add(frame, frame[:5])


def test_cosine() -> None:
    a = clip(6, (4, 3, 5, 5)) - 0.5
    assert cosine(a, -2 * a) == pytest.approx(-1)
    assert cosine(np.array([[3.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.array([0.0, 2.0]), np.array([5.0, 0.0])) == 0


def test_temporal_smoothness() -> None:
    still = np.repeat(clip(7, (1, 8, 8, 3)), 5, axis=0)
    time = np.arange(5)[:, None, None, None]
    assert temporal_smoothness(still) == 0
    assert temporal_smoothness(still / 2 + 0.1 * time) == pytest.approx(0, abs=1e-12)
    assert temporal_smoothness(still / 2 + 0.01 * time**2) == pytest.approx(0.02)
    assert temporal_smoothness(0.5 + 0.1 * (-1.0) ** time + 0 * still) == pytest.approx(0.4)


def test_frechet_of_diagonal_gaussians() -> None:
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    deviations_a, deviations_b = np.array([1.0, 2.0, 0.1]), np.array([1.5, 0.5, 0.1])
    a = with_moments(0, 50, mean_a, np.diag(deviations_a))
    b = with_moments(1, 70, mean_b, np.diag(deviations_b))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((deviations_a - deviations_b) ** 2)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    turn = rotation(2, 3)
    assert frechet(a @ turn, b @ turn) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """In two dimensions, tr(M^(1/2)) = (tr M + 2 (det M)^(1/2))^(1/2)."""
    root_a, root_b = np.array([[2.0, 0.0], [0.0, 0.5]]), np.array([[1.0, 0.0], [0.9, 0.3]])
    a, b = with_moments(3, 40, np.zeros(2), root_a), with_moments(4, 40, np.zeros(2), root_b)
    covariance_a, covariance_b = root_a @ root_a.T, root_b @ root_b.T
    product = covariance_a @ covariance_b
    shared = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_samples_than_dimensions_is_finite_and_biased_upwards() -> None:
    generator = np.random.default_rng(8)
    few = frechet(generator.standard_normal((8, 32)), generator.standard_normal((8, 32)))
    many = frechet(generator.standard_normal((4000, 32)), generator.standard_normal((4000, 32)))
    assert many < 0.2 < 10 < few < math.inf
    same = generator.standard_normal((8, 32))
    assert frechet(same, same) == pytest.approx(0, abs=1e-6)


def test_arrays_that_do_not_fit() -> None:
    a = clip(9)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="one shape"):
            measure(a, a[:, :15])
        with pytest.raises(ValueError, match="expected a clip"):
            measure(a[0], a[0])
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 20x10"):
        ssim(a[:, :10], a[:, :10])
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        temporal_smoothness(a[:2])
    with pytest.raises(ValueError, match="one shape"):
        cosine(a, a[0])
    with pytest.raises(ValueError, match="no direction"):
        cosine(a, 0 * a)
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet(a[0, 0, :1], a[0, 0])
    with pytest.raises(ValueError, match="dimensions: 3 and 2"):
        frechet(a[0, 0], a[0, 0, :, :2])
