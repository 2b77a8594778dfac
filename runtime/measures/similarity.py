"""How alike two clips are, or two sets of features: PSNR, SSIM, cosine, temporal roughness, Fréchet distance.

Clips are [frames, height, width, 3] of any size: numbers in 0..1, or uint8 in 0..255. Features are [samples,
dimensions]. All is computed in float64 with numpy alone, and of clips only a few frames at a time: `Likeness` and
`Smoothness` take frames as they come. Arrays that do not fit one another raise ValueError in one sentence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_Float = npt.NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


class Likeness:
    """The mean squared error and SSIM of two clips whose frames come one by one."""

    def __init__(self) -> None:
        self._count = 0
        self._error = 0.0
        self._ssim: float | None = 0.0

    def add(self, a: Array, b: Array) -> None:
        """The next frame of each clip, [H, W, 3]."""
        if a.shape != b.shape:
            raise ValueError(f"both frames must have one shape, got {list(a.shape)} and {list(b.shape)}")
        x, y = _unit(a), _unit(b)
        self._count += 1
        self._error += float(np.mean((x - y) ** 2))
        if self._ssim is not None:
            self._ssim = self._ssim + _frame_ssim(x, y) if min(a.shape[:2]) >= WINDOW else None

    @property
    def error(self) -> float:
        """Mean squared error, in levels of 0..1."""
        return self._error / self._count

    @property
    def ssim(self) -> float | None:
        """See `ssim`; None for frames that are smaller than its window."""
        return None if self._ssim is None else self._ssim / self._count


class Smoothness:
    """`temporal_smoothness` of a clip whose frames come one by one."""

    def __init__(self) -> None:
        self._last: list[_Float] = []
        self._sum, self._count = 0.0, 0

    def add(self, frame: Array) -> None:
        """The next frame, [H, W, 3]."""
        self._last.append(_unit(frame))
        if len(self._last) == 3:
            first, second, third = self._last
            self._sum += float(np.mean(np.abs(first - 2 * second + third)))
            self._count += 1
            del self._last[0]

    @property
    def value(self) -> float | None:
        """See `temporal_smoothness`; None of fewer than three frames."""
        return self._sum / self._count if self._count else None


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over the whole clip; inf when they are equal.

    The error is averaged before the logarithm, so that one frame without any error (a conditioning frame) does not
    make the mean over the frames infinite. A mean of the frames' own PSNRs is never smaller.

    Args:
        a: [F, H, W, 3].
        b: likewise.
    """
    _check_pair(a, b)
    return psnr_of(float(np.mean([np.mean((_unit(x) - _unit(y)) ** 2) for x, y in zip(a, b, strict=True)])))


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error in levels of 0..1."""
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(a: Array, b: Array) -> float:
    """Structural similarity, -1..1, 1 when equal: of every channel (R, G, B) and frame, then averaged.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004,
    eq. 13 with their settings: Gaussian window of 11x11 and sigma 1.5, K1 = 0.01, K2 = 0.03, only where the whole
    window lies in the frame. They take the luma alone; channels are taken here, since colours may differ at one luma.

    Args:
        a: [F, H, W, 3], at least 11 pixels high and wide.
        b: likewise.
    """
    _check_pair(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, got {a.shape[2]}x{a.shape[1]}")
    # A frame at a time: eighty frames of 832x480 in float64 would take gigabytes.
    return float(np.mean([_frame_ssim(_unit(x), _unit(y)) for x, y in zip(a, b, strict=True)]))


def cosine(a: Array, b: Array) -> float:
    """Cosine of the angle between two arrays of one shape, such as latents, seen as vectors; -1..1."""
    if a.shape != b.shape:
        raise ValueError(f"both arrays must have one shape, got {list(a.shape)} and {list(b.shape)}")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    if lengths == 0:
        raise ValueError("an array of zeros has no direction, so that there is no cosine")
    return float(np.clip(x @ y / lengths, -1, 1))


def temporal_smoothness(clip: Array) -> float:
    """Mean absolute second difference over time, |x[t-1] - 2 x[t] + x[t+1]|, in levels of 0..1 per frame squared.

    0 is the smoothest: a still clip, or one that fades evenly. Flicker of amplitude A gives 4 A. An edge that moves
    counts as well, so only clips of like motion compare.

    Args:
        clip: [F, H, W, 3], at least three frames.
    """
    _check_clip(clip)
    smoothness = Smoothness()
    for frame in clip:
        smoothness.add(frame)
    if smoothness.value is None:
        raise ValueError(f"a second difference needs at least 3 frames, got {len(clip)}")
    return smoothness.value


def frechet(features_a: Array, features_b: Array) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features, in the features' unit squared.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained
    by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6; covariances with N - 1.

    It is biased: with few samples it is too large, even for two sets of one distribution, by about a constant over N
    (Chong and Forsyth, "Effectively Unbiased FID and Inception Score", 2020). With N of the order of D or below it
    says little. Compare only values of equal N, beside that of two halves of the real set.

    Args:
        features_a: [N, D].
        features_b: [M, D].
    """
    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] == 0:
            raise ValueError(f"expected features [samples, dimensions], at least 2 samples, got {list(features.shape)}")
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features differ in their dimensions: {features_a.shape[1]} and {features_b.shape[1]}")
    mean_a, centred_a = _centred(features_a)
    mean_b, centred_b = _centred(features_b)
    # With C = X^T X, the eigenvalues of C_a C_b are the squares of the singular values of X_a X_b^T; a triangle of a
    # QR decomposition stands for X when samples are more than dimensions. No square root of a matrix is needed.
    root_a, root_b = (np.asarray(np.linalg.qr(each, mode="r")) for each in (centred_a, centred_b))
    shared = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    spread = float(np.sum(centred_a**2) + np.sum(centred_b**2)) - 2 * shared
    # Rounding may leave a tiny negative number for equal sets.
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2)) + spread)


def mean_cosine(features_a: Array, features_b: Array) -> float:
    """The cosine of each sample's features in two sets, averaged over the samples; 1 for equal ones.

    Args:
        features_a: [N, D].
        features_b: likewise.
    """
    if features_a.shape != features_b.shape:
        raise ValueError(
            f"both must have one shape, got features of {list(features_a.shape)} and {list(features_b.shape)}"
        )
    x, y = features_a.astype(np.float64), features_b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(np.mean(np.einsum("nd,nd->n", x, y) / np.maximum(lengths, np.finfo(np.float64).tiny)))


def _centred(features: Array) -> tuple[_Float, _Float]:
    """Mean, and what is left over (N - 1)^(1/2)."""
    values = features.astype(np.float64)
    mean = values.mean(0)
    return mean, (values - mean) / math.sqrt(len(values) - 1)


def _unit(frame: Array) -> _Float:
    """A frame in levels of 0..1."""
    values = frame.astype(np.float64)
    return values / 255 if frame.dtype == np.uint8 else values


def _frame_ssim(a: _Float, b: _Float) -> float:
    mean_a, mean_b = _weigh(a), _weigh(b)
    variance_a, variance_b = _weigh(a * a) - mean_a**2, _weigh(b * b) - mean_b**2
    covariance = _weigh(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def _weigh(frame: _Float) -> _Float:
    """Means under the Gaussian window around every pixel that has a whole one, [H - 10, W - 10, 3]."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = (size - WINDOW + 1 for size in frame.shape[:2])
    # The window is a product of a column and a row: 22 multiplications for a pixel in place of 121.
    frame = sum((weight * frame[i : i + height] for i, weight in enumerate(weights)), np.zeros(()))
    return sum((weight * frame[:, i : i + width] for i, weight in enumerate(weights)), np.zeros(()))


def _check_clip(clip: Array) -> None:
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(f"expected a clip [frames, height, width, 3], got {list(clip.shape)}")


def _check_pair(a: Array, b: Array) -> None:
    _check_clip(a)
    if a.shape != b.shape:
        raise ValueError(f"both clips must have one shape, got {list(a.shape)} and {list(b.shape)}")
