"""Estimates of what a video will look like, on a flow of which it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.runtime.devices.host import HostDevice, HostReadback
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.sampler.denoised import DenoisedFrames
from flowblending.runtime.sampler.loop import Sampler
from tests.support import manifests

Latents = npt.NDArray[np.float32]
SHAPE = (1, 16, 3, 4, 8)


def random(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def straight(name: str, target: Latents) -> FunctionEngine:
    """Straight lines from any noise to a target: v = (x - target) / sigma."""
    latents = TensorSpec(name="latents", dtype="float32", shape=manifests.LATENT)
    spec = GraphSpec(
        name=name,
        precision=Precision.FP32,
        inputs=(latents, TensorSpec(name="timestep", dtype="float32", shape=("batch",))),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=manifests.LATENT),),
    )

    def velocity(arrays: Arrays) -> Arrays:
        sigma = arrays["timestep"].reshape(-1, 1, 1, 1, 1) / np.float32(1000)
        return {"velocity": (arrays["latents"] - target) / sigma}

    return FunctionEngine(spec, velocity)


@pytest.mark.parametrize("solver", SOLVERS.built_in)
@pytest.mark.parametrize("frame", [0, 2])
def test_on_straight_lines_every_step_knows_the_end(solver: str, frame: int, tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "toy")
    program = compile_job(Job(prompt="x", steps=7, solver=solver, schedule="LSL", guidance=1.0), manifest)
    target, device = random(1), HostDevice()
    engines = {name: straight(name, target) for name in ("large", "small")}
    trajectory = Sampler(engines, device).prepare(program, {"cond": {}})
    sigmas = [step.sigma for step in program.steps]
    frames = DenoisedFrames(device, trajectory.latents, sigmas, frame, lambda index: index != 2)
    found = {}
    for event in trajectory.follow(random(2), ahead=0, observer=frames):
        if (taken := frames.take()) is not None:
            assert taken[0] == event.index
            found[event.index] = taken[1]
    assert sorted(found) == [0, 1, 3, 4, 5, 6]
    for each in found.values():
        np.testing.assert_allclose(each, target[0, :, frame], atol=0.02)  # timesteps are whole in some grids
    assert np.abs(random(2) - target).max() > 1  # which no step began with


class LateReadback(HostReadback):
    """Has copied at once, and says so when it is told to."""

    arrived = False

    def reached(self) -> bool:
        return self.arrived

    def take(self) -> list[npt.NDArray[np.uint8]]:
        assert self.arrived, "waited for a copy"
        return super().take()


class LateDevice(HostDevice):
    """A device whose copies take a while."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[LateReadback] = []

    def readback(self, size: int) -> LateReadback:
        assert size == 4 * 16 * 4 * 8  # one latent frame
        self.places.append(LateReadback())
        return self.places[-1]


def test_nothing_waits_for_copies_and_the_newest_counts() -> None:
    device = LateDevice()
    latents = device.upload(random(0))
    frames = DenoisedFrames(device, latents, [1.0, 0.8, 0.6, 0.4, 0.2, 0.1], 1, lambda _: True)
    ends = []
    for index in range(6):
        frames.before(index)
        ends.append(random(10 + index))
        latents.numpy()[:] = ends[-1]
        frames.after(index)
        assert frames.take() is None
    assert len(device.places) == 8  # of four steps: the fifth and the sixth go without
    for place in device.places[:4]:
        place.arrived = True
    taken = frames.take()
    assert taken is not None
    step, estimate = taken
    assert step == 1  # the first is left out
    before, after = ends[0][0, :, 1], ends[1][0, :, 1]
    np.testing.assert_allclose(estimate, after + 3.0 * (after - before), rtol=1e-5, atol=1e-5)
    assert frames.take() is None
    frames.before(5)  # into the places that are free again
    frames.after(5)
    assert len(device.places) == 8
