"""The engines of a bundle on a device: which are open, and the scratch memory that they share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from flowblending import DeviceError, FlowBlendingError
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.protocol import Engine, ScratchEngine
from flowblending.engine.backends.registry import open_engine
from flowblending.engine.backends.tensor import CUDA
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.arena import Arena
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.memory.choose import choose_plan
from flowblending.runtime.memory.plan import AUTO, PHASES, SLACK, MemoryPlan, Phase, RunMemory


@dataclass(kw_only=True)
class Engines:
    """Engines that are opened when they are first needed, and kept until ``close`` or a phase that has no use for them.

    Attributes:
        bundle: verified by the caller.
        device: where everything runs; its stream carries all engines.
        threads: of ONNX Runtime on the CPU; None leaves the choice to it.
        memory: one of `flowblending.runtime.memory.plan.MODES`.
        arena: the scratch memory of all of them.
    """

    bundle: Bundle
    device: Device
    threads: int | None = None
    memory: str = AUTO
    arena: Arena = field(init=False)
    _open: dict[str, Engine] = field(default_factory=dict)
    _closed: bool = False

    def __post_init__(self) -> None:
        self.arena = Arena(self.device)

    def is_open(self, name: str) -> bool:
        """Whether a component's engine is open."""
        return name in self._open

    def get(self, name: str) -> Engine:
        """An engine of the bundle by its component's name, opened if it is not yet.

        Raises:
            DeviceError: the engine cannot be opened.
            FlowBlendingError: everything has been closed.
        """
        if self._closed:
            raise FlowBlendingError(f"The bundle {self.bundle.folder} has been closed; open it again.")
        if name not in self._open:
            try:
                self._open[name] = self._opened(name)
            except FlowBlendingError as error:
                raise DeviceError(str(error)) from None
        return self._open[name]

    def _opened(self, name: str) -> Engine:
        component = self.bundle.manifest.components[name]
        with self.device.current():
            engine = open_engine(
                backend=component.backend,
                path=self.bundle.path(name),
                spec=component.spec,
                device=self.device.kind,
                stream=self.device.stream,
                threads=self.threads,
            )
        if isinstance(engine, ScratchEngine):
            engine.use_scratch(self.arena)
        return engine

    def plan(self, run: RunMemory) -> MemoryPlan:
        """How a run goes about memory, with what is free now and what the open engines hold.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        free = free_memory(self.device.index) if self.device.kind == CUDA else None
        if free is not None:
            free += self.arena.size + sum(run.engines[name].weights for name in self._open)
        return choose_plan(run, self.memory, free, tuple(self._open))

    def enter(self, phase: Phase, *, alone: bool) -> None:
        """Have a phase's scratch memory, and with ``alone`` no engine open that it does not need."""
        if alone:
            self.keep_only(phase.resident)
        if self.arena.size < phase.arena or (alone and self.arena.size > phase.arena):
            # Freed, and given back, before what takes its place comes.
            self.arena.release()
            self.device.trim()
        if phase.arena:
            self.arena.at_least(phase.arena)

    def make_room(self, names: Collection[str]) -> None:
        """Close all engines but these where they go by phases, or do not fit beside the others.

        For what runs by itself, and not as a phase of a run that was planned.
        """
        components = self.bundle.manifest.components
        new = [name for name in names if name not in self._open]
        weights = sum(components[name].weights_bytes or components[name].engine_bytes for name in new)
        stated = [each.scratch_bytes or 0 for name in names for each in components[name].profiles]
        needed = weights + max(0, max(stated, default=0) - self.arena.size)
        free = free_memory(self.device.index) if self.device.kind == CUDA else None
        tight = self.memory == AUTO and free is not None and round(needed * (1 + SLACK)) > free
        if self.memory == PHASES or tight:
            self.keep_only(names)

    def keep_only(self, names: Collection[str]) -> None:
        """Close all engines but these, when what they were given has finished."""
        others = [name for name in self._open if name not in names]
        if not others:
            return
        self.device.close()
        with self.device.current():
            for name in others:
                self._open.pop(name).close()

    def close(self) -> None:
        """Close every engine, for good, and give their memory back. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        with self.device.current():
            while self._open:
                self._open.popitem()[1].close()
        self.arena.release()
        self.device.trim()
