"""How far the small model's velocity is from the large one's at the same latents, and how fast velocities change.

The first is the method's cheap proxy of where the small model may take over (arXiv 2512.24724: cosine and L2 distance
of the two velocities at the same latents and timestep). The second are the constants of step caches; they come of
the same evaluations, and so they are always measured together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import LARGE, SMALL
from flowblending.contracts.program import COND, UNCOND
from flowblending.runtime.calibrate.signal import Signal
from flowblending.runtime.calibrate.trajectory import Floats, StepTrajectory
from flowblending.runtime.program.caches.cache import Observer, View
from flowblending.runtime.program.caches.registry import measured_caches

GUIDED = "guided"
COSINE, RELATIVE_L2, RMS = "cosine", "relative_l2", "rms"

_TINY = float(np.finfo(np.float32).tiny)

Series = dict[str, dict[str, list[float]]]
"""By two names, a number for every step."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Of one prompt along one trajectory.

    Attributes:
        distances: by ``cond``, ``uncond`` and ``guided`` (without guidance ``cond`` alone), and by ``cosine`` (1 less
            the cosine), ``relative_l2`` (over the large model's norm) and ``rms`` (of the difference).
        caches: by step cache and model, the constants in `flowblending.contracts.manifest.Calibration`.
    """

    distances: Series
    caches: Series


@dataclass(kw_only=True)
class DivergenceRecorder:
    """Collects what every step shows."""

    guidance: float
    signals: Mapping[str, Signal] = field(default_factory=dict)
    distances: Series = field(default_factory=dict)
    caches: Series = field(default_factory=dict)
    _observers: dict[str, list[Observer]] = field(default_factory=dict)

    def add(self, latents: Floats, timestep: float, velocities: dict[str, dict[str, Floats]]) -> None:
        """A step: its latents, its timestep, and each model's velocity per branch."""
        large, small = velocities[LARGE], velocities[SMALL]
        pairs: dict[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]
        pairs = {branch: (small[branch], large[branch]) for branch in large}
        if UNCOND in large:
            pairs[GUIDED] = (guided(small, self.guidance), guided(large, self.guidance))
        for name, (ours, theirs) in pairs.items():
            found = self.distances.setdefault(name, {COSINE: [], RELATIVE_L2: [], RMS: []})
            for measure, value in distances(ours, theirs).items():
                found[measure].append(value)
        for model, branches in velocities.items():
            signal = self.signals[model](latents, timestep) if model in self.signals else None
            view = View(latents=latents, velocity=branches[COND], timestep=timestep, signal=signal)
            if model not in self._observers:
                self._observers[model] = _observers(signals=signal is not None)
            for observer in self._observers[model]:
                for constant, value in observer.look(view).items():
                    self.caches.setdefault(constant, {}).setdefault(model, []).append(value)

    def result(self) -> Divergence:
        """What was collected."""
        return Divergence(distances=self.distances, caches=self.caches)


def series_names(*, signals: bool) -> set[str]:
    """What is recorded for step caches at every step; more where a bundle has signal graphs."""
    every = (measurement for _, measurement in measured_caches().values())
    return {name for each in every if signals or not each.needs_signal for name in each.series}


def _observers(*, signals: bool) -> list[Observer]:
    every = (measurement for _, measurement in measured_caches().values())
    return [each.observer() for each in every if signals or not each.needs_signal]


def measure(trajectory: StepTrajectory, noise: Floats, models: Sequence[str], tick: Callable[[], None]) -> Divergence:
    """Evaluate both models at every step of a schedule's trajectory.

    Args:
        models: of every step: whose velocity the trajectory follows.
        tick: called after every step.
    """
    recorder = DivergenceRecorder(guidance=trajectory.guidance, signals=trajectory.signals)
    trajectory.start(noise)
    for index, model in enumerate(models):
        observe(trajectory, index, model, recorder)
        tick()
    return recorder.result()


def observe(trajectory: StepTrajectory, index: int, model: str, recorder: DivergenceRecorder) -> None:
    """One step with ``model``, after both were evaluated."""
    other = SMALL if model == LARGE else LARGE
    velocities = {each: trajectory.evaluate(index, each) for each in (other, model)}
    latents = trajectory.latents()
    trajectory.update(index)
    recorder.add(latents, trajectory.timesteps[index], velocities)


def guided(velocities: dict[str, Floats], guidance: float) -> npt.NDArray[np.float64]:
    """Classifier-free guidance of a model's two branches (arXiv 2207.12598)."""
    return guidance * velocities[COND].astype(np.float64) + (1.0 - guidance) * velocities[UNCOND]


def distances(small: npt.NDArray[np.floating], large: npt.NDArray[np.floating]) -> dict[str, float]:
    """Cosine distance, relative L2 distance and root mean square of the difference, of arrays of one shape."""
    a, b = small.astype(np.float64).ravel(), large.astype(np.float64).ravel()
    lengths = max(float(np.linalg.norm(a) * np.linalg.norm(b)), _TINY)
    difference = float(np.linalg.norm(a - b))
    return {
        COSINE: max(0.0, 1.0 - float(a @ b) / lengths),
        RELATIVE_L2: difference / max(float(np.linalg.norm(b)), _TINY),
        RMS: difference / a.size**0.5,
    }


def mean_of(series: Sequence[Series]) -> Series:
    """The mean over prompts."""
    return _fold(series, lambda values: values.mean(axis=0))


def spread_of(series: Sequence[Series]) -> Series:
    """The standard deviation over prompts, 0 for a single one."""
    return _fold(series, lambda values: values.std(axis=0, ddof=1) if len(values) > 1 else 0.0 * values[0])


def _fold(series: Sequence[Series], fold: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Series:
    return {
        name: {each: fold(np.array([prompt[name][each] for prompt in series])).tolist() for each in members}
        for name, members in series[0].items()
    }
