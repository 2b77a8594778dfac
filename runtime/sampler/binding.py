"""A sampling program bound to engines and memory: every slot, input and engine call, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.conditions import input_key
from flowblending.contracts.graph import TensorSpec
from flowblending.contracts.program import LATENTS, TIMESTEP, VELOCITY, Mix, Place, Program, Run, Step
from flowblending.engine.backends.protocol import Engine, ScratchEngine
from flowblending.engine.backends.tensor import ALIGNMENT, CPU, Tensor
from flowblending.runtime.devices.protocol import Device, Mark
from flowblending.runtime.refusals import non_finite_velocity
from flowblending.runtime.sampler.numbers import StepNumbers, ToldSum
from flowblending.runtime.sampler.online import Chooser, Placing, Rescaling, Sum

Conditions = Mapping[str, Mapping[str, Tensor]]
"""Per branch (``cond``, ``uncond``): what the engines take beside latents and timestep, by input name, [1, ...]."""

Given = Mapping[str, npt.NDArray[np.float32]]
"""By slot, what was made before the first step, float32 [1, C, f, H, W]."""

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCall:
    """An engine call: the latents' row is repeated into ``copies``, then the engine runs on ``tensors``.

    ``slot``, if it is not None, gets a copy of the velocity afterwards: it is a row of a batch at an address that
    engines may not be given. ``index`` is that of its complaint, or where it is in memory.
    """

    model: str
    engine: Engine
    tensors: Mapping[str, Tensor]
    copies: tuple[Tensor, ...]
    velocity: Tensor
    slot: Tensor | None
    index: int | Tensor
    start: Mark
    stop: Mark


BoundInstruction = EngineCall | Sum | ToldSum | Rescaling | Placing


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundStep:
    """A step whose instructions are bound to memory."""

    model: str
    instructions: tuple[BoundInstruction, ...]
    stop: Mark


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A program on tensors.

    Attributes:
        latents: the slot that holds noise first and the result last, fp32 [1, C, F, H, W].
        slots: every slot by its name, that one among them.
        steps: the program's steps.
        complaints: for each engine call, by its index, what to say when its velocity is not finite.
        chooser: decides about steps while the program runs, if it leaves anything to decide.
    """

    latents: Tensor
    slots: Mapping[str, Tensor]
    steps: tuple[BoundStep, ...]
    complaints: tuple[str, ...]
    chooser: Chooser | None


def bind(
    program: Program,
    engines: Mapping[str, Engine],
    device: Device,
    conditions: Conditions,
    *,
    numbers: StepNumbers | None = None,
    given: Given | None = None,
) -> Binding:
    """Allocate and bind everything that running a program takes.

    Args:
        numbers: of the program, if instructions are to read them from memory, so that a graph of one step runs others.
        given: what the program's given slots hold.

    Raises:
        FlowBlendingError: an engine asks for an input that is not there, or of another shape or type.
    """
    memory = _ProgramMemory(
        engines=engines, device=device, program=program, conditions=conditions, numbers=numbers, given=given or {}
    )
    complaints: list[str] = []
    steps = []
    for number, step in enumerate(program.steps, start=1):
        instructions: list[BoundInstruction] = []
        places = [None] * len(step.instructions) if numbers is None else numbers.places(step)
        for each, place in zip(step.instructions, places, strict=True):
            if isinstance(each, Run):
                instructions.append(memory.call(each, step, len(complaints) if place is None else place))
                precision = engines[each.model].spec.precision
                complaints.append(non_finite_velocity(each.model, precision, step=number, steps=len(program.steps)))
            elif isinstance(each, Mix):
                instructions.append(memory.sum(each, place))
            elif isinstance(each, Place):
                instructions.append(Placing.of(each, memory.slots, program.partial))
            else:
                instructions.append(Rescaling.of(each, memory.slots))
        steps.append(BoundStep(model=step.model, instructions=tuple(instructions), stop=device.mark()))
    return Binding(
        latents=memory.slots[LATENTS],
        slots=memory.slots,
        steps=tuple(steps),
        complaints=tuple(complaints),
        chooser=None if program.choice is None else Chooser(program.choice, memory.slots, device),
    )


class _ProgramMemory:
    """Binds a program's slots and inputs to tensors, each made once."""

    def __init__(
        self,
        *,
        engines: Mapping[str, Engine],
        device: Device,
        program: Program,
        conditions: Conditions,
        numbers: StepNumbers | None,
        given: Given,
    ) -> None:
        self._engines = engines
        self._numbers = numbers
        self._device = device
        self._conditions = conditions
        runs = [each for each in program.instructions() if isinstance(each, Run)]
        # Slots of one batched call are rows of one buffer. So is the slot of the latents and the copies of it.
        self._latents = device.empty(
            (max((len(run.branches) for run in runs), default=1), *program.latent_shape), _FLOAT32
        )
        self._outputs: dict[tuple[str, ...], Tensor] = {}
        self.slots = {LATENTS: device.rows(self._latents, 0, 1)}
        for run in sorted(runs, key=lambda run: -len(run.out)):
            self._place(run.out, program.latent_shape)
        self.slots |= {name: device.upload(given[name]) for name in program.given}
        for name in program.slots():
            if name not in self.slots:
                self._place((name,), program.slot_shape(name))
        self._timesteps: dict[tuple[tuple[float, ...], tuple[int, ...]], Tensor] = {}
        self._inputs: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._copied: dict[int, Tensor] = {}

    def _place(self, names: tuple[str, ...], latent_shape: tuple[int, ...]) -> None:
        """Give slots neighbouring rows; one that has its place already may only be used alone."""
        if names in self._outputs:
            return
        if len(names) == 1 and names[0] in self.slots:
            self._outputs[names] = self.slots[names[0]]
            return
        if any(name in self.slots for name in names):
            raise ValueError(f"the slots {', '.join(names)} cannot lie side by side: one lies elsewhere already")
        rows = self._device.empty((len(names), *latent_shape), _FLOAT32)
        self._outputs[names] = rows
        self.slots |= {name: self._device.rows(rows, index, index + 1) for index, name in enumerate(names)}

    def sum(self, mix: Mix, factors: Tensor | None) -> Sum | ToldSum:
        """A mix on tensors, whose factors are read from memory if they are there."""
        if self._numbers is None or factors is None:
            return Sum.of(mix, self.slots)
        return self._numbers.sum(mix, self.slots, factors)

    def call(self, run: Run, step: Step, index: int | Tensor) -> EngineCall:
        """A run on tensors; ``index`` is its complaint's, or where that is in memory."""
        engine = self._engines.get(run.model)
        if engine is None:
            raise FlowBlendingError(
                f"The program runs the {run.model} model, but only {', '.join(sorted(self._engines))} is there; "
                "give its engine, or choose another schedule."
            )
        count = len(run.branches)
        rows = self._device.rows
        given = {
            LATENTS: rows(self._latents, 0, count),
            TIMESTEP: self._timestep(step, engine.spec.timestep_shape(self._latents.shape[1:], count)),
        }
        tensors = {
            spec.name: given.get(spec.name) or self._input(run, spec, engine.spec.name) for spec in engine.spec.inputs
        }
        slot = self._outputs[run.out]
        velocity = slot if self._is_aligned(slot) else self._device.empty(slot.shape, slot.dtype)
        _check(engine, tensors, velocity)
        if isinstance(engine, ScratchEngine):
            # Before the loop, so that nothing in it has to be allocated, and all addresses stay what they are.
            engine.reserve({name: tensor.shape for name, tensor in tensors.items()})
        return EngineCall(
            model=run.model,
            engine=engine,
            tensors=tensors | {VELOCITY: velocity},
            copies=tuple(rows(self._latents, row, row + 1) for row in range(1, count)),
            velocity=velocity,
            slot=None if velocity is slot else slot,
            index=index,
            start=self._device.mark(),
            stop=self._device.mark(),
        )

    def _timestep(self, step: Step, shape: tuple[int, ...]) -> Tensor:
        if self._numbers is not None:
            return self._numbers.timestep(shape)
        # One allocation each, not rows of a table: TensorRT wants inputs aligned to 256 bytes.
        told = (step.timestep,) if step.frame_timesteps is None else step.frame_timesteps
        if (told, shape) not in self._timesteps:
            values = np.ascontiguousarray(np.broadcast_to(np.array(told, np.float32), shape))
            self._timesteps[told, shape] = self._device.upload(values)
        return self._timesteps[told, shape]

    def _is_aligned(self, tensor: Tensor) -> bool:
        """Whether an engine may be given a tensor where it lies."""
        return self._device.kind == CPU or tensor.address % ALIGNMENT == 0

    def _aligned(self, given: Tensor) -> Tensor:
        """What the caller gave, or a copy of it: a part of another library's array may lie anywhere."""
        if self._is_aligned(given):
            return given
        if given.address not in self._copied:
            copied = self._device.empty(given.shape, given.dtype)
            self._device.copy(given, copied)
            self._copied[given.address] = copied
        return self._copied[given.address]

    def _input(self, run: Run, spec: TensorSpec, engine: str) -> Tensor:
        """A condition of one branch, or those of several branches one after the other."""
        parts = []
        for branch in run.branches:
            given = self._conditions.get(branch, {})
            name = input_key(given, run.model, spec.name)
            if name not in given:
                raise FlowBlendingError(
                    f"Engine {engine} asks for the input {spec.name}, which was not given for the branch {branch} "
                    f"(given: {', '.join(sorted(given)) or 'nothing'}); build the bundle with this version."
                )
            parts.append(given[name])
        if any(part.shape != parts[0].shape for part in parts):
            raise FlowBlendingError(
                f"Input {spec.name} of engine {engine} has the shapes {[list(part.shape) for part in parts]} for the "
                f"branches {', '.join(run.branches)}, but one call takes equal shapes; pad them to one length."
            )
        if len(parts) == 1 or not spec.shape or spec.shape[0] != "batch":
            return self._aligned(parts[0])
        key = (run.branches, spec.name)
        if key not in self._inputs:
            whole = self._device.empty((len(parts), *parts[0].shape[1:]), parts[0].dtype)
            for row, part in enumerate(parts):
                self._device.copy(part, self._device.rows(whole, row, row + 1))
            self._inputs[key] = whole
        return self._inputs[key]


def _check(engine: Engine, tensors: Mapping[str, Tensor], velocity: Tensor) -> None:
    """Find before the loop what the engine would find in it."""
    sizes = engine.spec.sizes({name: tensor.shape for name, tensor in tensors.items()})
    for spec in engine.spec.inputs:
        if tensors[spec.name].dtype != np.dtype(spec.dtype):
            raise FlowBlendingError(
                f"Input {spec.name} of engine {engine.spec.name} is {tensors[spec.name].dtype}, "
                f"but {spec.dtype} was expected; give a tensor of that type."
            )
    outputs = {spec.name: (spec.resolve(sizes), spec.dtype) for spec in engine.spec.outputs}
    if outputs != {VELOCITY: (velocity.shape, "float32")}:
        raise FlowBlendingError(
            f"Engine {engine.spec.name} gives {outputs}, but {VELOCITY} as float32 {list(velocity.shape)} "
            "was expected; build the bundle with this version."
        )
