"""The engines of a bundle on a device: which are open, and the scratch memory that they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from flowblending import DeviceError, FlowBlendingError, OutOfMemoryError
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.protocol import Engine, ScratchEngine
from flowblending.engine.backends.registry import open_engine
from flowblending.engine.backends.tensor import CUDA
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.devices.arena import Arena
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.memory.choose import choose_plan
from flowblending.runtime.memory.plan import AUTO, MemoryPlan, Phase, RunMemory
from flowblending.system.host_memory import available_memory


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
    _planned: Mapping[str, int] = field(default_factory=dict)
    _streamed: dict[str, int] = field(default_factory=dict)
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
            except OutOfMemoryError:
                raise
            except FlowBlendingError as error:
                raise DeviceError(str(error)) from None
            self._streamed[name] = self._planned.get(name, 0)
        return self._open[name]

    def _opened(self, name: str) -> Engine:
        component = self.bundle.manifest.components[name]
        with self.device.current():
            engine = open_engine(
                backend=component.backend,
                path=self.bundle.path(name),
                spec=component.spec,
                device=self.device.kind,
                index=self.device.index,
                stream=self.device.stream,
                threads=self.threads,
                streamed=self._planned.get(name, 0),
            )
        if isinstance(engine, ScratchEngine):
            engine.use_scratch(self.arena)
        return engine

    def plan(self, run: RunMemory) -> MemoryPlan:
        """How a run goes about memory, with what is free now and what the open engines hold.

        Raises:
            UsageError: the engines cannot go the way that was asked for.
            OutOfMemoryError: it does not fit.
        """
        free = self.free(run)
        opened = [run.engines[name] for name in self._open]
        host = None if free is None else available_memory() + sum(each.weights for each in opened if each.streams)
        return choose_plan(run, self.memory, free, tuple(self._open), host)

    def free(self, run: RunMemory) -> int | None:
        """Bytes of the device that a run may have: what is free, and what the engines hold that are open."""
        free = free_memory(self.device.index) if self.device.kind == CUDA else None
        if free is None:
            return None
        return free + self.arena.size + sum(run.engines[name].weights - size for name, size in self._streamed.items())

    def begin(self, plan: MemoryPlan) -> None:
        """Go by a plan from now on: engines that it has less or more of on the device are closed, to be opened anew."""
        self._planned = plan.streamed
        self.keep_only([name for name in self._open if self._streamed[name] == plan.streamed.get(name, 0)])

    def alone(self, run: RunMemory) -> None:
        """Have the memory for what runs by itself, with engines closed where that is the way, or takes it.

        Args:
            run: of one phase.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        plan = self.plan(run)
        self.begin(plan)
        self.enter(plan.phases[0], alone=plan.by_phases)

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

    def keep_only(self, names: Collection[str]) -> None:
        """Close all engines but these, when what they were given has finished."""
        others = [name for name in self._open if name not in names]
        if not others:
            return
        self.device.close()
        with self.device.current():
            for name in others:
                self._streamed.pop(name)
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
