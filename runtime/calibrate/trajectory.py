"""Both models along any trajectory: every step with either of them, and back to an earlier step.

A step's instructions depend on its model alone, and not on the schedule it is part of: solvers know noise levels only,
and the history is kept at a switch. So an all-large and an all-small program, bound to the same memory, make every
schedule's trajectory step by step, and trajectories that start alike share their beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from flowblending.contracts.graph import LARGE, SMALL
from flowblending.contracts.program import Program, Run
from flowblending.engine.backends.protocol import Engine
from flowblending.runtime.calibrate.signal import Signal, open_signals
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.refusals import non_finite_velocity
from flowblending.runtime.sampler.binding import BoundStep, Conditions, EngineCall, bind
from flowblending.runtime.sampler.executor import Executor

Floats = npt.NDArray[np.float32]
State = Mapping[str, Floats]
"""What a trajectory is at a step: the latents and the solver's history, by slot."""


class StepTrajectory:
    """A trajectory that is made a step at a time.

    Args:
        programs: all-large and all-small, of the same noise levels, solver and guidance, without a step cache.
        engines: of both models.
        device: where they are.
        conditions: per branch; their memory must live as long as this.
        signals: by model, what TeaCache looks at; none unless the bundle can compute it.

    Raises:
        FlowBlendingError: an engine asks for an input that is not there, or of another shape or type.
    """

    def __init__(
        self,
        *,
        programs: Mapping[str, Program],
        engines: Mapping[str, Engine],
        device: Device,
        conditions: Conditions,
        signals: Mapping[str, Signal] | None = None,
    ) -> None:
        large, small = programs[LARGE], programs[SMALL]
        self.steps = len(large.steps)
        self.guidance = large.guidance
        self.sigmas = tuple(step.sigma for step in large.steps)
        self.timesteps = tuple(step.timestep for step in large.steps)
        self.signals = signals or {}
        self._device = device
        joined = dataclasses.replace(large, steps=(*large.steps, *small.steps))
        self._binding = bind(joined, engines, device, conditions)
        bound = {LARGE: self._binding.steps[: self.steps], SMALL: self._binding.steps[self.steps :]}
        self._calls = {model: [_calls(step) for step in steps] for model, steps in bound.items()}
        self._updates = [
            [each for each in step.instructions if not isinstance(each, EngineCall)] for step in bound[LARGE]
        ]
        runs = [each for each in joined.instructions() if isinstance(each, Run)]
        self._velocities = {branch: slot for run in runs for branch, slot in zip(run.branches, run.out, strict=True)}
        self._state = [name for name in self._binding.slots if name not in self._velocities.values()]
        self._executor = Executor(self._binding, device, self._complaints())

    @classmethod
    def open(cls, pipeline: Pipeline, job: Job, warn: Callable[[str], None]) -> Self:
        """A trajectory along a job's steps with a bundle's engines; the job's schedule does not matter.

        Raises:
            FlowBlendingError: a job that makes no program, or engines that cannot be opened.
        """
        programs = {
            model: compile_job(dataclasses.replace(job, schedule=name, cache="off"), pipeline.bundle.manifest)
            for model, name in ((LARGE, "LLL"), (SMALL, "SSS"))
        }
        return cls(
            programs=programs,
            engines={model: pipeline.engine(model) for model in programs},
            device=pipeline.device,
            conditions=pipeline.encode(job, programs[LARGE], warn),
            signals=open_signals(pipeline.bundle, pipeline.threads),
        )

    def start(self, noise: Floats) -> None:
        """Begin at the first step with initial latents fp32 [1, C, F, H, W]."""
        self._executor.start(self._device.upload(noise))

    def evaluate(self, index: int, model: str) -> dict[str, Floats]:
        """A model's velocity at a step, per branch, fp32 [1, C, F, H, W]; the trajectory stays where it is.

        Raises:
            FlowBlendingError: a velocity is not finite, or an engine failed.
        """
        self._executor.execute(self._calls[model][index])
        self._executor.raise_if_bad()
        return {branch: self._device.download(self._binding.slots[slot]) for branch, slot in self._velocities.items()}

    def update(self, index: int) -> None:
        """Go on to the next step with the velocity evaluated last."""
        self._executor.execute(self._updates[index])

    def step(self, index: int, model: str) -> None:
        """Go on to the next step with a model."""
        self._executor.execute(self._calls[model][index])
        self.update(index)

    def latents(self) -> Floats:
        """A copy of the latents, fp32 [1, C, F, H, W].

        Raises:
            FlowBlendingError: a velocity on the way was not finite.
        """
        self._executor.raise_if_bad()
        return self._device.download(self._binding.latents)

    def save(self) -> State:
        """Everything that the next steps depend on."""
        return {name: self._device.download(self._binding.slots[name]) for name in self._state}

    def restore(self, state: State) -> None:
        """Go back to where `save` was called."""
        for name, values in state.items():
            self._device.copy(self._device.upload(values), self._binding.slots[name])

    def _complaints(self) -> list[str]:
        """Of every engine call, in the order in which they were bound."""
        return [
            non_finite_velocity(each.model, each.engine.spec.precision, step=number, steps=self.steps)
            for steps in self._calls.values()
            for number, calls in enumerate(steps, start=1)
            for each in calls
        ]


def _calls(step: BoundStep) -> list[EngineCall]:
    return [each for each in step.instructions if isinstance(each, EngineCall)]
