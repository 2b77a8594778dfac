"""Latent frames that were given: a program that keeps them, tells the models so, and puts more before the video's own.

Sources: ``__call__`` and ``add_noise_to_image_conditioning_latents`` of diffusers' pipeline_ltx_condition.py, and
``__call__`` of its pipeline_ltx_image2video.py, which is the same where every strength is 1 and no noise is added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowblending import UsageError
from flowblending.contracts.program import LATENTS, Instruction, Mix, Place, Program, Step

_HARD = 1.0 - 1e-6
_NEAR = 1e-6
"""Both as the class has them."""

_NOISED = "held_noised"


def held_slot(group: int) -> str:
    """The slot of the latent frames of one strength, counted from the largest on."""
    return f"held_{group}"


def noise_slot(step: int) -> str:
    """The slot of the noise of a step, counted from 0 on."""
    return f"held_noise_{step}"


def groups_of(strengths: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
    """Strengths above 0 from the largest on, each with its latent frames."""
    found = sorted({strength for strength in strengths if strength > 0.0}, reverse=True)
    return [(each, tuple(index for index, strength in enumerate(strengths) if strength == each)) for each in found]


def hold(
    program: Program, strengths: Sequence[float], *, noise_scale: float, train_timesteps: int, extra: int = 0
) -> Program:
    """The program with latent frames that are given.

    A frame of strength s is held as long as the share of noise is 1 - s or more, and the models are told a timestep of
    1 - s at most for it. Those of strength 1 get noise of their own at every step, less of it at the end.

    Args:
        program: of the video alone.
        strengths: from 0 to 1, of every latent frame: of those put before the video's own, and then of these.
        noise_scale: of the noise on frames of strength 1; 0 for none.
        train_timesteps: the largest timestep.
        extra: how many latent frames are put before the video's own.

    Raises:
        UsageError: the program decides while it runs.
    """
    if program.choice is not None:
        raise UsageError(
            "The cache easycache decides while a program runs, and images are given; leave one of the two out, or give "
            "--cache easycache-static."
        )
    groups = groups_of(strengths)
    hard = bool(groups) and groups[0][0] > _HARD and noise_scale > 0.0
    partial = {held_slot(number): frames for number, (_, frames) in enumerate(groups)}
    given = list(partial)
    if hard:
        names = [noise_slot(index) for index in range(len(program.steps))]
        partial |= dict.fromkeys([_NOISED, *names], groups[0][1])
        given += names
    channels, _, height, width = program.latent_shape
    steps = []
    for index, step in enumerate(program.steps):
        share = step.timestep / train_timesteps
        before: list[Instruction] = []
        if hard:
            terms = ((1.0, held_slot(0)), (noise_scale * share**2, noise_slot(index)))
            before = [Mix(out=_NOISED, terms=terms), Place(out=LATENTS, source=_NOISED)]
        after = [
            Place(out=LATENTS, source=_NOISED if hard and number == 0 else held_slot(number))
            for number, (strength, _) in enumerate(groups)
            if not share - _NEAR < 1.0 - strength
        ]
        steps.append(_told(step, strengths, train_timesteps, (*before, *step.instructions, *after)))
    return dataclasses.replace(
        program,
        latent_shape=(channels, len(strengths), height, width),
        steps=tuple(steps),
        partial=partial,
        given=tuple(given),
        extra=extra,
    )


def _told(step: Step, strengths: Sequence[float], train_timesteps: int, instructions: tuple[Instruction, ...]) -> Step:
    timesteps = tuple(min(step.timestep, (1.0 - strength) * train_timesteps) for strength in strengths)
    return dataclasses.replace(step, frame_timesteps=timesteps, instructions=instructions)
