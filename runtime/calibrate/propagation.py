"""What blocks of small steps, and whole schedules, do to the video: their frames' difference to all-large sampling's.

An early error is amplified by all later steps and by the decoder, and a late one is not, so that a step's own error
says little about the video. Here a block of steps is taken with the small model on the all-large trajectory, and
everything after it with the large model; the difference of the decoded frames is what that block does. The blocks'
inner products are enough to predict any schedule (`flowblending.runtime.calibrate.superposition`), and only they are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from flowblending.export.spec import LARGE, SMALL
from flowblending.runtime.calibrate.divergence import Divergence, Recorder, observe
from flowblending.runtime.calibrate.features import Latents, Video
from flowblending.runtime.calibrate.walk import Floats, Walk

Gram = npt.NDArray[np.float64]
"""[blocks, blocks]."""


def measure_blocks(
    walk: Walk, noise: Floats, starts: Sequence[int], decode: Callable[[Latents], Video], tick: Callable[[], None]
) -> tuple[Divergence, Gram, Latents]:
    """The all-large trajectory with both models' velocities, and what each block of steps does to its frames.

    Args:
        starts: the first step of every block, from 0 on, ascending; the last block goes on to the end.
        tick: called after every step of either model.

    Returns:
        The divergence; the blocks' inner products; and the all-large latents.
    """
    recorder = Recorder(guidance=walk.guidance, signals=walk.signals)
    ends = dict(zip(starts, [*starts[1:], walk.steps], strict=True))
    frames: list[Video] = []
    walk.start(noise)
    for index in range(walk.steps):
        if index in ends:
            state = walk.save()
            for later in range(index, walk.steps):
                walk.step(later, SMALL if later < ends[index] else LARGE)
                tick()
            frames.append(decode(walk.latents()))
            walk.restore(state)
        observe(walk, index, LARGE, recorder)
        tick()
    latents = walk.latents()
    return recorder.result(), inner_products(frames, decode(latents)), latents


def measure_schedules(
    walk: Walk,
    noise: Floats,
    schedules: Mapping[str, Sequence[str]],
    *,
    all_large: Latents,
    decode: Callable[[Latents], Video],
    tick: Callable[[], None],
) -> dict[str, float]:
    """Mean squares of whole schedules' differences to the all-large frames.

    Args:
        schedules: by any name, the model of every step.
        all_large: what `measure_blocks` found.
        tick: called after every step.
    """
    reference, found = decode(all_large), {}
    for name, models in schedules.items():
        walk.start(noise)
        for index, model in enumerate(models):
            walk.step(index, model)
            tick()
        found[name] = float(inner_products([decode(walk.latents())], reference)[0, 0])
    return found


def block_ticks(steps: int, starts: Sequence[int]) -> int:
    """How often `measure_blocks` ticks."""
    return steps + sum(steps - start for start in starts)


def inner_products(videos: Sequence[Video], reference: Video) -> Gram:
    """Of the videos' differences to a reference, averaged over all values; frames count from 0 to 1.

    Args:
        videos: of one shape, [F, H, W, 3].
    """
    total = np.zeros((len(videos), len(videos)))
    # A frame at a time: as floating-point numbers, long videos would fill the memory.
    for index, frame in enumerate(reference):
        rows = [(video[index].astype(np.float64) - frame).ravel() / 255.0 for video in videos]
        difference = np.stack(rows)
        total += difference @ difference.T
    return total / reference.size
