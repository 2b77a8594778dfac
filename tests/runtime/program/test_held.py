"""Programs that hold latent frames: which are restored when, what the models are told, and what noise is added."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.contracts.program import COND, LATENTS, VELOCITY, Choice, Distance, Mix, Place, Program, Run, Step
from flowblending.engine.backends.function import FunctionEngine
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.program.held import held_slot, hold, noise_slot
from flowblending.runtime.sampler.loop import Sampler

LEVELS = [1.0, 0.75, 0.4, 0.0]
SHAPE = (2, 3, 1, 2)


def program() -> Program:
    """Three steps of Euler's method."""
    steps = tuple(
        Step(
            model="large",
            timestep=1000 * now,
            sigma=now,
            instructions=(
                Run(model="large", branches=(COND,), out=(VELOCITY,)),
                Mix(out=LATENTS, terms=((1.0, LATENTS), (after - now, VELOCITY))),
            ),
        )
        for now, after in itertools.pairwise(LEVELS)
    )
    return Program(schedule="L3", solver="euler", guidance=1.0, latent_shape=SHAPE, steps=steps)


def test_what_the_models_are_told_and_what_is_restored() -> None:
    held = hold(program(), (1.0, 0.5, 0.0, 0.0), noise_scale=0.0, train_timesteps=1000)
    assert held.latent_shape == (2, 4, 1, 2)
    assert held.partial == {held_slot(0): (0,), held_slot(1): (1,)}
    assert held.given == (held_slot(0), held_slot(1))
    told = [step.frame_timesteps for step in held.steps]
    assert told == [(0.0, 500.0, 1000.0, 1000.0), (0.0, 500.0, 750.0, 750.0), (0.0, 400.0, 400.0, 400.0)]
    # Of strength 0.5 a frame is held until less than half of it is noise.
    after = [[each.source for each in step.instructions if isinstance(each, Place)] for step in held.steps]
    assert after == [[held_slot(0), held_slot(1)], [held_slot(0), held_slot(1)], [held_slot(0)]]
    assert held.slot_shape(held_slot(0)) == (2, 1, 1, 2)
    assert "latents = held_0 in the latent frames 0" in held.listing()


def test_noise_is_for_frames_of_strength_one() -> None:
    held = hold(program(), (1.0, 0.5, 1.0), noise_scale=0.5, train_timesteps=1000)
    assert {noise_slot(index) for index in range(3)} < set(held.given)
    for step, (level, index) in zip(held.steps, zip(LEVELS, range(3), strict=False), strict=True):
        mix, placed = step.instructions[:2]
        assert mix == Mix(out="held_noised", terms=((1.0, held_slot(0)), (0.5 * level**2, noise_slot(index))))
        assert placed == Place(out=LATENTS, source="held_noised")
        assert step.instructions[-1] == (Place(out=LATENTS, source=held_slot(1)) if index < 2 else placed)
    soft = hold(program(), (0.5, 0.0, 0.0), noise_scale=0.5, train_timesteps=1000)
    assert soft.given == (held_slot(0),)


@pytest.mark.parametrize("noise_scale", [0.0, 0.15])
def test_a_run_keeps_what_was_given(noise_scale: float) -> None:
    """Against the same in numpy, with a velocity that depends on the timestep of each frame."""
    random = np.random.default_rng(0)
    strengths = (1.0, 0.5, 0.0, 1.0)
    held = hold(program(), strengths, noise_scale=noise_scale, train_timesteps=1000)
    latents = random.standard_normal((1, *held.latent_shape)).astype(np.float32)
    given = {
        name: random.standard_normal((1, *held.slot_shape(name))).astype(np.float32)
        if name.startswith("held_noise")
        else latents[:, :, list(held.partial[name])]
        for name in held.given
    }
    shape = ("batch", 2, "frames", "height", "width")
    spec = GraphSpec(
        name="large",
        precision=Precision.FP32,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=shape),
            TensorSpec(name="timestep", dtype="float32", shape=("batch", "frames")),
        ),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=shape),),
    )

    def velocity(values: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        return values * (1 + timestep[:, None, :, None, None] / 1000)

    engine = FunctionEngine(spec, lambda arrays: {"velocity": velocity(arrays["latents"], arrays["timestep"])})
    trajectory = Sampler({"large": engine}, HostDevice()).prepare(held, {COND: {}}, given)
    found = trajectory.run(latents).latents.numpy()

    expected, keep = latents.copy(), np.array(strengths)
    for index, (now, after) in enumerate(itertools.pairwise(LEVELS)):
        if noise_scale:
            hard = keep == 1
            expected[:, :, hard] = latents[:, :, hard] + noise_scale * now**2 * given[noise_slot(index)]
        told = np.minimum(1000 * now, 1000 * (1 - keep))[None].astype(np.float32)
        moved = expected + (after - now) * velocity(expected, told)
        free = now - 1e-6 < 1 - keep
        expected[:, :, free] = moved[:, :, free]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    again = trajectory.run(latents).latents.numpy()
    assert np.array_equal(found, again)


def test_what_is_decided_on_the_way_holds_nothing() -> None:
    distance = Distance(slot=VELOCITY)
    choice = Choice(
        threshold=1.0, moved=distance, learned=(distance,) * 3, kept=(), reuse=(None,) * 3, starts=frozenset({0})
    )
    with pytest.raises(UsageError, match="The cache easycache decides while a program runs, and images are given"):
        hold(dataclasses.replace(program(), choice=choice), (1.0, 0.0, 0.0), noise_scale=0.0, train_timesteps=1000)
