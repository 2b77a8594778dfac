"""Executes bound instructions: the one place where a program's engine calls, mixes and rescalings are enqueued.

Who decides which instructions come next is not known here: a run executes a step after the other (`loop`), a
calibration goes back and forth between steps and models (`calibrate.trajectory`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.sampler.binding import Binding, BoundInstruction, EngineCall


class Executor:
    """Enqueues what a binding holds. It allocates nothing and waits for nothing.

    Args:
        complaints: by the index of each engine call, what to say when its velocity is not finite.

    Attributes:
        calls: enqueued since the start, in order.
    """

    def __init__(self, binding: Binding, device: Device, complaints: Sequence[str]) -> None:
        self._latents = binding.latents
        self._device = device
        self._watch = device.watch(complaints)
        self.calls: list[EngineCall] = []

    def start(self, latents: Tensor) -> None:
        """Begin with initial latents fp32 [1, C, F, H, W], which are copied; what was found before is forgotten."""
        self._watch.reset()
        self.calls.clear()
        self._device.copy(latents, self._latents)

    def execute(self, instructions: Iterable[BoundInstruction]) -> None:
        """Enqueue instructions.

        Raises:
            FlowBlendingError: an engine failed, or, on the CPU, a velocity is not finite.
        """
        with self._device.current():
            for each in instructions:
                if isinstance(each, EngineCall):
                    self._call(each)
                else:
                    each.enqueue(self._device)

    def raise_if_bad(self) -> None:
        """Wait for everything enqueued, and complain about the first velocity that was not finite.

        Raises:
            FlowBlendingError: there was one.
        """
        self._watch.raise_if_bad()

    def _call(self, each: EngineCall) -> None:
        """One engine call, and a look at what it gives."""
        for copy in each.copies:
            self._device.copy(self._latents, copy)
        each.start.record()
        each.engine.run(each.tensors, self._device.stream)
        each.stop.record()
        if each.slot is not None:
            self._device.copy(each.velocity, each.slot)
        self._watch.check(each.velocity, each.index)
        self.calls.append(each)
