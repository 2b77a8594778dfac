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

from flowblending.contracts.program import COND, UNCOND
from flowblending.runtime.calibrate.signal import Signal
from flowblending.runtime.calibrate.trajectory import Floats, StepTrajectory
from flowblending.runtime.planned_job import Start
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
        distances: of the first two models, by ``cond``, ``uncond`` and ``guided`` (without guidance ``cond`` alone),
            and by ``cosine`` (1 less the cosine), ``relative_l2`` (over the first model's norm) and ``rms`` (of the
            difference).
        caches: by step cache and engine, the constants in `flowblending.contracts.manifest.Calibration`.
    """

    distances: Series
    caches: Series


@dataclass(kw_only=True)
class DivergenceRecorder:
    """Collects what every step shows.

    Attributes:
        models: by letter, the engine of every step; the first model first.
        extra: latent frames before the video's own, whose velocities are not compared.
    """

    guidance: float
    models: Mapping[str, Sequence[str]]
    extra: int = 0
    signals: Mapping[str, Signal] = field(default_factory=dict)
    distances: Series = field(default_factory=dict)
    _series: Series = field(default_factory=dict)
    _observers: dict[str, list[Observer]] = field(default_factory=dict)

    def add(self, index: int, latents: Floats, timestep: float, velocities: dict[str, dict[str, Floats]]) -> None:
        """A step: its latents, its timestep, and by letter each model's velocity per branch."""
        first, *others = self.models
        if others:
            self._compare(velocities[first], velocities[others[0]])
        for letter, branches in velocities.items():
            engine = self.models[letter][index]
            signal = self.signals[engine](latents, timestep) if engine in self.signals else None
            view = View(latents=latents, velocity=branches[COND], timestep=timestep, signal=signal)
            if letter not in self._observers:
                self._observers[letter] = _observers(signals=signal is not None)
            for observer in self._observers[letter]:
                for constant, value in observer.look(view).items():
                    self._series.setdefault(constant, {}).setdefault(letter, []).append(value)

    def _compare(self, large: dict[str, Floats], small: dict[str, Floats]) -> None:
        pairs: dict[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]
        pairs = {branch: (small[branch], large[branch]) for branch in large}
        if UNCOND in large:
            pairs[GUIDED] = (guided(small, self.guidance), guided(large, self.guidance))
        for name, whole in pairs.items():
            ours, theirs = (each[:, :, self.extra :] for each in whole)
            found = self.distances.setdefault(name, {COSINE: [], RELATIVE_L2: [], RMS: []})
            for measure, value in distances(ours, theirs).items():
                found[measure].append(value)

    def result(self) -> Divergence:
        """What was collected. Two experts share their model's series, each of whose steps is one of theirs."""
        caches = {
            constant: {
                engine: values for letter, values in found.items() for engine in dict.fromkeys(self.models[letter])
            }
            for constant, found in self._series.items()
        }
        return Divergence(distances=self.distances, caches=caches)


def series_names(*, signals: bool) -> set[str]:
    """What is recorded for step caches at every step; more where a bundle has signal graphs."""
    every = (measurement for _, measurement in measured_caches().values())
    return {name for each in every if signals or not each.needs_signal for name in each.series}


def _observers(*, signals: bool) -> list[Observer]:
    every = (measurement for _, measurement in measured_caches().values())
    return [each.observer() for each in every if signals or not each.needs_signal]


def recorder_of(trajectory: StepTrajectory) -> DivergenceRecorder:
    """What collects a trajectory's steps."""
    return DivergenceRecorder(
        guidance=trajectory.guidance, models=trajectory.models, extra=trajectory.extra, signals=trajectory.signals
    )


def measure(trajectory: StepTrajectory, start: Start, letters: Sequence[str], tick: Callable[[], None]) -> Divergence:
    """Evaluate all models at every step of a schedule's trajectory.

    Args:
        letters: of every step: whose velocity the trajectory follows.
        tick: called after every step.
    """
    recorder = recorder_of(trajectory)
    trajectory.start(start)
    for index, letter in enumerate(letters):
        observe(trajectory, index, letter, recorder)
        tick()
    return recorder.result()


def observe(trajectory: StepTrajectory, index: int, letter: str, recorder: DivergenceRecorder) -> None:
    """One step with the model of a letter, after all were evaluated."""
    others = [each for each in trajectory.letters if each != letter]
    velocities = {each: trajectory.evaluate(index, each) for each in (*others, letter)}
    latents = trajectory.latents()
    trajectory.update(index)
    recorder.add(index, latents, trajectory.timesteps[index], velocities)


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
