"""What differs between steps that do the same, in a device's memory: a graph that runs them all reads it there.

Every step's numbers are a row of a table. Before a step, its row is copied to the one place that instructions read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending.contracts.program import Mix, Program, Run, Step
from flowblending.engine.backends.tensor import ALIGNMENT, Tensor
from flowblending.runtime.devices.protocol import Device, Graphs

_UNIT = ALIGNMENT // 4
"""Words, for an engine's input begins at a multiple of `ALIGNMENT` bytes."""

_Words = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToldSum:
    """A mix of bound tensors whose factors are read when it runs; see `Graphs.mix`."""

    graphs: Graphs
    out: Tensor
    factors: Tensor
    tensors: tuple[Tensor, ...]

    def enqueue(self, device: Device) -> None:  # noqa: ARG002 - the graphs are the device's
        """Compute it."""
        self.graphs.mix(self.out, self.factors, self.tensors)


class StepNumbers:
    """Timesteps, factors and the indices of complaints of a program's steps.

    A row begins with the timestep, once for each latent of the largest batch, and again with one for each latent frame
    of those. Then come, instruction by instruction, a mix's factors as float32 and a call's index as uint32.

    Args:
        graphs: of the device.
    """

    def __init__(self, program: Program, device: Device, graphs: Graphs) -> None:
        self._device = device
        self.graphs = graphs
        runs = [each for each in program.instructions() if isinstance(each, Run)]
        batch = max((len(run.branches) for run in runs), default=1)
        self._of_frames = _whole_units(batch)
        self._first = self._of_frames + _whole_units(batch * program.latent_shape[1])
        rows, index = [], 0
        for step in program.steps:
            rows.append(np.concatenate([self._timesteps(step), *self._words(step, index)]))
            index += sum(isinstance(each, Run) for each in step.instructions)
        table = np.zeros((len(rows), _whole_units(max(map(len, rows)))), np.float32)
        for number, row in enumerate(rows):
            table[number, : len(row)] = row
        uploaded = device.upload(table)
        self._rows = [device.rows(uploaded, number, number + 1) for number in range(len(rows))]
        self._current = device.empty(table.shape[1:], table.dtype)

    def choose(self, step: int) -> None:
        """Enqueue: instructions that come next read this step's numbers."""
        self._device.copy(self._rows[step], self._current)

    def timestep(self, shape: tuple[int, ...]) -> Tensor:
        """Where the timestep is, float32 [batch] or [batch, frames]."""
        return self._device.view(self._current, 0 if len(shape) == 1 else self._of_frames, shape)

    def places(self, step: Step) -> list[Tensor]:
        """Where each instruction of a step finds its numbers; of no size where it has none."""
        places, start = [], self._first
        for words in self._words(step, 0):
            places.append(self._device.rows(self._current, start, start + len(words)))
            start += len(words)
        return places

    def sum(self, mix: Mix, slots: Mapping[str, Tensor], factors: Tensor) -> ToldSum:
        """A mix on tensors with its place among `places`."""
        tensors = tuple(slots[name] for _, name in mix.terms)
        return ToldSum(graphs=self.graphs, out=slots[mix.out], factors=factors, tensors=tensors)

    def _timesteps(self, step: Step) -> _Words:
        """The beginning of a row."""
        words = np.full(self._first, step.timestep, np.float32)
        if step.frame_timesteps is not None:
            of_frames = words[self._of_frames :]
            of_frames[:] = np.resize(
                np.array(step.frame_timesteps, np.float32), len(of_frames)
            )  # again for each latent
        return words

    def _words(self, step: Step, index: int) -> list[_Words]:
        """The numbers of each instruction, if ``index`` is that of the step's first call."""
        found: list[_Words] = []
        for each in step.instructions:
            if isinstance(each, Mix):
                found.append(np.asarray(self.graphs.numbers([factor for factor, _ in each.terms]), np.float32))
            elif isinstance(each, Run):
                found.append(np.array([index], np.uint32).view(np.float32))
                index += 1
            else:
                found.append(np.empty(0, np.float32))
        return found


def _whole_units(words: int) -> int:
    return -(-words // _UNIT) * _UNIT
