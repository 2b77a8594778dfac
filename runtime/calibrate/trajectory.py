"""Several models along any trajectory: every step with any of them, and back to an earlier step.

A step's instructions depend on its model alone, and not on the schedule it is part of: solvers know noise levels only,
and the history is kept at a switch. So a program of each model alone, all bound to the same memory, make every
schedule's trajectory step by step, and trajectories that start alike share their beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Self

import numpy as np
import numpy.typing as npt

from flowblending.contracts.program import Program, Run
from flowblending.engine.backends.protocol import Engine
from flowblending.runtime.calibrate.pair import ModelPair
from flowblending.runtime.calibrate.signal import Signal, open_signals
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.planned_job import Start, plan_job
from flowblending.runtime.refusals import non_finite_velocity
from flowblending.runtime.sampler.binding import BoundInstruction, BoundStep, Conditions, EngineCall, bind
from flowblending.runtime.sampler.executor import Executor

Floats = npt.NDArray[np.float32]
State = Mapping[str, Floats]
"""What a trajectory is at a step: the latents and the solver's history, by slot."""


class StepTrajectory:
    """A trajectory that is made a step at a time.

    Args:
        programs: by letter, of each model alone, that of the first model first: of the same noise levels, solver and
            guidance, without a step cache.
        engines: of all models.
        device: where they are.
        conditions: per branch; their memory must live as long as this.
        signals: by engine, what TeaCache looks at; none unless the bundle can compute it.
        extra: latent frames that are put before the video's own.

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
        extra: int = 0,
    ) -> None:
        self.extra = extra
        self.letters = tuple(programs)
        self.models = {letter: tuple(step.model for step in program.steps) for letter, program in programs.items()}
        first = programs[self.letters[0]]
        self.steps = len(first.steps)
        self.guidance = first.guidance
        self.sigmas = tuple(step.sigma for step in first.steps)
        self.timesteps = tuple(step.timestep for step in first.steps)
        self.signals = signals or {}
        self._device = device
        joined = dataclasses.replace(first, steps=tuple(step for each in programs.values() for step in each.steps))
        given = {name: np.zeros((1, *joined.slot_shape(name)), np.float32) for name in joined.given}
        self._binding = bind(joined, engines, device, conditions, given=given)
        bound = {
            letter: self._binding.steps[number * self.steps : (number + 1) * self.steps]
            for number, letter in enumerate(programs)
        }
        self._calls = {letter: [_calls(step) for step in steps] for letter, steps in bound.items()}
        first_bound = bound[self.letters[0]]
        self._before = [_before(step) for step in first_bound]
        self._updates = [
            [each for each in step.instructions[len(before) :] if not isinstance(each, EngineCall)]
            for step, before in zip(first_bound, self._before, strict=True)
        ]
        runs = [each for each in joined.instructions() if isinstance(each, Run)]
        self._velocities = {branch: slot for run in runs for branch, slot in zip(run.branches, run.out, strict=True)}
        # What is given stays as it is from one start to the next.
        constant = {*self._velocities.values(), *joined.given}
        self._state = [name for name in self._binding.slots if name not in constant]
        self._executor = Executor(self._binding, device, self._complaints())

    @classmethod
    def open(cls, pipeline: Pipeline, job: Job, letters: Sequence[str], warn: Callable[[str], None]) -> Self:
        """A trajectory along a job's steps with a bundle's engines; the job's schedule does not matter.

        Args:
            letters: of the models, the first of which the others are compared with.

        Raises:
            FlowBlendingError: a job that makes no program, or engines that cannot be opened.
        """
        planned = {
            letter: plan_job(dataclasses.replace(job, schedule=letter, cache="off"), pipeline.bundle.manifest)
            for letter in letters
        }
        first = planned[letters[0]]
        programs = {letter: each.program for letter, each in planned.items()}
        engines = dict.fromkeys(step.model for program in programs.values() for step in program.steps)
        conditions = pipeline.encode(job, first.program, warn, times=first.times)
        return cls(
            programs=programs,
            engines={model: pipeline.engines.get(model) for model in engines},
            device=pipeline.device,
            conditions=conditions,
            signals=open_signals(pipeline.bundle, pipeline.machine.threads),
            extra=first.extra,
        )

    def start(self, start: Start) -> None:
        """Begin at the first step."""
        for name, values in start.slots.items():
            self._device.copy(self._device.upload(values), self._binding.slots[name])
        self._executor.start(self._device.upload(start.latents))

    @property
    def pair(self) -> ModelPair:
        """The letters of the first two models."""
        return ModelPair(first=self.letters[0], second=self.letters[1])

    def evaluate(self, index: int, letter: str) -> dict[str, Floats]:
        """A model's velocity at a step, per branch, fp32 [1, C, F, H, W]; the trajectory stays where it is.

        Raises:
            FlowBlendingError: a velocity is not finite, or an engine failed.
        """
        self._call(index, letter)
        self._executor.raise_if_bad()
        return {branch: self._device.download(self._binding.slots[slot]) for branch, slot in self._velocities.items()}

    def update(self, index: int) -> None:
        """Go on to the next step with the velocity evaluated last."""
        self._executor.execute(self._updates[index])

    def step(self, index: int, letter: str) -> None:
        """Go on to the next step with a model."""
        self._call(index, letter)
        self.update(index)

    def latents(self) -> Floats:
        """A copy of the latents, fp32 [1, C, F, H, W].

        Raises:
            FlowBlendingError: a velocity on the way was not finite.
        """
        self._executor.raise_if_bad()
        return self._device.download(self._binding.latents)

    def result(self) -> Floats:
        """A copy of the video's own latents, fp32 [1, C, F, H, W].

        Raises:
            FlowBlendingError: a velocity on the way was not finite.
        """
        return np.ascontiguousarray(self.latents()[:, :, self.extra :])

    def save(self) -> State:
        """Everything that the next steps depend on."""
        return {name: self._device.download(self._binding.slots[name]) for name in self._state}

    def restore(self, state: State) -> None:
        """Go back to where `save` was called."""
        for name, values in state.items():
            self._device.copy(self._device.upload(values), self._binding.slots[name])

    def _call(self, index: int, letter: str) -> None:
        """A model on the latents of a step, with the frames that are held in their place; any number of times."""
        self._executor.execute(self._before[index])
        self._executor.execute(self._calls[letter][index])

    def _complaints(self) -> list[str]:
        """Of every engine call, in the order in which they were bound."""
        return [
            non_finite_velocity(each.model, each.engine.spec.precision, step=number, steps=self.steps)
            for steps in self._calls.values()
            for number, calls in enumerate(steps, start=1)
            for each in calls
        ]


def _before(step: BoundStep) -> list[BoundInstruction]:
    """What is done to the latents before a model sees them."""
    return list(takewhile(lambda each: not isinstance(each, EngineCall), step.instructions))


def _calls(step: BoundStep) -> list[EngineCall]:
    return [each for each in step.instructions if isinstance(each, EngineCall)]
