"""What blocks of small steps, and whole schedules, do to the video: their frames' difference to all-large sampling's.

An early error is amplified by all later steps and by the decoder, and a late one is not, so that a step's own error
says little about the video. Here a block of steps is taken with the small model on the all-large trajectory, and
everything after it with the large model; the mean square of the decoded frames' difference is what that block does.

A schedule is predicted by the sum of its blocks' squares, and part of a block by its steps' part of the square. That is
what errors in unrelated directions add up to. Neighbouring blocks' directions are related, but the whole form, with
the inner products of their differences, predicted worse on the trained pair: in a long stage the small model corrects
part of what it did before (docs/calibrate.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowblending.runtime.calibrate.divergence import Divergence, observe, recorder_of
from flowblending.runtime.calibrate.features import Latents
from flowblending.runtime.calibrate.trajectory import StepTrajectory
from flowblending.runtime.measures.networks import Frames
from flowblending.runtime.planned_job import Start


def measure_blocks(
    trajectory: StepTrajectory,
    start: Start,
    starts: Sequence[int],
    decode: Callable[[Latents], Frames],
    tick: Callable[[], None],
) -> tuple[Divergence, list[float], Latents]:
    """The all-large trajectory with both models' velocities, and what each block of steps does to its frames.

    Args:
        starts: the first step of every block, from 0 on, ascending; the last block goes on to the end.
        tick: called after every step of either model.

    Returns:
        The divergence; every block's mean square; and the all-large latents.
    """
    recorder, pair = recorder_of(trajectory), trajectory.pair
    ends = dict(zip(starts, [*starts[1:], trajectory.steps], strict=True))
    results: list[Latents] = []
    trajectory.start(start)
    for index in range(trajectory.steps):
        if index in ends:
            state = trajectory.save()
            for later in range(index, trajectory.steps):
                trajectory.step(later, pair.second if later < ends[index] else pair.first)
                tick()
            results.append(trajectory.result())
            trajectory.restore(state)
        observe(trajectory, index, pair.first, recorder)
        tick()
    latents = trajectory.result()
    reference = decode(latents)
    return recorder.result(), [mean_square(decode(result), reference) for result in results], latents


def measure_schedules(
    trajectory: StepTrajectory,
    start: Start,
    schedules: Mapping[str, Sequence[str]],
    *,
    all_large: Latents,
    decode: Callable[[Latents], Frames],
    tick: Callable[[], None],
) -> dict[str, float]:
    """Mean squares of whole schedules' differences to the all-large frames.

    Args:
        schedules: by any name, the letter of every step.
        all_large: what `measure_blocks` found.
        tick: called after every step.
    """
    reference, found = decode(all_large), {}
    for name, letters in schedules.items():
        trajectory.start(start)
        for index, letter in enumerate(letters):
            trajectory.step(index, letter)
            tick()
        found[name] = mean_square(decode(trajectory.result()), reference)
    return found


def block_ticks(steps: int, starts: Sequence[int]) -> int:
    """How often `measure_blocks` ticks."""
    return steps + sum(steps - start for start in starts)


def shared_out(squares: Sequence[float], starts: Sequence[int], errors: Sequence[float]) -> list[float]:
    """What every step adds to the mean square of a schedule's difference, if the small model takes it.

    Args:
        squares: of every block.
        starts: the first step of every block, from 0 on, ascending.
        errors: of every step alone, by which its block's square is shared out; see `step_errors`.
    """
    owner = np.searchsorted(starts, np.arange(len(errors)), side="right") - 1
    # Two models that agree everywhere still leave a share to every step.
    own = np.maximum(errors, np.finfo(np.float64).tiny)
    found: list[float] = (np.asarray(squares)[owner] * own / np.bincount(owner, own)[owner]).tolist()
    return found


def mean_square(video: Frames, reference: Frames) -> float:
    """Of two videos' difference, [F, H, W, 3] both; values count from 0 to 1."""
    # A frame at a time: as floating-point numbers, long videos would fill the memory.
    squares = [np.mean((ours.astype(np.float64) - theirs) ** 2) for ours, theirs in zip(video, reference, strict=True)]
    return float(np.mean(squares)) / 255.0**2
