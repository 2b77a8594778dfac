"""One prompt's part of a calibration: the all-large trajectory, and everything that leaves it and comes back to it.

Every schedule tried shares the beginning of its trajectory with another one, and is continued from there: the early
boundaries from the all-large trajectory, the late ones from that of the early boundary that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from flowblending.runtime.calibrate.divergence import Divergence, observe, recorder_of
from flowblending.runtime.calibrate.features import Latents, Measure, similarity
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.measures.networks import Features, Frames
from flowblending.runtime.planned_job import Start

Decode = Callable[[Latents], Frames]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How results are compared: with the all-large one of the same noise, and as sets over all prompts."""

    similarity: Measure
    distance: Measure

    def both(self, latents: Latents, decode: Decode) -> tuple[Features, Features]:
        """Features for the similarity and for the distance; frames are decoded once, and only if they are asked for."""
        frames: list[Frames] = []

        def once() -> Frames:
            if not frames:
                frames.append(decode(latents))
            return frames[0]

        one = self.similarity.features(latents, once)
        if self.distance.of_frames is not None and self.distance.name == self.similarity.name:
            return one, one
        return one, self.distance.features(latents, once)


@dataclass(frozen=True, kw_only=True)
class Early:
    """What the early boundary is chosen by.

    Attributes:
        similarities: to the all-large result, by the number of large steps before the small ones.
        large: features of the all-large result for the distance [samples, dimensions].
        reference: those of all-large sampling from other noise.
        latents: of the all-large result.
    """

    similarities: dict[int, float]
    large: Features
    reference: Features
    latents: Latents


@dataclass(frozen=True, kw_only=True)
class Late:
    """What the late boundary is chosen by, by the number of large steps at the end.

    Attributes:
        similarities: to the all-large result.
        features: for the distance [samples, dimensions].
    """

    similarities: dict[int, float]
    features: dict[int, Features]


def measure_early(
    trajectory: StepTrajectory,
    start: Start,
    *,
    other: Start,
    tried: Collection[int],
    measures: Measures,
    decode: Decode,
    tick: Callable[[], None],
) -> tuple[Divergence, Early]:
    """The all-large trajectory with both models' velocities, and from each step tried on the small model's results.

    Args:
        other: what the reference starts from.
        tried: numbers of large steps before the small ones.
        tick: called after every step of either model.
    """
    recorder = recorder_of(trajectory)
    results: dict[int, Latents] = {}
    trajectory.start(start)
    for index in range(trajectory.steps):
        if index in tried:
            results[index] = _continued(trajectory, index, trajectory.pair.second, tick)
        observe(trajectory, index, trajectory.pair.first, recorder)
        tick()
    latents = trajectory.result()
    reference = _all_large(trajectory, other, tick)
    own, large = measures.both(latents, decode)
    similarities = {trajectory.steps: 1.0}
    while results:
        early, result = results.popitem()
        similarities[early] = similarity(measures.both(result, decode)[0], own)
    return recorder.result(), Early(
        similarities=dict(sorted(similarities.items())),
        large=large,
        reference=measures.both(reference, decode)[1],
        latents=latents,
    )


def measure_late(
    trajectory: StepTrajectory,
    start: Start,
    *,
    early: int,
    tried: Collection[int],
    all_large: Early,
    measures: Measures,
    decode: Decode,
    tick: Callable[[], None],
) -> Late:
    """From ``early`` large steps on the small model's trajectory, and from each step tried on the large one's results.

    Args:
        tried: numbers of large steps at the end, not more than the steps after ``early``; all of them make the
            all-large result, which is known.
        all_large: what `measure_early` found.
    """
    own, _ = measures.both(all_large.latents, decode)
    late = Late(similarities={}, features={})
    trajectory.start(start)
    for index in range(early):
        trajectory.step(index, trajectory.pair.first)
        tick()
    for count, result in _returns(trajectory, early, tried, tick):
        compared, features = measures.both(result, decode)
        late.similarities[count] = similarity(compared, own)
        late.features[count] = features
    if trajectory.steps - early in tried:
        late.similarities[trajectory.steps - early], late.features[trajectory.steps - early] = 1.0, all_large.large
    return late


def early_ticks(steps: int, tried: Collection[int]) -> int:
    """How often `measure_early` ticks."""
    return 2 * steps + sum(steps - early for early in tried)


def late_ticks(steps: int, early: int, tried: Collection[int]) -> int:
    """How often `measure_late` ticks."""
    return steps + sum(count for count in tried if 0 < count < steps - early)


def _returns(
    trajectory: StepTrajectory, early: int, tried: Collection[int], tick: Callable[[], None]
) -> Iterator[tuple[int, Latents]]:
    """Results by the number of large steps at the end."""
    for index in range(early, trajectory.steps):
        if index > early and trajectory.steps - index in tried:
            yield trajectory.steps - index, _continued(trajectory, index, trajectory.pair.first, tick)
        trajectory.step(index, trajectory.pair.second)
        tick()
    if early < trajectory.steps and 0 in tried:
        yield 0, trajectory.result()


def _continued(trajectory: StepTrajectory, index: int, letter: str, tick: Callable[[], None]) -> Latents:
    """The result of taking all steps from here on with one model; the trajectory is where it was afterwards."""
    state = trajectory.save()
    for later in range(index, trajectory.steps):
        trajectory.step(later, letter)
        tick()
    result = trajectory.result()
    trajectory.restore(state)
    return result


def _all_large(trajectory: StepTrajectory, start: Start, tick: Callable[[], None]) -> Latents:
    trajectory.start(start)
    for index in range(trajectory.steps):
        trajectory.step(index, trajectory.pair.first)
        tick()
    return trajectory.result()


def by_count(values: Mapping[str, float]) -> dict[int, float]:
    """What JSON made of a mapping from numbers."""
    return {int(count): value for count, value in values.items()}
